"""Measured results: a report for each folder in benchmarks/results, and a check of what documents quote."""

from __future__ import annotations

import json
from pathlib import Path

import quote_figures

from ul_tokenizer.evaluation.report.page import PAGE, make_report
from ul_tokenizer.evaluation.results import FORMAT, read_results

RESULTS = quote_figures.RESULTS
TITLES = {"photos": "Photographs", "clips": "Videos", "demo": "The demo's pictures", "models": "Bundled models"}


def wrong_figures(root: Path) -> list[str]:
    """A sentence for each quoted figure whose file is missing, has no such value or has another one."""
    quotes = quote_figures.Quotes(root)
    try:
        for document in quotes.documents():
            quotes.renewed(document)
    except ValueError as error:
        return [str(error)]
    return [*quotes.errors, *quotes.differences]


def page_uris(root: Path) -> dict[str, str]:
    """Title → the page with the report on a folder of results."""
    return {TITLES.get(folder.name, folder.name): f"results/{folder.name}/index.md" for folder in _folders(root)}


def pages(root: Path) -> dict[str, str | bytes]:
    """The pages of all reports, and the plots that they show.

    Raises:
        ValueError: a file is no result.
    """
    made: dict[str, str | bytes] = {}
    for (title, uri), folder in zip(page_uris(root).items(), _folders(root), strict=True):
        report = make_report(read_results([folder]))
        for name, content in report.files.items():
            made[f"results/{folder.name}/{name}"] = content
        page = made.pop(f"results/{folder.name}/{PAGE}")
        assert isinstance(page, bytes)
        made[uri] = page.decode().replace("# Evaluation", f"# {title}", 1)
    return made


def _folders(root: Path) -> list[Path]:
    """Folders with results of `ul-tokenizer evaluate`."""
    return [folder for folder in sorted((root / RESULTS).iterdir()) if any(map(_is_result, folder.glob("*.json")))]


def _is_result(path: Path) -> bool:
    content = json.loads(path.read_text(encoding="utf-8"))
    return isinstance(content, dict) and content.get("format") == FORMAT
