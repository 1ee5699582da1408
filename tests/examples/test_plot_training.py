"""`examples/plot_training.py`: runs one after the other, bundled models, and panels for what was logged."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from examples.plot_training import draw_runs, read_runs
from ul_tokenizer.evaluation.report.style import DARK, LIGHT

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "ul_tokenizer" / "pretrained" / "ul-photo-f8"


def run(folder: Path, *names: str) -> Path:
    folder.mkdir()
    rows = [{"step": step, **{name: 1.0 / step for name in names}} for step in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_steps_of_a_later_phase_follow_those_of_the_earlier_one(tmp_path: Path) -> None:
    series, borders = read_runs([run(tmp_path / "a", "prior_weight"), run(tmp_path / "b", "prior_weight")])
    assert [step for step, _ in series["prior_weight"]] == [10, 20, 30, 40]
    assert borders == [20]


def test_a_bundled_model_has_its_curve_without_its_run() -> None:
    series, borders = read_runs([PHOTO])
    assert borders == []
    assert len(series["validation/psnr_1_step"]) > 10 and len(series["decoder_loss_bits_per_pixel"]) > 100


def test_there_is_a_panel_only_for_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    few = run(tmp_path / "few", "validation/flicker")
    many = run(tmp_path / "many", "validation/flicker", "validation/loss", "validation/bits_per_pixel")
    heights = [Image.open(io.BytesIO(draw_runs([folder]))).height for folder in (few, many)]
    assert heights[1] > 1.5 * heights[0]


def test_curves_are_drawn_for_light_and_for_dark_pages() -> None:
    pytest.importorskip("matplotlib")
    light, dark = (Image.open(io.BytesIO(draw_runs([PHOTO], theme))).convert("RGB") for theme in (LIGHT, DARK))
    assert light.size == dark.size
    assert light.getpixel((0, 0)) == (255, 255, 255) and dark.getpixel((0, 0)) == (13, 17, 23)
