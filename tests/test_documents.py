"""What README and CONTRIBUTING tell a reader to type exists; tests/test_readme.py runs what the README shows."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
import typer

from ul_tokenizer.training.recipes import recipe_names

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md")


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


@pytest.mark.parametrize("document", [*DOCUMENTS, "Makefile"])
def test_every_path_in_a_document_exists(document: str) -> None:
    paths = re.findall(r"(?<![\w./])(?:examples|tests|ul_tokenizer|benchmarks|\.ci)/[\w./-]*\w", text_of(document))
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_subcommand_in_the_readme_exists() -> None:
    named = set(re.findall(r"^ul-tokenizer ([a-z]+)", text_of("README.md"), re.MULTILINE))
    assert named
    assert named <= set(getattr(typer.main.get_command(import_module("ul_tokenizer.cli").app), "commands", {}))


def test_every_recipe_in_a_document_exists() -> None:
    texts = [text_of(document) for document in (*DOCUMENTS, "Makefile")]
    named = {name for text in texts for name in re.findall(r"--config (ul-[\w-]+)", text)}
    assert named and named <= set(recipe_names())
