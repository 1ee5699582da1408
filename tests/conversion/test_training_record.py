"""What the phases of a training were and cost is read from its logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from ul_tokenizer import pretrained
from ul_tokenizer.pretrained import bundled_names

FIRST: dict[str, Any] = {
    "train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "max_train_steps": 100,
    "resolution": 32,
    "loss_factor": 1.7,
    "decoder_bias": 6.0,
}
SECOND: dict[str, Any] = {**FIRST, "resolution": 64, "train_only": "prior", "gradient_accumulation_steps": 1}
# 16 samples a step: 50 steps at 80/s take 10 s, 50 at 160/s take 5 s; then 8 a step: 40 steps at 32/s take 10 s.
ROWS = [
    {"step": 50, "loss": 1.0, "images_per_second": 80.0},
    {"step": 60, "validation/psnr_1_step": 20.0},
    {"step": 100, "loss": 0.9, "images_per_second": 160.0},
    {"step": 130, "loss": 0.8, "images_per_second": 32.0},
    {"step": 140, "validation/psnr_1_step": 21.0},
]


@pytest.fixture
def module(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("training_record")


def test_seconds_and_samples_of_each_phase_come_from_the_logged_rates(module: ModuleType) -> None:
    made = module.record([FIRST, SECOND], ROWS, "a machine", 60.0)
    first, second = made["phases"]
    assert (first["steps"], first["samples"], first["seconds"]) == (100, 1600, pytest.approx(15))
    assert (second["steps"], second["samples"], second["seconds"]) == (40, 320, pytest.approx(10))  # it was stopped
    assert made["hours"] == pytest.approx(25 / 3600)
    assert made["kwh"] == pytest.approx(25 / 3600 * 0.06)
    assert module.record([FIRST], ROWS[:3])["kwh"] is None


def test_a_phase_says_what_it_trained_and_at_which_rate(module: ModuleType) -> None:
    base = {"base_config": {}, "sigmoid_bias": 2.5, "max_train_steps": 100, "train_batch_size": 8}
    student = {"teacher_inference_steps": 8, "max_train_steps": 100, "train_batch_size": 8}
    first, second = module.record([FIRST, SECOND], ROWS)["phases"]
    assert (first["what"], first["loss_factor"], first["bias"]) == ("autoencoder and prior", 1.7, 6.0)
    assert (second["what"], second["loss_factor"], second["bias"]) == ("prior alone", None, None)
    for config, stage, bias in ((base, "base", 2.5), (student, "distill", None)):
        (phase,) = module.record([config], ROWS[:3])["phases"]
        assert (phase["stage"], phase["bias"]) == (stage, bias)


def test_a_phase_without_rates_or_steps_is_refused_in_a_sentence(module: ModuleType) -> None:
    with pytest.raises(ValueError, match="the log must have rates of the steps from 100 to 140, got none"):
        module.record([FIRST, SECOND], [*ROWS[:3], ROWS[4]])
    with pytest.raises(ValueError, match="each phase but the last must have max_train_steps"):
        module.record([{**FIRST, "max_train_steps": None}, SECOND], ROWS)


def test_the_machine_is_kept_when_the_record_is_written_anew(module: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold training-phase-1\.yaml and training_curve\.json"):
        module.write_record(tmp_path, None, None, None)
    (tmp_path / "training-phase-1.yaml").write_text(yaml.safe_dump(FIRST))
    curve = {"training": [row for row in ROWS if "loss" in row], "validation": [ROWS[1], ROWS[4]]}
    (tmp_path / "training_curve.json").write_text(json.dumps(curve))
    made = module.write_record(tmp_path, None, "a machine", 60.0)
    assert made == json.loads((tmp_path / "training_phases.json").read_text())
    assert module.write_record(tmp_path, None, None, None) == made


@pytest.mark.parametrize("name", bundled_names())
def test_the_bundled_models_have_the_record_of_their_kept_logs(name: str, module: ModuleType, tmp_path: Path) -> None:
    kept = json.loads((pretrained.ROOT / name / "training_phases.json").read_text(encoding="utf-8"))
    for path in (pretrained.ROOT / name).glob("training*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    again = module.write_record(tmp_path, None, None, None)
    assert again["machine"] == kept["machine"] and again["watts"] == kept["watts"]
    assert again["hours"] == pytest.approx(kept["hours"], rel=0.03)  # kept curves have only some of the lines
    assert [phase["samples"] for phase in again["phases"]] == [phase["samples"] for phase in kept["phases"]]
