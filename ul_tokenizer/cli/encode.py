"""The command `encode`. Only running it imports torch."""

from __future__ import annotations

from ul_tokenizer.cli.options import (
    ComputeDtype,
    Device,
    Dtype,
    Force,
    Fps,
    Media,
    Model,
    Output,
    Pad,
    Revision,
    Tile,
    fit_of,
)


def encode(
    source: Media,
    output: Output,
    model: Model = None,
    revision: Revision = None,
    pad: Pad = True,
    fps: Fps = None,
    device: Device = None,
    dtype: ComputeDtype = Dtype.float32,
    tile: Tile = None,
    force: Force = False,
) -> None:
    """Encode images and videos to latents: photos/a.jpg becomes OUT/a.jpg.safetensors.

    Each file holds one tensor, `latent`, of shape (channels, height, width), or (channels, frames, height, width) for
    videos. It has no noise. The metadata give the model, the sha256 of its weights, and the sizes of the original and
    of the decoded picture.
    """
    from ul_tokenizer.cli import tasks
    from ul_tokenizer.cli.tasks import FileTask, Kind

    plan = tasks.plan_media(source, output, tasks.LATENT_SUFFIXES, force, of_videos={"--fps": fps})
    from ul_tokenizer.cli.models import ModelOptions, load_models  # imports torch, after all checks

    models = load_models(plan, ModelOptions(model, revision, device, dtype, tile))
    fit = fit_of(pad)

    def work(job: FileTask) -> None:
        if job.kind is Kind.video:
            models.videos.encode_file(job, fit, fps)
        else:
            models.images.encode_file(job, fit)

    tasks.run(plan, "encoded", work)
