"""Options that several commands share: one name, one type and one help text for each. No torch in it."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Literal

import typer

DEFAULT_IMAGE_MODEL, DEFAULT_VIDEO_MODEL, DEFAULT_PIPELINE = "ul-photo-f8", "ul-video", "ul-fashion"
BEYOND_ALL_LEVELS = 1000.0  # a log-SNR that no noise level reaches; finite, as JSON has no infinity


class Dtype(str, enum.Enum):
    """What networks compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Solver(str, enum.Enum):
    """How the steps of a base model are taken; the scheduler's `algorithm_type`."""

    ddim = "ddim"
    dpmsolver = "dpmsolver++"
    ddpm = "ddpm"


DEFAULT_SOLVER = Solver.dpmsolver
Fit = Literal["pad", "crop"]

# ---------------------------------------------------------------- models and machines

Model = Annotated[
    str | None,
    typer.Option(
        help="A bundled name, a folder or a hub id, tried in this order.",
        show_default=f"{DEFAULT_IMAGE_MODEL} for images, {DEFAULT_VIDEO_MODEL} for videos",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.", show_default="main")]
Device = Annotated[
    str | None,
    typer.Option(help="Where to compute: cpu, cuda, cuda:1 and so on.", show_default="cuda if available, else cpu"),
]
ComputeDtype = Annotated[Dtype, typer.Option("--dtype", help="What the networks compute in.")]
Tile = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Compute in overlapping tiles with this many pixels a side, which needs less memory; 0 never tiles.",
        show_default="512 if a side is above 1024",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option("--batch-size", min=1, help="Images to compute at once. It changes speed and memory, not the images."),
]

# ---------------------------------------------------------------- files

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="Folder for the results, which mirrors the input folder and is made if needed. For a single input it can "
        "also be a file that ends in .safetensors (latents), .png (images) or .mp4 (videos).",
    ),
]
NewFolder = Annotated[Path, typer.Option("--output", "-o", help="A new folder.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite results that exist.")]
AsJson = Annotated[bool, typer.Option("--json", help='Print JSON: an object with "results", "skipped" and "totals".')]
Media = Annotated[
    Path, typer.Argument(metavar="IN", exists=True, help="An image, a video, or a folder with images, videos or both.")
]
Pad = Annotated[
    bool,
    typer.Option(
        "--pad/--crop",
        help="How to make width and height multiples of the compression ratio: repeat the last row and column (which "
        "decoding cuts off again), or crop around the centre.",
    ),
]
Fps = Annotated[
    float | None,
    typer.Option(min=0.01, help="Videos only: resample to this frame rate.", show_default="keep every frame"),
]


def fit_of(pad: bool) -> Fit:
    """What --pad or --crop does with sizes that the compression ratio doesn't divide."""
    return "pad" if pad else "crop"


# ---------------------------------------------------------------- data sets

Resolution = Annotated[
    int | None, typer.Option(min=1, help="Scale the shorter side to this many pixels.", show_default="no scaling")
]
ClipFrames = Annotated[int | None, typer.Option(min=1, help="Read videos, in clips of this many frames.")]
ClipStride = Annotated[
    int | None,
    typer.Option(
        min=1, help="Frames between the starts of two clips; needs --clip-frames.", show_default="as --clip-frames"
    ),
]
ClipFps = Annotated[
    float | None, typer.Option(help="Frame rate of clips; needs --clip-frames.", show_default="each file's own")
]
WithoutCuts = Annotated[
    bool, typer.Option("--without-cuts", help="Skip clips in which a scene begins; needs --clip-frames.")
]
ImageColumn = Annotated[str, typer.Option(help="Column of images in parquet files and hub data sets.")]
Split = Annotated[str, typer.Option(help="Split of a hub data set.")]
Config = Annotated[str | None, typer.Option(help="Configuration of a hub data set.")]
SourceRevision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub data set.")]

# ---------------------------------------------------------------- decoding

DecodingSteps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=1,
        help="Decoding steps. One step is the most faithful, more steps add detail.",
        show_default="set by the model",
    ),
]
Mode = Annotated[bool, typer.Option("--mode", help="Decode the latent without its noise.")]
Seed = Annotated[
    int, typer.Option(min=0, help="Seed of all noise. A result does not depend on what else is computed with it.")
]

# ---------------------------------------------------------------- generating

DecoderSteps = Annotated[int | None, typer.Option(min=1, help="Steps of the decoder.", show_default="set by the model")]
GuidanceLow = Annotated[
    float | None,
    typer.Option(help="Guide only at log-SNRs above this one; needs --guidance.", show_default="no limit"),
]
GuidanceHigh = Annotated[
    float | None,
    typer.Option(help="Guide only at log-SNRs below this one; needs --guidance.", show_default="no limit"),
]
SOLVER_HELP = f"Sampler of the base model: {', '.join(solver.value for solver in Solver)}."
STEPS_HELP = "Steps of the base model."
GUIDANCE_HELP = "Classifier-free guidance scale; 1 means no guidance."


def guidance_interval(low: float | None, high: float | None) -> tuple[float, float] | None:
    """(lowest, highest) log-SNR at which to guide; None where neither end is given."""
    if low is None and high is None:
        return None
    return -BEYOND_ALL_LEVELS if low is None else low, BEYOND_ALL_LEVELS if high is None else high
