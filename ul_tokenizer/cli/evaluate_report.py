"""The command `evaluate report`: a page, a table and plots from result files. It needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ul_tokenizer.cli.flags import in_flags
from ul_tokenizer.cli.options import Force
from ul_tokenizer.cli.reporting import require

Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILES", help="Result files of `evaluate`, or folders with them.", show_default=False),
]
Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Folder for the report: a new one, or with --force that of an earlier report.",
    ),
]
Family = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=PATTERN",
        help="Models that differ in their rate, such as ul-photo-f8=ul-photo-f8-*: plots of rate against distortion "
        "join them to one line of this name. May be repeated, also with the same name.",
        show_default="no families",
    ),
]


def report(files: Files, output: Output, family: Family = None, force: Force = False) -> None:
    """Make a report from result files: report.md, results.csv, plots and pictures.

    Results of the same protocol share a section. It has the full protocol, all figures with their intervals, and every
    distance beside its floor. Plots show rate against distortion and distances against steps; they need matplotlib. The
    same files give the same report.
    """
    from ul_tokenizer.evaluation.report.page import PAGE, check_folder, counted, make_report, write_report
    from ul_tokenizer.evaluation.results import read_results

    check_folder(output, force)
    with in_flags(["families"], {"families": "--family"}):
        made = make_report(read_results(files), _families(family or []))
    write_report(made, output, force)
    if made.without_plots:
        typer.echo(made.without_plots, err=True)
    typer.echo(f"{output / PAGE}: {counted(made.results, 'result')}, {counted(made.sections, 'protocol')}")


def _families(words: Sequence[str]) -> dict[str, list[str]]:
    """Patterns of each family's members."""
    families: dict[str, list[str]] = {}
    for word in words:
        name, _, pattern = word.partition("=")
        require(bool(name and pattern), f"--family must be NAME=PATTERN, got {word!r}.")
        families.setdefault(name, []).append(pattern)
    return families
