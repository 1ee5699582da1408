"""The command `encode-dataset`: encodes a whole data set to latents. Only the command itself imports torch."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ul_tokenizer.cli import flags
from ul_tokenizer.cli.help import COMPUTATION, IMAGES, JOBS
from ul_tokenizer.cli.options import (
    AsJson,
    BatchSize,
    ClipFps,
    ClipFrames,
    ClipStride,
    ComputeDtype,
    Config,
    Device,
    Dtype,
    ImageColumn,
    Resolution,
    Revision,
    SourceRevision,
    Split,
    WithoutCuts,
)
from ul_tokenizer.cli.reporting import print_results

if TYPE_CHECKING:
    from ul_tokenizer.latents.summary import EncodingSummary

SHOWN_SKIPS = 5


class CropChoice(str, enum.Enum):
    """How an image is cropped."""

    CENTER = "center"
    MULTIPLE = "multiple"
    NONE = "none"


class Stored(str, enum.Enum):
    """What latents are stored in."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    int8 = "int8"


# ---------------------------------------------------------------- options

Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="A folder of images, of .tar archives, of .parquet files or of videos; one such file; or a hub data set.",
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="Folder of the latent data set. An existing one is continued."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Autoencoder: bundled name, folder or hub id.",
        show_default="ul-photo-f8; with --clip-frames ul-video",
    ),
]
Crop = Annotated[
    CropChoice,
    typer.Option(
        metavar="NAME",
        help="center cuts out a square. multiple crops both sides to multiples of the compression ratio. none crops "
        "nothing, and skips images whose sides are not such multiples.",
        rich_help_panel=IMAGES,
    ),
]
StoreDtype = Annotated[
    Stored,
    typer.Option(metavar="NAME", help="Number format of the stored latents: float32, float16, bfloat16 or int8."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Processes that read and decode image files. 0 uses threads.",
        show_default="0 on a CPU, else by the cores",
        rich_help_panel=COMPUTATION,
    ),
]
Flip = Annotated[
    bool, typer.Option("--flip", help="Also store the mirror image of each image.", rich_help_panel=IMAGES)
]
KeepDuplicates = Annotated[
    bool,
    typer.Option(
        "--keep-duplicates",
        help="Keep files that have the same content as another file.",
        rich_help_panel=IMAGES,
    ),
]
MaxSkipFraction = Annotated[
    float, typer.Option(min=0, max=1, metavar="X", help="Exit with status 1 if a larger share is skipped.")
]
Rank = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Number of this job in an array, counted from 0. Needs --world-size.",
        rich_help_panel=JOBS,
    ),
]
WorldSize = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Number of jobs in the array. Needs --rank.", rich_help_panel=JOBS),
]

# ---------------------------------------------------------------- the command


def encode_dataset(
    source: Source,
    output: Output,
    model: Model = None,
    revision: Revision = None,
    resolution: Resolution = None,
    crop: Crop = CropChoice.CENTER,
    batch_size: BatchSize = 32,
    dtype: ComputeDtype = Dtype.float32,
    store_dtype: StoreDtype = Stored.float16,
    workers: Workers = None,
    flip: Flip = False,
    clip_frames: ClipFrames = None,
    clip_stride: ClipStride = None,
    clip_fps: ClipFps = None,
    without_cuts: WithoutCuts = False,
    keep_duplicates: KeepDuplicates = False,
    image_column: ImageColumn = "image",
    split: Split = "train",
    config: Config = None,
    source_revision: SourceRevision = None,
    max_skip_fraction: MaxSkipFraction = 0.1,
    rank: Rank = None,
    world_size: WorldSize = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Encode a whole data set to latents, once for all trainings.

    Run the same command again to continue an interrupted job. Several processes share the work if you start
    examples/encode_dataset.py with `accelerate launch` or `torchrun`. Samples that cannot be read are skipped and
    listed, with the reason, in skipped.jsonl. The exit status is 1 if more than --max-skip-fraction were skipped.
    """
    from ul_tokenizer.latents import job

    with in_flags(), reported(as_json, rank) as report, progress_bar() as on_progress:
        summary = job.encode_dataset(
            source,
            output,
            model=model,
            revision=revision,
            resolution=resolution,
            crop=crop.value,
            batch_size=batch_size,
            dtype=dtype.value,
            store_dtype=store_dtype.value,
            device=device,
            num_workers=workers,
            flip=flip,
            max_skip_fraction=max_skip_fraction,
            rank=rank,
            world_size=world_size,
            on_progress=on_progress,
            image_column=image_column,
            split=split,
            config=config,
            source_revision=source_revision,
            keep_duplicates=keep_duplicates,
            clip_frames=clip_frames,
            clip_stride=clip_stride,
            clip_fps=clip_fps,
            clip_without_cuts=without_cuts,
        )
        report(summary)


# ---------------------------------------------------------------- printing


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A function that shows how many samples of a total are done, in a bar on terminals."""
    from ul_tokenizer.progress import Bar, progress

    bar: Bar | None = None
    before = 0
    with ExitStack() as stack:

        def show(done: int, total: int) -> None:
            nonlocal bar, before
            if bar is None:
                bar, before = stack.enter_context(progress("encoding", total, "images", completed=done)), done
            bar.update(done - before)
            before = done

        yield show


@contextmanager
def reported(as_json: bool, rank: int | None) -> Iterator[Callable[[EncodingSummary], None]]:
    """A function that prints a summary; the one of a job that skipped too much is printed as well."""
    from ul_tokenizer.latents.summary import TooManySkippedError
    from ul_tokenizer.processes import Processes

    def report(summary: EncodingSummary) -> None:
        if rank is not None or Processes.of().is_main:
            print_json(summary) if as_json else print_summary(summary)

    try:
        yield report
    except TooManySkippedError as error:
        report(error.summary)
        raise


def print_summary(summary: EncodingSummary) -> None:
    """Prints what was done, with the first skipped samples, on standard error."""
    for skip in summary.skipped[:SHOWN_SKIPS]:
        typer.echo(f"skipped {skip.id}: {skip.reason}", err=True)
    if (more := len(summary.skipped) - SHOWN_SKIPS) > 0:
        typer.echo(f"… and {more} more, see {summary.output / 'skipped.jsonl'}", err=True)
    typer.echo(str(summary), err=True)


def print_json(summary: EncodingSummary) -> None:
    """Prints results, skipped samples and totals on standard output."""
    facts = summary.facts()
    totals = {name: value for name, value in facts.items() if name != "output"}
    print_results([facts], [skip._asdict() for skip in summary.skipped], totals)


# ---------------------------------------------------------------- errors

_FLAGS = {"source": "SRC", "clip_without_cuts": "--without-cuts", "num_workers": "--workers"}


@contextmanager
def in_flags() -> Iterator[None]:
    """Errors name the flags of the command in place of the function's arguments."""
    from ul_tokenizer.latents.summary import TooManySkippedError

    try:
        yield
    except TooManySkippedError as error:
        raise TooManySkippedError(with_flags(str(error)), error.summary) from error
    except ValueError as error:
        if (text := with_flags(str(error))) == str(error):
            raise
        raise ValueError(text) from error


def with_flags(text: str) -> str:
    """A text with this command's flags in place of the function's arguments."""
    from ul_tokenizer.latents.job import SourceOptions, encode_dataset

    arguments = (*inspect.signature(encode_dataset).parameters, *SourceOptions.__annotations__)
    return flags.with_flags(text, [name for name in arguments if "_" in name or name in ("source", "rank")], _FLAGS)
