"""`benchmarks/few_steps.py` on networks of no size: which decoders it measures and what it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import few_steps
import pytest
import torch
from _speed_tasks import QUICK, of_preset

from ul_tokenizer.evaluation.results import read_result
from ul_tokenizer.models.presets import build_autoencoder, build_prior

IMAGES = Path(__file__).resolve().parents[2] / "examples" / "images"
SMALL = ("--resolution", "32", "--crop-size", "16", "-n", "3", "--features", "none", "--side", "32", "--runs", "2")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A student with its teacher and prior."""
    torch.manual_seed(0)
    autoencoder = build_autoencoder("ul-tiny-f8")
    autoencoder.save_pretrained(tmp_path / "model")
    build_prior("ul-tiny-f8").save_pretrained(tmp_path / "model" / "prior")
    for weight in autoencoder.decoder.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    autoencoder.save_pretrained(tmp_path / "model" / "teacher")
    return tmp_path / "model"


def test_teacher_and_student_are_measured_in_their_steps_and_small_and_large_decoders_timed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(few_steps, "QUICK", replace(QUICK, pictures=(of_preset("ul-tiny-f8"),)))
    arguments = [str(IMAGES), "--model", str(model), "-o", str(tmp_path / "out"), "--quick", *SMALL]
    assert few_steps.main(arguments) == 0
    results = [read_result(path) for path in (tmp_path / "out").glob("*step*.json")]
    subjects = [result["subject"] for result in results]
    steps = sorted((str(one["name"]).endswith("-teacher"), one["num_inference_steps"]) for one in subjects)
    assert steps == [(False, 1), (False, 2), (True, 1), (True, 2), (True, 4), (True, 8), (True, 16)]
    assert len({one["weights_sha256"] for one in subjects}) == 2
    assert len({json.dumps(r["metrics"]["bits_per_pixel"]) for r in results}) == 1  # one encoder, one prior
    assert all({"psnr_of_mean_mse", "sharpness"} <= r["metrics"].keys() for r in results)

    times = json.loads((tmp_path / "out" / few_steps.TIMES).read_text())
    own, paper, tiny, kl = times["rows"]
    assert [row["network"] for row in (paper, tiny, kl)] == [
        "ul-tiny-f8, 1 step",
        "AutoencoderTiny",
        "AutoencoderKL, narrow",
    ]
    assert own["parameters"] == paper["parameters"] < tiny["parameters"] and kl["ratio_to_kl"]["median"] == 1
    assert 0 < own["seconds"]["low"] <= own["seconds"]["median"] <= own["seconds"]["high"]
    shown = capsys.readouterr().out
    assert "sharpness" in shown and "of AutoencoderKL's time" in shown

    written = (tmp_path / "out" / few_steps.TIMES).read_bytes()
    assert few_steps.main(arguments) == 0
    assert (tmp_path / "out" / few_steps.TIMES).read_bytes() == written


def test_a_model_without_a_teacher_is_measured_as_one(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "teacher").rename(tmp_path / "elsewhere")
    ((autoencoder, steps),) = few_steps.decoders(str(model), torch.device("cpu"))
    assert steps == few_steps.TEACHER_STEPS and autoencoder.prior is not None
    assert "has no teacher" in capsys.readouterr().out
