"""The command `evaluate report`: a page, a table and plots from result files. It needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ul_tokenizer.cli.options import Force

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


def report(files: Files, output: Output, force: Force = False) -> None:
    """Make a report from result files: report.md, results.csv, plots and pictures.

    Results of the same protocol share a section. It has the full protocol, all figures with their intervals, and every
    distance beside its floor. Plots show rate against distortion and distances against steps; they need matplotlib. The
    same files give the same report.
    """
    from ul_tokenizer.evaluation.report.page import PAGE, check_folder, counted, make_report, write_report
    from ul_tokenizer.evaluation.results import read_results

    check_folder(output, force)
    made = make_report(read_results(files))
    write_report(made, output, force)
    if made.without_plots:
        typer.echo(made.without_plots, err=True)
    typer.echo(f"{output / PAGE}: {counted(made.results, 'result')}, {counted(made.sections, 'protocol')}")
