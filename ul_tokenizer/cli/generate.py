"""The command `generate`. Only running it imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ul_tokenizer.cli.help import CLIPS, SAMPLING
from ul_tokenizer.cli.options import (
    DEFAULT_PIPELINE,
    DEFAULT_SOLVER,
    GUIDANCE_HELP,
    SOLVER_HELP,
    STEPS_HELP,
    BatchSize,
    ComputeDtype,
    DecoderSteps,
    Device,
    Dtype,
    Force,
    GuidanceHigh,
    GuidanceLow,
    Revision,
    Seed,
    Solver,
    guidance_interval,
)
from ul_tokenizer.cli.reporting import require

GIVEN = 5  # frames of a context

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="A .png file for a grid of images, an .mp4 file for clips, or a folder for single images.",
    ),
]
Pipeline = Annotated[
    str,
    typer.Option(
        "--model", metavar="NAME", help="Pipeline: a bundled name, a folder or a hub id, tried in this order."
    ),
]
Classes = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        metavar="NAME",
        help="Number or name of a class. Repeat the option for several classes.",
        show_default="no class",
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help="Text, for models that were trained on captions. Repeat the option for several texts.",
        show_default="no text",
    ),
]
Num = Annotated[int, typer.Option("--num", "-n", min=1, metavar="N", help="Images or clips of each class and text.")]
Steps = Annotated[int, typer.Option(min=1, metavar="N", help=STEPS_HELP, rich_help_panel=SAMPLING)]
Guidance = Annotated[
    float,
    typer.Option(min=0, metavar="X", help=f"{GUIDANCE_HELP} Needs --class or --prompt.", rich_help_panel=SAMPLING),
]
SolverChoice = Annotated[Solver, typer.Option(metavar="NAME", help=SOLVER_HELP, rich_help_panel=SAMPLING)]
Height = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Height in pixels.", show_default="as in training", rich_help_panel=SAMPLING),
]
Width = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Width in pixels.", show_default="as in training", rich_help_panel=SAMPLING),
]
Frames = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Clips only: number of frames to generate.",
        show_default="as in training",
        rich_help_panel=CLIPS,
    ),
]
Context = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        metavar="FILE",
        help="Clips only: a video that the clips continue.",
        rich_help_panel=CLIPS,
    ),
]
Given = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Number of frames from the end of --context that the clips continue.",
        show_default=str(GIVEN),
        rich_help_panel=CLIPS,
    ),
]
ClipFps = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        metavar="X",
        help="Clips only: frames per second.",
        show_default="those of --context, or 10",
        rich_help_panel=CLIPS,
    ),
]


def generate(
    output: Output,
    model: Pipeline = DEFAULT_PIPELINE,
    revision: Revision = None,
    classes: Classes = None,
    prompts: Prompts = None,
    num: Num = 16,
    solver: SolverChoice = DEFAULT_SOLVER,
    steps: Steps = 32,
    guidance: Guidance = 1.0,
    guidance_low: GuidanceLow = None,
    guidance_high: GuidanceHigh = None,
    decoder_steps: DecoderSteps = None,
    height: Height = None,
    width: Width = None,
    frames: Frames = None,
    context: Context = None,
    given: Given = None,
    fps: ClipFps = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: ComputeDtype = Dtype.float32,
    force: Force = False,
) -> None:
    """Generate images or clips with a base model, its scheduler and its autoencoder."""
    _check_clip_options(output, {"--frames": frames, "--context": context, "--given": given, "--fps": fps})
    require(given is None or context is not None, "--given needs --context, the video whose last frames are continued.")
    is_conditional = bool(classes) or bool(prompts)
    require(guidance == 1 or is_conditional, f"--guidance needs --class or --prompt, got {guidance:g} without either.")
    interval = guidance_interval(guidance_low, guidance_high)
    require(interval is None or guidance != 1, "--guidance-low and --guidance-high need --guidance.")
    import torch

    from ul_tokenizer.cli import sampling as work
    from ul_tokenizer.cli.codec import pick_device
    from ul_tokenizer.pipelines.sampling import SamplingOptions, load_pipeline

    pipeline = load_pipeline(model, revision, pick_device(device), getattr(torch, dtype.value), solver.value)
    labels = work.labels_of(classes or [], model, revision, pipeline.transformer.config.num_class_embeds)
    wanted = work.Conditions(labels, work.prompts_of(prompts or [], model, pipeline))
    work.refuse_existing(wanted, num, output, force)
    options = SamplingOptions(steps, decoder_steps, guidance, interval, height, width, seed, batch_size)
    if output.suffix == ".mp4":
        clip = work.ClipOptions(frames, context, given or GIVEN, fps)
        work.generate_clips(pipeline, wanted, num, options, clip, output)
    else:
        work.generate(pipeline, wanted, num, options, output)


def _check_clip_options(output: Path, options: dict[str, object]) -> None:
    wrong = next((name for name, value in options.items() if value is not None), None)
    require(
        wrong is None or output.suffix == ".mp4",
        f"{wrong} is for clips, which need an --output that ends in .mp4, got {output}.",
    )
