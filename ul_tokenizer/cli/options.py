"""Options that several commands share: one name, one type and one help text for each. No torch in it."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Literal

import typer

from ul_tokenizer.cli.help import COMPUTATION, IMAGES, SAMPLING, TABLES, VIDEOS

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
        metavar="NAME",
        help="A bundled name, a folder or a hub id, tried in this order.",
        show_default=f"{DEFAULT_IMAGE_MODEL} for images, {DEFAULT_VIDEO_MODEL} for videos",
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Branch, tag or commit of a model on the hub.", show_default="main"),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Where to compute: cpu, cuda, cuda:1 and so on.",
        show_default="cuda if available, else cpu",
        rich_help_panel=COMPUTATION,
    ),
]
ComputeDtype = Annotated[
    Dtype,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="Number format of the networks: float32, bfloat16 or float16.",
        rich_help_panel=COMPUTATION,
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Compute in overlapping tiles of N x N pixels, which needs less memory. 0 never uses tiles.",
        show_default="512 if a side is above 1024",
        rich_help_panel=COMPUTATION,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size",
        min=1,
        metavar="N",
        help="Images to compute at once. It changes speed and memory, not the images.",
        rich_help_panel=COMPUTATION,
    ),
]

# ---------------------------------------------------------------- files

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="Folder for the results. It mirrors the input folder and is created if needed. A single result can also "
        "be a file that ends in .safetensors (a latent), .png (an image) or .mp4 (a video).",
    ),
]
NewFolder = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="A new folder.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite results that exist.")]
AsJson = Annotated[bool, typer.Option("--json", help='Print JSON: an object with "results", "skipped" and "totals".')]
Media = Annotated[
    Path, typer.Argument(metavar="IN", exists=True, help="An image, a video, or a folder with images, videos or both.")
]
Pad = Annotated[
    bool,
    typer.Option(
        "--pad/--crop",
        help="How to make width and height multiples of the compression ratio. --pad repeats the last row and column, "
        "and decoding removes them again. --crop crops around the centre.",
    ),
]
Fps = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        metavar="X",
        help="Videos only: resample to this frame rate.",
        show_default="keep every frame",
        rich_help_panel=VIDEOS,
    ),
]


def fit_of(pad: bool) -> Fit:
    """What --pad or --crop does with sizes that the compression ratio doesn't divide."""
    return "pad" if pad else "crop"


# ---------------------------------------------------------------- data sets

Resolution = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Scale the shorter side to this many pixels.",
        show_default="no scaling",
        rich_help_panel=IMAGES,
    ),
]
ClipFrames = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Read videos, in clips of this many frames.", rich_help_panel=VIDEOS),
]
ClipStride = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Frames between the starts of two clips. Needs --clip-frames.",
        show_default="as --clip-frames",
        rich_help_panel=VIDEOS,
    ),
]
ClipFps = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Frame rate of clips. Needs --clip-frames.",
        show_default="each file's own",
        rich_help_panel=VIDEOS,
    ),
]
WithoutCuts = Annotated[
    bool,
    typer.Option(
        "--without-cuts",
        help="Skip clips in which a new scene begins. Needs --clip-frames.",
        rich_help_panel=VIDEOS,
    ),
]
ImageColumn = Annotated[
    str,
    typer.Option(metavar="NAME", help="Column of images in parquet files and hub data sets.", rich_help_panel=TABLES),
]
Split = Annotated[str, typer.Option(metavar="NAME", help="Split of a hub data set.", rich_help_panel=TABLES)]
Config = Annotated[
    str | None, typer.Option(metavar="NAME", help="Configuration of a hub data set.", rich_help_panel=TABLES)
]
SourceRevision = Annotated[
    str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a hub data set.", rich_help_panel=TABLES)
]

# ---------------------------------------------------------------- decoding

DecodingSteps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        min=1,
        metavar="N",
        help="Decoding steps. One step is the most faithful, more steps add detail.",
        show_default="set by the model",
    ),
]
Mode = Annotated[bool, typer.Option("--mode", help="Decode the latent without its noise.")]
Seed = Annotated[
    int,
    typer.Option(
        min=0, metavar="N", help="Seed of all noise. A result does not depend on what else is computed with it."
    ),
]

# ---------------------------------------------------------------- generating

DecoderSteps = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Steps of the decoder.",
        show_default="set by the model",
        rich_help_panel=SAMPLING,
    ),
]
GuidanceLow = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Guide only at log-SNRs above this one. Needs --guidance.",
        show_default="no limit",
        rich_help_panel=SAMPLING,
    ),
]
GuidanceHigh = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Guide only at log-SNRs below this one. Needs --guidance.",
        show_default="no limit",
        rich_help_panel=SAMPLING,
    ),
]
SOLVER_HELP = f"Sampler of the base model: {', '.join(solver.value for solver in Solver)}."
STEPS_HELP = "Steps of the base model."
GUIDANCE_HELP = "Classifier-free guidance scale; 1 means no guidance."


def guidance_interval(low: float | None, high: float | None) -> tuple[float, float] | None:
    """(lowest, highest) log-SNR at which to guide; None where neither end is given."""
    if low is None and high is None:
        return None
    return -BEYOND_ALL_LEVELS if low is None else low, BEYOND_ALL_LEVELS if high is None else high
