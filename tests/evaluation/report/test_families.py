"""Models that differ in their rate stand on one line in plots of rate against distortion, if asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.evaluation.results_by_hand import autoencoder, codec, write_all
from ul_tokenizer.cli import app
from ul_tokenizer.evaluation.report import plots
from ul_tokenizer.evaluation.report.style import LIGHT, Theme
from ul_tokenizer.evaluation.results import by_protocol, read_results

RATES = {"low": (0.2, 25.0), "mid": (0.4, 27.0), "high": (0.7, 29.0)}
FAMILIES = {"three rates": ["ul-photo-f8-*"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = {
        f"{name}-{steps}": autoencoder(f"runs/ul-photo-f8-{name}", steps, bits, psnr - steps / 10, 20.0)
        for name, (bits, psnr) in RATES.items()
        for steps in (1, 2)
    }
    made["bundled"] = autoencoder("ul-photo-f8", 1, 0.45, 26.0, 20.0)
    made |= {f"jpeg-{quality}": codec(f"jpeg:{quality}", quality / 40, 20 + quality / 5) for quality in (10, 30)}
    return write_all(tmp_path / "results", made)


def lines(folder: Path, monkeypatch: pytest.MonkeyPatch, families: dict[str, list[str]] | None) -> dict[str, Any]:
    """What a plot draws: label → numbers of bits."""
    from matplotlib.figure import Figure

    drawn: dict[str, list[float]] = {}

    def render(draw: Callable[[Figure, Sequence[Any], Theme], None], **_: Any) -> bytes:
        figure = Figure()
        axes = figure.subplots()
        draw(figure, [axes], LIGHT)
        for line in axes.get_lines():
            drawn[str(line.get_label())] = [float(x) for x in np.asarray(line.get_xdata())]
        return b""

    monkeypatch.setattr(plots, "render", render)
    (section,) = by_protocol(read_results([folder]))
    plots.rate_distortion(section, families)
    return drawn


def test_members_of_a_family_are_joined_by_rate_one_line_for_each_number_of_steps(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = lines(folder, monkeypatch, FAMILIES)
    assert drawn["three rates, 1 step"] == drawn["three rates, 2 steps"] == [0.2, 0.4, 0.7]
    assert drawn["ul-photo-f8"] == [0.45] and drawn["jpeg"] == [0.25, 0.75]
    assert len(drawn) == 4


def test_without_families_each_model_is_a_line_of_its_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = lines(folder, monkeypatch, None)
    assert drawn["runs/ul-photo-f8-low"] == [0.2, 0.2] and len(drawn) == 5


def test_the_command_takes_families_and_refuses_wrong_ones_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    def run(*families: str) -> Any:
        words = ["evaluate", "report", str(folder), "-o", str(tmp_path / "report"), *families]
        return CliRunner().invoke(app, words, env={"COLUMNS": "80", "NO_COLOR": "1"})

    wrong = run("--family", "three rates")
    assert wrong.exit_code != 0 and "--family must be NAME=PATTERN, got 'three rates'." in wrong.stderr
    nothing = run("--family", "x=y-*")
    assert (
        nothing.exit_code == 1 and "--family must have models among the results, got none for x=y-*." in nothing.stderr
    )
    assert run("--family", "three rates=*-low", "--family", "three rates=*-high").exit_code == 0
    assert (tmp_path / "report" / "1-rate-distortion.png").read_bytes().startswith(b"\x89PNG")
