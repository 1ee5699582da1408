"""The command `decode`. Only running it imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ul_tokenizer.cli.options import (
    ComputeDtype,
    DecodingSteps,
    Device,
    Dtype,
    Force,
    Mode,
    Model,
    Output,
    Revision,
    Seed,
    Tile,
)


def decode(
    source: Annotated[
        Path, typer.Argument(metavar="IN", exists=True, help="A latent file (.safetensors), or a folder of them.")
    ],
    output: Output,
    model: Model = None,
    revision: Revision = None,
    steps: DecodingSteps = None,
    seed: Seed = 0,
    mode: Mode = False,
    device: Device = None,
    dtype: ComputeDtype = Dtype.float32,
    tile: Tile = None,
    force: Force = False,
) -> None:
    """Decode latent files to images and videos.

    latents/a.jpg.safetensors becomes OUT/a.jpg.png; videos end in .mp4.
    """
    from ul_tokenizer.cli import tasks
    from ul_tokenizer.cli.tasks import FileTask, Kind

    plan = tasks.plan(source, output, tasks.find_latents, tasks.DECODED_SUFFIXES, force)
    from ul_tokenizer.cli.codec import DecodeOptions  # imports torch, after all checks
    from ul_tokenizer.cli.models import ModelOptions, load_models

    models = load_models(plan, ModelOptions(model, revision, device, dtype, tile))
    how = DecodeOptions(seed, steps, mode)

    def work(job: FileTask) -> None:
        codec = models.videos if job.kind is Kind.video else models.images
        codec.decode_file(job, how)

    tasks.run(plan, "decoded", work)
