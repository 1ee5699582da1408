"""What `mkdocs build` does beyond turning pages into HTML; mkdocs.yml names this file.

Pages that would repeat something are made at build time: the cards of the bundled models, reports on measured results,
notebooks, the command line, the keys of the trainings, and each file of the repository that a page links. A figure
that its file does not have, and a public name without documentation, end the build.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [folder for folder in (str(ROOT), str(ROOT / "benchmarks")) if folder not in sys.path]

from docs.hooks import (  # noqa: E402
    cards,
    command_line,
    formulas,
    notebooks,
    public_names,
    reports,
    source_pages,
    training_keys,
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages that are made for each model, each report and each notebook, and the notes, to the navigation."""
    notes = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs" / "notes").glob("*.md"))
    more: dict[str, list[dict[str, Any]]] = {
        "Get started": [{"Notebooks": notebooks.page_uris(ROOT)}],
        "Models": [{name: uri} for name, uri in cards.page_uris(ROOT).items()],
        "Results": [{title: uri} for title, uri in reports.page_uris(ROOT).items()],
        "Reference": [{"Laboratory notes": notes}],
    }
    for entry in config.nav or []:
        for title, pages in entry.items():
            pages += [page for page in more.get(title, []) if all(page.values())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made.

    Raises:
        PluginError: a document quotes a figure that the measured files do not have, or a public name lacks its
            documentation.
    """
    problems = reports.wrong_figures(ROOT)
    if problems:
        raise PluginError("\n".join(problems))
    made = {
        **cards.pages(ROOT),
        **notebooks.pages(ROOT),
        **reports.pages(ROOT),
        "reference/command-line.md": command_line.page(),
        "reference/training-arguments.md": training_keys.page(),
    }
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    pages = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for uri, content in source_pages.pages(ROOT, pages).items():
        files.append(File.generated(config, uri, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    problems = public_names.problems(ROOT, "\n".join(pages.values()))
    if problems:
        raise PluginError("\n".join(problems))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in the table of models, and points links to files outside of `docs/` at the pages that show them."""
    markdown = markdown.replace(cards.TABLE_MARK, cards.table(ROOT))
    return source_pages.relinked(markdown, page.file.src_uri, ROOT)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns LaTeX into MathML.

    Raises:
        PluginError: a formula is no LaTeX.
    """
    try:
        return formulas.rendered(html)
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from None
