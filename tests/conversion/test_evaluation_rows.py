"""Results of `evaluate` become the lines from which the tables of a card are made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.evaluation.results_by_hand import autoencoder, generation, write_all
from ul_tokenizer import pretrained


def test_a_line_has_the_figures_and_settings_that_the_tables_read(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = generation("ul-fashion", 32, 4, 12.5)
    del drawn["distances"]["inception"]
    drawn["protocol"]["num_generated"] = 1000
    results = write_all(tmp_path / "results", {"a": drawn, "b": autoencoder("ul-fashion", 4, 0.285, 23.9, 5.6)})
    (tmp_path / "ul-fashion").mkdir()
    monkeypatch.setattr(pretrained, "ROOT", tmp_path)
    assert script("evaluation_rows").main([str(results), "ul-fashion"]) == 0
    lines = (tmp_path / "ul-fashion" / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    one, other = (json.loads(line) for line in lines)
    assert (one["measured"], one["num_images"], one["solver"], one["guidance_scale"]) == (
        "generation",
        1000,
        "ddim",
        2.5,
    )
    assert (one["frechet_distance"], one["ratio"]) == (12.5, pytest.approx(12.5 / 1.2))
    assert (one["accuracy"], one["decode"], one["unconditional"]) == (0.9374, "z0", False)
    assert (other["measured"], other["decoder_num_inference_steps"]) == ("reconstruction", 4)
    assert (other["psnr_of_mean_mse"], other["bits_per_pixel"], other["accuracy"]) == (23.9, 0.285, None)
    old = (Path(__file__).parents[2] / "ul_tokenizer/pretrained/ul-fashion/evaluation.jsonl").read_text().splitlines()
    before = next(row for row in map(json.loads, old) if row["measured"] == "generation")
    assert before.keys() - one.keys() <= {"floor_of_all", "seconds", "images_per_second"}


def test_distances_of_several_networks_are_refused_in_a_sentence(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = generation("ul-fashion", 32, 4, 12.5)
    drawn["protocol"]["num_generated"] = 1000
    assert script("evaluation_rows").main([str(write_all(tmp_path / "r", {"a": drawn})), "ul-fashion"]) == 1
    assert capsys.readouterr().out.startswith("error: results must have distances of one network, got ")
