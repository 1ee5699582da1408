"""The command line `ul-tokenizer`. Only its commands import torch, so that help is quick."""

from __future__ import annotations

import enum
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from ul_tokenizer import __version__
from ul_tokenizer.cli import encode_dataset as encoding
from ul_tokenizer.cli import evaluate as evaluation
from ul_tokenizer.cli import hub, latents, train

if TYPE_CHECKING:
    import torch

    from ul_tokenizer.cli.codec import Codec, Fit, Reconstruction, Totals
    from ul_tokenizer.cli.video import VideoCodec, VideoReconstruction

DEFAULT_MODEL, DEFAULT_VIDEO_MODEL, DEFAULT_PIPELINE = "ul-photo-f8", "ul-video", "ul-fashion"
PROGRAM = "ul-tokenizer"

app = typer.Typer(
    name=PROGRAM,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


class Dtype(str, enum.Enum):
    """What the networks compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Solver(str, enum.Enum):
    """How the base model is sampled."""

    ddim = "ddim"
    dpmsolver = "dpmsolver++"
    ddpm = "ddpm"


# ---------------------------------------------------------------- options

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="Folder for the results, made if needed; it mirrors the input folder. For a single input also a file, "
        "if it ends in .safetensors for latents, .png for pictures or .mp4 for videos.",
    ),
]
Model = Annotated[str, typer.Option(help="Bundled name, folder or hub id, tried in this order.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …", show_default="cuda if there is one, or cpu")]
ComputeDtype = Annotated[Dtype, typer.Option("--dtype", help="What the networks compute in.")]
Tile = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Work in overlapping tiles of so many pixels a side, in the memory of one; 0 for never.",
        show_default="512 for images with a side above 1024",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite results that exist.")]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="Decoding steps; 1 is the most faithful, more add detail.", show_default="the model's"),
]
Seed = Annotated[int, typer.Option(min=0, help="Of all noise. A file's noise depends on it and on its latent only.")]
Mode = Annotated[bool, typer.Option("--mode", help="Decode the latent without its noise.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ImageInput = Annotated[
    Path, typer.Argument(metavar="IN", exists=True, help="An image or a video, or a folder of images or of videos.")
]
Fps = Annotated[
    float | None, typer.Option(help="Bring videos to so many frames per second.", show_default="every frame as it is")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback(epilog="Example: ul-tokenizer reconstruct photo.jpg -o out")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Images to Unified Latents and back.

    Results go to files, tables and JSON to standard output, notes to standard error. Nothing is overwritten without
    --force. Exit status: 0 if anything was done, 1 if nothing could be, 2 for wrong usage, 130 after Ctrl-C.
    """


# ---------------------------------------------------------------- commands


@app.command(epilog="Example: ul-tokenizer encode photos/ -o latents/ --pad")
def encode(
    source: ImageInput,
    output: Output,
    model: Model = DEFAULT_MODEL,
    revision: Revision = None,
    pad: Annotated[
        bool | None,
        typer.Option(
            "--pad/--crop",
            help="Repeat the last row and column (which decode cuts off again), or crop around the centre, where the "
            "compression ratio doesn't divide a size.",
            show_default="refuse such images",
        ),
    ] = None,
    device: Device = None,
    dtype: ComputeDtype = Dtype.float32,
    tile: Tile = None,
    fps: Fps = None,
    force: Force = False,
) -> None:
    """Encode images or videos to latents: photos/a.jpg becomes OUT/a.jpg.safetensors.

    Each file holds `latent`, (channels, [frames,] height, width) without noise, and the model, its weights' sha256, the
    image's size and the padding as metadata.
    """
    with _reporting():
        from ul_tokenizer.cli import files

        if files.has_videos(source):
            plan = files.plan(source, output, files.find_videos, ".safetensors", force)
            video = _load_video(model, revision, device, dtype, tile)
            files.run(plan, "encoded", lambda job: video.encode_file(job, pad is not False, fps))
            return
        plan = files.plan(source, output, files.find_images_or_file, ".safetensors", force)
        codec = _load(model, revision, device, dtype, tile)
        fit: Fit = "error" if pad is None else "pad" if pad else "crop"
        files.run(plan, "encoded", lambda job: codec.encode_file(job, fit))


@app.command(epilog="Example: ul-tokenizer decode latents/ -o pictures/ --steps 4")
def decode(
    source: Annotated[Path, typer.Argument(metavar="IN", exists=True, help="A latent file, or a folder of them.")],
    output: Output,
    model: Model = DEFAULT_MODEL,
    revision: Revision = None,
    steps: Steps = None,
    seed: Seed = 0,
    mode: Mode = False,
    device: Device = None,
    dtype: ComputeDtype = Dtype.float32,
    tile: Tile = None,
    force: Force = False,
) -> None:
    """Decode latents that `encode` wrote: latents/a.jpg.safetensors becomes OUT/a.jpg.png, or .mp4 for videos."""
    with _reporting():
        from ul_tokenizer.cli import files
        from ul_tokenizer.cli.video import is_clip

        if is_clip(source):
            plan = files.plan(source, output, files.find_latents_or_file, ".mp4", force)
            video = _load_video(model, revision, device, dtype, tile)
            files.run(plan, "decoded", lambda job: video.decode_file(job, seed, steps, mode))
            return
        plan = files.plan(source, output, files.find_latents_or_file, ".png", force)
        codec = _load(model, revision, device, dtype, tile)
        files.run(plan, "decoded", lambda job: codec.decode_file(job, seed, steps, mode))


@app.command(epilog="Example: ul-tokenizer reconstruct photo.jpg -o out --model ul-photo-f8")
def reconstruct(
    source: ImageInput,
    output: Output,
    model: Model = DEFAULT_MODEL,
    revision: Revision = None,
    pad: Annotated[
        bool,
        typer.Option("--pad/--crop", help="What to do with sizes that the compression ratio doesn't divide."),
    ] = True,
    steps: Steps = None,
    seed: Seed = 0,
    mode: Mode = False,
    device: Device = None,
    dtype: ComputeDtype = Dtype.float32,
    tile: Tile = None,
    fps: Fps = None,
    audio: Annotated[bool, typer.Option("--audio", help="Copy a video's sound into the result.")] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Encode and decode images or videos: OUT/a.jpg.png shows the original beside its reconstruction.

    Prints PSNR over the original's area, bits per pixel (the bound that the model's prior gives for the latent, in
    pieces of at most 512 x 512 pixels) and the seconds of encoding and decoding.
    """
    with _reporting():
        from ul_tokenizer.cli import files
        from ul_tokenizer.cli.codec import mean_figures

        if files.has_videos(source):
            plan = files.plan(source, output, files.find_videos, ".mp4", force)
            video = _load_video(model, revision, device, dtype, tile)
            video_prior = video.codec.load_prior()
            clips: list[VideoReconstruction] = []
            files.run(
                plan,
                "reconstructed",
                lambda job: clips.append(video.reconstruct_file(job, pad, video_prior, seed, steps, mode, fps, audio)),
            )
            _report_videos(clips, as_json)
            return
        plan = files.plan(source, output, files.find_images_or_file, ".png", force)
        codec = _load(model, revision, device, dtype, tile)
        prior = codec.load_prior()
        rows: list[Reconstruction] = []
        fit: Fit = "pad" if pad else "crop"
        skipped = files.run(
            plan, "reconstructed", lambda job: rows.append(codec.reconstruct_file(job, fit, prior, seed, steps, mode))
        )
        totals = mean_figures(rows)
        if as_json:
            _print_json(
                {
                    "model": model,
                    "images": [row._asdict() for row in rows],
                    **totals._asdict(),
                    "skipped": [{"image": str(skip.path), "reason": skip.reason} for skip in skipped],
                }
            )
        else:
            Console(soft_wrap=True).print(_reconstruction_table(rows, totals))


@app.command(epilog="Example: ul-tokenizer generate --model ul-fashion --class 7 --num 16 -o grid.png")
def generate(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A .png (of clips .mp4) for one grid, or a folder for many images.")
    ],
    model: Annotated[str, typer.Option(help="Pipeline: bundled name, folder or hub id.")] = DEFAULT_PIPELINE,
    revision: Revision = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Number or name of a class; may be given again.", show_default="no class"),
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the base model.")] = 32,
    decoder_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the decoder.", show_default="the model's")
    ] = None,
    guidance: Annotated[float, typer.Option(min=0, help="Guidance towards the class; 1 is none.")] = 1.0,
    guidance_low: Annotated[
        float | None, typer.Option(help="Guide only above this log-SNR.", show_default="everywhere")
    ] = None,
    guidance_high: Annotated[
        float | None, typer.Option(help="Guide only below this log-SNR.", show_default="everywhere")
    ] = None,
    solver: Annotated[Solver, typer.Option(help="How the steps are taken.")] = Solver.dpmsolver,
    height: Annotated[int | None, typer.Option(min=1, help="In pixels.", show_default="as trained")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="In pixels.", show_default="as trained")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Of clips.", show_default="as trained")] = None,
    context: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A video that clips continue.")
    ] = None,
    given: Annotated[int, typer.Option(min=1, help="Last frames of it that are given.")] = 5,
    fps: Annotated[float, typer.Option(help="Of clips, unless the context says it.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Of all noise; an image depends on it, its class and number.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 32,
    device: Device = None,
    dtype: ComputeDtype = Dtype.float32,
    force: Force = False,
) -> None:
    """Generate images, or clips, with a base model, its scheduler and its autoencoder."""
    with _reporting():
        import torch

        from ul_tokenizer.cli import sampling as work

        where, interval = _device(device), _interval(guidance_low, guidance_high)
        pipeline = work.load_pipeline(model, revision, where, getattr(torch, dtype.value), solver.value)
        num_classes = pipeline.transformer.config.num_class_embeds
        labels = work.labels_of(classes or [], model, revision, num_classes)
        work.refuse_existing(labels, num, output, force)
        sampling = work.GenerateOptions(
            steps, decoder_steps, guidance, interval, solver.value, height, width, seed, batch_size
        )
        if output.suffix == ".mp4":
            work.generate_clips(pipeline, labels, num, sampling, work.Time(frames, context, given, fps), output)
            return
        if frames is not None or context is not None:
            raise ValueError(f"--output must be a .mp4 file for clips, got {output}.")
        work.generate(pipeline, labels, num, sampling, output)


@app.command(epilog="Example: ul-tokenizer info ul-photo-f8 --json")
def info(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Bundled name, folder or hub id, tried in this order.")
    ] = DEFAULT_MODEL,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Describe a model: parameters, compression, bytes, where it is, and what its card says."""
    with _reporting():
        from ul_tokenizer.cli.codec import describe

        facts = describe(model, revision)
        if as_json:
            _print_json(facts)
            return
        for key, value in facts.items():
            typer.echo(f"{key.replace('_', ' '):22}{_shown(value)}")


def _reported(command: Callable[..., None]) -> Callable[..., None]:
    """A command of another module, with errors told as here."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        with _reporting():
            command(*args, **kwargs)

    return run


FASHION = "~/.cache/ul_tokenizer/fashion-mnist"
app.command(epilog=f"Example: ul-tokenizer evaluate --train {FASHION}/train --test {FASHION}/test")(
    _reported(evaluation.evaluate)
)
app.command("encode-dataset", epilog="Example: ul-tokenizer encode-dataset photos/ -o latents/ --resolution 256")(
    _reported(encoding.encode_dataset)
)
for _command in (
    latents.info,
    latents.verify,
    latents.stats,
    latents.merge,
    latents.export,
    latents.decode,
    latents.push,
    latents.pull,
):
    latents.app.command()(_reported(_command))
app.add_typer(latents.app)
app.add_typer(train.app)
app.command(epilog="Example: ul-tokenizer push runs/my-model me/my-model --license apache-2.0")(_reported(hub.push))
app.command(epilog="Example: ul-tokenizer pull me/my-model -o my-model")(_reported(hub.pull))
app.add_typer(hub.app)


def main() -> None:
    """Entry point."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files can hold anything
    app(prog_name=PROGRAM)


# ---------------------------------------------------------------- loading, printing, errors


def _device(name: str | None) -> torch.device:
    from ul_tokenizer.cli.codec import pick_device

    try:
        return pick_device(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--device'") from error


def _interval(low: float | None, high: float | None) -> tuple[float, float] | None:
    """Guidance's interval; an end that isn't given is open."""
    if low is None and high is None:
        return None
    return (-math.inf if low is None else low, math.inf if high is None else high)


def _load(model: str, revision: str | None, device: str | None, dtype: Dtype, tile: int | None) -> Codec:
    from ul_tokenizer.cli.codec import load_codec

    codec = load_codec(model, revision, _device(device), dtype.value, tile)
    if tile and tile < codec.ratio:
        raise typer.BadParameter(f"{tile} is less than the compression ratio, {codec.ratio}.", param_hint="'--tile'")
    return codec


def _load_video(model: str, revision: str | None, device: str | None, dtype: Dtype, tile: int | None) -> VideoCodec:
    from ul_tokenizer.cli.video import VideoCodec

    name = DEFAULT_VIDEO_MODEL if model == DEFAULT_MODEL else model
    return VideoCodec(_load(name, revision, device, dtype, tile))


@contextmanager
def _reporting() -> Iterator[None]:
    """One line for what goes wrong, and the exit status that goes with it."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError, MemoryError) as error:
        _fail(str(error) or type(error).__name__)
    except RuntimeError as error:  # torch has no common class for this on all devices
        text = str(error).lower()
        if "out of memory" not in text and "allocate memory" not in text:
            raise
        _fail("not enough memory; --tile with a smaller number needs less.")


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1) from None


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, default=str, allow_nan=False))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(entry)}" for key, entry in value.items()) or "-"
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _report_videos(clips: list[VideoReconstruction], as_json: bool) -> None:
    if as_json:
        _print_json({"videos": [clip._asdict() for clip in clips]})
        return
    # Of 80 columns, the figures take what they need and the name folds into the rest.
    table = Table(Column("video", overflow="fold"))
    for header in ("pixels", "frames", "PSNR\n(dB)", "worst", "flicker/\nsource", "bits/\npixel", "fps"):
        table.add_column(header, justify="right", no_wrap=True)
    for clip in clips:
        bits = "-" if clip.bits_per_pixel is None else f"{clip.bits_per_pixel:.3f}"
        figures = (
            f"{clip.mean_psnr:.2f}",
            f"{min(clip.psnr_per_frame):.2f}",
            f"{clip.flicker:.3f}/{clip.source_change:.3f}",
            bits,
            f"{clip.frames_per_second:.1f}",
        )
        table.add_row(escape(clip.video), f"{clip.width}×{clip.height}", str(clip.frames), *figures)
    Console(soft_wrap=True).print(table)


def _reconstruction_table(rows: list[Reconstruction], totals: Totals) -> Table:
    def cells(psnr: float | None, bits: float | None, seconds: float) -> tuple[str, str, str]:
        exact = "exact" if psnr is None else f"{psnr:.2f}"
        return exact, "-" if bits is None else f"{bits:.3f}", f"{seconds:.2f}"

    table = Table("image", "pixels", "PSNR (dB)", "bits/pixel", "seconds")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(escape(row.image), f"{row.width}×{row.height}", *cells(row.psnr, row.bits_per_pixel, row.seconds))
    table.add_section()
    pixels = f"{totals.pixels:,}"
    table.add_row("mean of PSNR", pixels, *cells(totals.mean_psnr, totals.bits_per_pixel, totals.seconds))
    table.add_row("PSNR of mean MSE", "", cells(totals.psnr_of_mean_mse, None, 0)[0], "", "")
    return table
