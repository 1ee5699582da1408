"""The command line `ul-tokenizer`: encode, decode, reconstruct, info. Only commands import torch, so help is quick."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ul_tokenizer import __version__

if TYPE_CHECKING:
    from ul_tokenizer.cli.codec import Codec, Fit, Reconstruction, Totals

DEFAULT_MODEL = "ul-photo-f8"
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


# ---------------------------------------------------------------- options

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="Folder for the results, made if needed; it mirrors the input folder. For a single input also a file, "
        "if it ends in .safetensors for latents or .png for pictures.",
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
ImageInput = Annotated[Path, typer.Argument(metavar="IN", exists=True, help="An image, or a folder of them.")]


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
    force: Force = False,
) -> None:
    """Encode images to latents: photos/a.jpg becomes OUT/a.jpg.safetensors.

    Each file holds `latent`, (channels, height, width) without noise, and the model, its weights' sha256, the image's
    size and the padding as metadata.
    """
    with _reporting():
        from ul_tokenizer.cli import files

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
    """Decode latents that `encode` wrote: latents/a.jpg.safetensors becomes OUT/a.jpg.png."""
    with _reporting():
        from ul_tokenizer.cli import files

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
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Encode and decode images: OUT/a.jpg.png shows the original beside its reconstruction.

    Prints PSNR over the original's area, bits per pixel (the bound that the model's prior gives for the latent, in
    pieces of at most 512 x 512 pixels) and the seconds of encoding and decoding.
    """
    with _reporting():
        from ul_tokenizer.cli import files
        from ul_tokenizer.cli.codec import mean_figures

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


def main() -> None:
    """Entry point."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files can hold anything
    app(prog_name=PROGRAM)


# ---------------------------------------------------------------- loading, printing, errors


def _load(model: str, revision: str | None, device: str | None, dtype: Dtype, tile: int | None) -> Codec:
    from ul_tokenizer.cli.codec import load_codec, pick_device

    try:
        where = pick_device(device)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--device'") from error
    codec = load_codec(model, revision, where, dtype.value, tile)
    if tile and tile < codec.ratio:
        raise typer.BadParameter(f"{tile} is less than the compression ratio, {codec.ratio}.", param_hint="'--tile'")
    return codec


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
