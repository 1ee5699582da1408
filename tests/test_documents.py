"""What README, CONTRIBUTING, notes and concepts name exists; tests/test_readme.py runs what README shows."""

from __future__ import annotations

import pkgutil
import re
import runpy
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer

from ul_tokenizer.training.recipes import recipe_names

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
FOLDERS = ("docs/concepts", "docs/notes")
PAGES = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", text_of("Makefile"), re.MULTILINE))


def make_commands(text: str) -> set[str]:
    """Targets of `make` in code: inline after a backtick, or at the start of a line."""
    return set(re.findall(r"(?:^|`|&& )make ([a-z][\w-]*)", text, re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_in_a_document_exists(document: str) -> None:
    named = make_commands(text_of(document))
    assert {"test"} <= named <= make_targets()


def test_every_make_target_is_explained_by_make_help() -> None:
    assert set(re.findall(r"^([a-z-]+):[^#\n]*## \S", text_of("Makefile"), re.MULTILINE)) == make_targets()


@pytest.mark.parametrize("document", [*DOCUMENTS, *PAGES, "Makefile"])
def test_every_path_in_a_document_exists(document: str) -> None:
    rooms = "examples|tests|ul_tokenizer|benchmarks|conversion|docs|\\.ci"
    paths = re.findall(rf"(?<![\w./])(?:{rooms})/[\w./-]*\w", text_of(document))
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if "concepts" in page])
def test_every_name_that_a_concept_links_in_the_reference_exists(page: str) -> None:
    names = re.findall(r"\]\[(ul_tokenizer[\w.]+)\]", text_of(page))
    assert names
    for name in names:
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_links_exists(page: str) -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text_of(page)) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("palette", ["light", "dark"])
@pytest.mark.parametrize("figure", ["three-networks", "decoder-weight"])
def test_the_figures_of_the_concepts_are_what_their_script_draws(figure: str, palette: str) -> None:
    script = runpy.run_path(str(ROOT / "docs" / "figures" / "concepts.py"))
    drawn = script["FIGURES"][figure](script["PALETTES"][palette])
    assert drawn == text_of(f"docs/figures/{figure}-{palette}.svg")
    assert ElementTree.fromstring(drawn).tag.endswith("svg")


def test_every_subcommand_in_the_readme_exists() -> None:
    named = set(re.findall(r"^ul-tokenizer ([a-z]+)", text_of("README.md"), re.MULTILINE))
    assert named
    assert named <= set(getattr(typer.main.get_command(import_module("ul_tokenizer.cli").app), "commands", {}))


def test_every_recipe_in_a_document_exists() -> None:
    texts = [text_of(document) for document in (*DOCUMENTS, "Makefile")]
    named = {name for text in texts for name in re.findall(r"--config (ul-[\w-]+)", text)}
    assert named and named <= set(recipe_names())
