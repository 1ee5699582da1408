"""The site: it builds in strict mode and needs nothing from elsewhere; what must end the build does so, by name."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from docs.hooks import (
    cards,
    command_line,
    formulas,
    notebooks,
    public_names,
    reports,
    source_pages,
    training_keys,
)
from tests import golden_help
from ul_tokenizer.pretrained import bundled_names
from ul_tokenizer.training.command import ARGUMENTS

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("CHANGELOG.md", "CONTRIBUTING.md", "MODEL_CARD.md", "README.md", "conversion", "examples", "ul_tokenizer")


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    # Not --quiet, which also stops warnings from being counted.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    path = os.pathsep.join([str(ROOT), *sys.path])
    return subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository with documents and results of its own, to be damaged."""
    root = tmp_path / "repository"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "docs", root / "docs", ignore=ignored)
    shutil.copytree(ROOT / "benchmarks", root / "benchmarks", ignore=ignored)
    shutil.copy(ROOT / "mkdocs.yml", root)
    for name in LINKED:
        (root / name).symlink_to(ROOT / name)
    return root


# ---------------------------------------------------------------- the whole site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages_in_navigation() -> list[str]:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return re.findall(r"^ +- (?:.*: )?([\w/-]+\.md)$", text, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_builds_in_strict_mode_with_all_of_its_pages(site: Path) -> None:
    names = [name.removesuffix(".md").removesuffix("index").rstrip("/") for name in pages_in_navigation()]
    names += [f"models/{name}" for name in bundled_names()] + ["results/photos"]
    assert len(names) > 30
    assert [name for name in names if not (site / name / "index.html").is_file()] == []


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    tag = re.compile(
        r"<(?:script|img|iframe|source|link(?! rel=.?canonical))\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
    )
    found = {page: tag.findall(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert len(found) > 30 and {page: tags for page, tags in found.items() if tags} == {}
    assert tag.search('<script src="https://example.org/x.js">')
    assert not any(re.search(r"url\(['\"]?(?:https?:)?//", path.read_text()) for path in site.rglob("*.css"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_broken_link_and_a_broken_anchor_end_the_build_and_are_named(copy: Path, tmp_path: Path) -> None:
    with (copy / "docs" / "index.md").open("a", encoding="utf-8") as page:
        page.write("\n[one](how-to/nowhere.md) [two](how-to/files.md#nothing) [three](../examples/nothing.py)\n")
    done = build(copy, tmp_path / "site")
    assert done.returncode != 0
    for name in ("how-to/nowhere.md", "nothing", "../examples/nothing.py"):
        assert re.search(rf"index\.md.*{re.escape(name)}", done.stdout + done.stderr)


@pytest.mark.slow
def test_a_missing_result_ends_the_build_and_is_named(copy: Path, tmp_path: Path) -> None:
    (copy / "benchmarks" / "results" / "speed" / "pictures.json").unlink()
    done = build(copy, tmp_path / "site")
    assert done.returncode != 0
    assert "there is no file 'speed/pictures.json'" in done.stdout + done.stderr


# ---------------------------------------------------------------- figures


def test_a_table_that_lacks_one_of_its_results_is_named(copy: Path) -> None:
    assert reports.wrong_figures(copy) == []
    (lost,) = (copy / "benchmarks" / "results" / "photos").glob("avif-60-*.json")
    lost.unlink()
    assert any(
        "photo-codecs" in problem and "docs/results/index.md" in problem for problem in reports.wrong_figures(copy)
    )


def test_every_folder_of_results_has_a_report(copy: Path) -> None:
    (copy / "benchmarks" / "results" / "photos").rename(copy / "benchmarks" / "results" / "pictures")
    assert reports.page_uris(copy)["pictures"] == "results/pictures/index.md"
    page = reports.pages(copy)["results/pictures/index.md"]
    assert isinstance(page, str) and "# pictures\n" in page and "| webp:40 |" in page


# ---------------------------------------------------------------- public names

DOCUMENTED = '''"""A package."""
__all__ = ["f", "C"]
def f(a: int, b: int):
    """Does.

    Args:
        a: one.
        b: two.
    """
class C:
    """A class."""
    def m(self):
        """Does."""
    def _private(self): ...
'''


def problems(folder: Path, source: str, page: str = "::: ul_tokenizer.f\n\n::: ul_tokenizer.C\n") -> list[str]:
    (folder / "ul_tokenizer" / "training").mkdir(parents=True)
    (folder / "ul_tokenizer" / "__init__.py").write_text(source)
    (folder / "ul_tokenizer" / "training" / "__init__.py").write_text("__all__: list[str] = []\n")
    return public_names.problems(folder, page)


def test_every_public_name_is_documented_and_shown() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))
    assert public_names.problems(ROOT, text) == []


def test_a_package_with_everything_documented_has_no_problems(tmp_path: Path) -> None:
    assert problems(tmp_path, DOCUMENTED) == []


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ('"""A class."""', "pass", "ul_tokenizer.C is public"),
        ('"""Does."""\n    def _p', "...\n    def _p", "ul_tokenizer.C.m is public"),
        ("        b: two.\n", "", "ul_tokenizer.f has Args that lack b."),
    ],
)
def test_what_is_public_and_not_documented_is_named(tmp_path: Path, old: str, new: str, name: str) -> None:
    source = DOCUMENTED
    assert old in source
    (problem,) = problems(tmp_path, source.replace(old, new))
    assert problem.startswith(name)


