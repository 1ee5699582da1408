"""The command `ul-tokenizer train`; `ul_tokenizer.train` starts it, too, for launchers of several processes."""

from __future__ import annotations

from typing import Annotated

import typer

from ul_tokenizer.cli.help import Group, example
from ul_tokenizer.training.command import DESCRIPTIONS, Target, run_command
from ul_tokenizer.training.recipes import describe_recipes

app = typer.Typer(
    name="train",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
# The training's own parser reads all words, because it knows the YAML file and every flag in two spellings.
_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True}


def _list_recipes(wanted: bool) -> None:
    if wanted:
        typer.echo(describe_recipes())
        raise typer.Exit


@app.callback(epilog=example("train autoencoder --config ul-photo-f8 --train_data_dir photos/"))
def _root(
    list_recipes: Annotated[
        bool,
        typer.Option("--list-recipes", callback=_list_recipes, is_eager=True, help="List the recipes for --config."),
    ] = False,
) -> None:
    """Train an autoencoder or a base model, or distil a decoder.

    Each command explains its own arguments with --help. Flags can be written in snake_case or in kebab-case. To train
    in several processes, start `accelerate launch -m ul_tokenizer.train` or `torchrun -m ul_tokenizer.train` instead of
    `ul-tokenizer train`.
    """


def _register(target: Target) -> None:
    @app.command(target, help=DESCRIPTIONS[target], context_settings=_PASS_ON, add_help_option=False)
    def train(context: typer.Context) -> None:
        raise typer.Exit(run_command(target, context.args, context.command_path))


_register("autoencoder")
_register("base")
_register("distill")
