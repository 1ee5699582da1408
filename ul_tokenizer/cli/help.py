"""How help is shown in 80 columns: options in panels, short words for what they take, and an example at the end."""

from __future__ import annotations

from typing import Any

import typer

# Panels of long lists of options. What every use of a command needs stays in the first one, "Options".
COMPUTATION = "Computation"
IMAGES = "Images"
VIDEOS = "Videos"
CLIPS = "Clips"
SAMPLING = "Sampling"
METRICS = "Metrics"
TABLES = "Tables and hub data sets"
JOBS = "Job arrays"


class Command(typer.core.TyperCommand):
    """A command whose flags take nothing, in place of "<bool>"."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, with `--help` among them."""
        return _without_words(super().get_params(ctx))


class Group(typer.core.TyperGroup):
    """A group of commands, with the same flags."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, with `--help` among them."""
        return _without_words(super().get_params(ctx))


def _without_words(params: list[Any]) -> list[Any]:
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


def example(words: str) -> str:
    """The end of a command's help: an example on a line of its own, so that 80 columns hold it whole."""
    return f"Example:\n\nul-tokenizer {words}"
