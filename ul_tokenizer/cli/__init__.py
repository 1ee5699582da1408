"""The command line `ul-tokenizer`: its commands, each with an example. Only running a command imports torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from ul_tokenizer import __version__
from ul_tokenizer.cli import (
    decode,
    demo,
    encode,
    encode_dataset,
    evaluate,
    evaluate_report,
    generate,
    hub,
    info,
    latents,
    reconstruct,
    train,
)
from ul_tokenizer.cli.help import Command, Group, example
from ul_tokenizer.cli.reporting import reported

PROGRAM = "ul-tokenizer"

app = typer.Typer(
    name=PROGRAM,
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback(epilog=example("reconstruct photo.jpg -o out"))
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Encode images and videos to Unified Latents, decode them, and generate new ones.

    Results are written to files. Tables and JSON go to standard output, messages to standard error. Nothing is
    overwritten without --force. The exit status is 0 if there is at least one result, 1 if there is none, 2 for wrong
    usage and 130 after Ctrl-C.
    """


def _register(group: typer.Typer, command: Callable[..., None], words: str, name: str = "") -> None:
    """Adds a command, with an example of the words to type."""
    name = name or command.__name__.replace("_", "-")
    group.command(name, cls=Command, epilog=example(words))(reported(command))


_register(app, encode.encode, "encode photos/ -o latents/")
_register(app, decode.decode, "decode latents/ -o pictures/ --steps 4")
_register(app, reconstruct.reconstruct, "reconstruct photo.jpg -o out")
_register(app, generate.generate, "generate --class sneaker --num 16 --guidance 2 -o grid.png")
_register(app, info.info, "info ul-photo-f8 --json")
_register(app, demo.demo, "demo --port 8000")
_register(app, encode_dataset.encode_dataset, "encode-dataset photos/ -o latents/ --resolution 256")

_register(evaluate.app, evaluate.reconstruction, "evaluate reconstruction photos/ --model ul-photo-f8 --steps 1,4")
_register(evaluate.app, evaluate.generation, "evaluate generation photos/ --model ul-fashion -n 1000")
_register(evaluate.app, evaluate.prediction, "evaluate prediction clips/ --model base --clip-frames 9 --given 5")
_register(evaluate.app, evaluate_report.report, "evaluate report results/ -o report/")
app.add_typer(evaluate.app)

_register(latents.app, latents.info, "latents info latents/")
_register(latents.app, latents.verify, "latents verify latents/")
_register(latents.app, latents.stats, "latents stats latents/ --model ul-photo-f8")
_register(latents.app, latents.merge, "latents merge latents/ more-latents/ -o all-latents/")
_register(latents.app, latents.export, "latents export latents/ -o shards/ --format webdataset")
_register(latents.app, latents.decode, "latents decode latents/ -o sheet.png")
_register(latents.app, latents.push, "latents push latents/ me/my-latents")
_register(latents.app, latents.pull, "latents pull me/my-latents -o latents/")
app.add_typer(latents.app)
app.add_typer(train.app)

_register(app, hub.push, "push runs/my-model me/my-model --license apache-2.0")
_register(app, hub.pull, "pull me/my-model -o my-model")
_register(hub.app, hub.list_models, "hub list --json", name="list")
app.add_typer(hub.app)


def main() -> None:
    """Runs the command line on the arguments of this process."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names can hold anything
    app(prog_name=PROGRAM)