def test_a_public_name_that_no_page_shows_is_named(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, DOCUMENTED, page="::: ul_tokenizer.C\n")
    assert "::: ul_tokenizer.f" in problem


# ---------------------------------------------------------------- pages that are made


def test_the_page_of_the_command_line_has_every_command_and_option() -> None:
    page = command_line.page()
    for words, command in golden_help.commands().items():
        assert f"# {' '.join(words) or 'ul-tokenizer'} {{ #" in page
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else []:
                assert f"`{option}`" in page, (words, option)


def test_the_page_of_keys_has_every_key_of_every_training_once() -> None:
    page = training_keys.page()
    names = {field.name for arguments in ARGUMENTS.values() for field in dataclasses.fields(arguments)}
    assert [name for name in sorted(names) if f"| `{name}` |" not in page] == []
    shared = page.split("## Autoencoder")[0]
    assert shared.count("| `seed` |") == page.count("| `seed` |") == 1
    assert "Number of optimiser steps" in page and "Must be above 0." in page


def test_each_bundled_model_has_a_page_with_its_pictures() -> None:
    made = cards.pages(ROOT)
    assert {f"models/{name}/index.md" for name in bundled_names()} <= set(made)
    assert isinstance(made["models/ul-photo-f8/grid.png"], bytes)
    assert "license:" not in str(made["models/ul-photo-f8/index.md"])[:200]
    assert all(f"[{name}]({name}/index.md) | A" in cards.table(ROOT) for name in bundled_names())


def test_links_to_files_outside_of_docs_lead_to_pages_that_show_them() -> None:
    text = "[a](../../examples/train_autoencoder.py), [b](files.md), [c](../../nowhere.py), [d](../../examples/data)"
    new = source_pages.relinked(text, "how-to/x.md", ROOT)
    assert new.startswith("[a](../source/examples/train_autoencoder.py.md), [b](files.md), [c](../../nowhere.py), ")
    assert new.endswith("[d](../source/examples/data/index.md)")
    made = source_pages.pages(ROOT, {"how-to/x.md": text})
    assert "source/examples/train_autoencoder.py.md" in made and "source/examples/data/emoji.py.md" in made
    assert (ROOT / "examples/train_autoencoder.py").read_text() in made["source/examples/train_autoencoder.py.md"]


def test_a_notebook_becomes_a_page_with_its_outputs_and_links(tmp_path: Path) -> None:
    stream = {"output_type": "stream", "text": ["\x1b[31mloss 1\x1b[0m\n"]}
    picture = {"output_type": "display_data", "data": {"image/png": "aGVsbG8=", "text/plain": ["<Image>"]}}
    cells = [
        {"cell_type": "markdown", "source": ["# First\n", "[a](../../docs/how-to/files.md#x), [b](other.ipynb), "]},
        {"cell_type": "markdown", "source": ["[c](../data/emoji.py), [d](https://e.org)"]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [stream, picture]},
    ]
    (tmp_path / "examples" / "notebooks").mkdir(parents=True)
    (tmp_path / "examples" / "notebooks" / "first.ipynb").write_text(json.dumps({"cells": cells}))
    made = notebooks.pages(tmp_path)
    assert notebooks.page_uris(tmp_path) == ["notebooks/first.md"]
    assert made["notebooks/first-2-1.png"] == b"hello"
    page = made["notebooks/first.md"]
    assert isinstance(page, str) and page.startswith("# First\n[a](../how-to/files.md#x), [b](other.md), \n\n")
    assert "[c](../../examples/data/emoji.py), [d](https://e.org)" in page
    assert page.endswith("```python\nprint(1)\n```\n\n```text\nloss 1\n```\n\n![What the cell shows](first-2-1.png)\n")


# ---------------------------------------------------------------- formulas


def test_latex_becomes_mathml() -> None:
    html = r'<p>so <span class="arithmatex">\(x &lt; \sigma_0\)</span></p><div class="arithmatex">\[\frac{a}{b}\]</div>'
    made = formulas.rendered(html)
    assert made.count("<math") == 2 and "arithmatex" not in made
    assert "<mi>&#x003C3;</mi>" in made and "<mo>&#x0003C;</mo>" in made and "<mfrac>" in made
    assert 'display="block"' in made and 'display="inline"' in made


def test_styled_letters_are_characters_of_their_own_as_browsers_ignore_mathvariant() -> None:
    made = formulas.rendered(r'<span class="arithmatex">\(\mathcal N, \mathbb R, \lVert x \rVert\)</span>')
    assert "<mi>𝒩</mi>" in made and "<mi>ℝ</mi>" in made and "mathvariant" not in made
    assert made.count('<mo stretchy="false">&#x02016;</mo>') == 2


@pytest.mark.parametrize("latex", [r"\nonsense{a}", r"\frac", r"a^"])
def test_a_formula_that_is_no_latex_is_named(latex: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{latex!r} must be LaTeX")):
        formulas.rendered(rf'<span class="arithmatex">\({latex}\)</span>')


def test_the_settings_of_the_site_are_strict() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["font"] is False
    assert set(settings["validation"].values()) == {"warn"}
    assert re.search(r"^docs: .*\n(\t.*\n)*\t.*mkdocs build --strict", (ROOT / "Makefile").read_text(), re.MULTILINE)
