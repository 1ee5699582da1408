"""The notebooks run from top to bottom offline, and are shipped with the output of the code that they show."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
TOOL = SimpleNamespace(**runpy.run_path(str(FOLDER / "execute.py")))


def shipped(name: str) -> Any:
    return nbformat.read(FOLDER / name, as_version=4)


def kinds(cell: Any) -> set[str]:
    """What a cell shows: text, pictures or an error."""
    types = {"stream" if output.output_type == "stream" else output.output_type for output in cell.outputs}
    pictures = {"picture" for output in cell.outputs for kind in output.get("data", {}) if kind.startswith("image/")}
    return types | pictures


def figures(notebook: Any, pattern: str) -> list[float]:
    """The numbers that a pattern finds in the printed output."""
    printed = "".join(output.get("text", "") for cell in TOOL.code_cells(notebook) for output in cell.outputs)
    return [float(number) for number in re.findall(pattern, printed)]


def check_that_training_helped(name: str, notebook: Any) -> None:
    if name == "train-on-your-own-folder.ipynb":
        before, after = figures(notebook, r"([\d.]+) dB and")
        assert after > before + 1
    if name == "latents-for-your-generator.ipynb":
        before, after = figures(notebook, r"samples (?:before|after) training: +(\d+)%")
        assert before < 35 and after > 70


def test_there_are_four_notebooks_and_each_links_only_to_files_that_exist() -> None:
    assert len(NOTEBOOKS) == 4
    for name in NOTEBOOKS:
        nbformat.validate(shipped(name))
        texts = [cell.source for cell in shipped(name).cells if cell.cell_type == "markdown"]
        links = [link.split(")")[0] for text in texts for link in text.split("](")[1:]]
        assert [link for link in links if not (FOLDER / link).exists()] == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_shipped_with_the_output_of_its_code_and_of_the_bundled_weights(name: str) -> None:
    notebook = shipped(name)
    assert notebook.metadata.get("executed") == TOOL.facts(notebook), "run `make notebooks`"
    cells = TOOL.code_cells(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    shown = set().union(*(kinds(cell) for cell in cells))
    assert "error" not in shown and {"stream", "picture"} <= shown
    assert (FOLDER / name).stat().st_size < 1_000_000
    check_that_training_helped(name, notebook)


def test_other_code_or_other_weights_make_a_notebook_out_of_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = shipped("first-steps.ipynb")
    before = TOOL.facts(notebook)
    assert set(before["weights"]) == {"ul-fashion", "ul-photo-f8"}
    manifest = tmp_path / "manifest.json"
    manifest.write_text(TOOL.MANIFEST.read_text(encoding="utf-8").replace('config.json": "', 'config.json": "0'))
    monkeypatch.setitem(TOOL.facts.__globals__, "MANIFEST", manifest)
    assert TOOL.facts(notebook) != before
    monkeypatch.undo()
    TOOL.code_cells(notebook)[0].source += "\n"
    assert TOOL.facts(notebook)["code"] != before["code"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_offline_from_top_to_bottom_and_shows_what_the_shipped_one_shows(name: str) -> None:
    executed, source = TOOL.execute(FOLDER / name), shipped(name)
    assert [cell.source for cell in executed.cells] == [cell.source for cell in source.cells]
    assert [kinds(cell) for cell in TOOL.code_cells(executed)] == [kinds(cell) for cell in TOOL.code_cells(source)]
    check_that_training_helped(name, executed)


def test_a_notebook_whose_cell_fails_is_left_as_it_was(tmp_path: Path) -> None:
    script = FOLDER / "execute.py"
    path = tmp_path / "examples" / "notebooks" / "broken.ipynb"
    path.parent.mkdir(parents=True)
    (tmp_path / "examples" / "images").mkdir()
    (path.parent / "execute.py").write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    cell = nbformat.v4.new_code_cell("raise ArithmeticError('no luck')")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, path.parent / "execute.py"], capture_output=True, text=True)
    assert done.returncode != 0 and "no luck" in done.stderr
    assert path.read_bytes() == before
