"""Bundling: a pipeline with a text encoder of its own becomes a bundled model that loads as it was, in less space."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ul_tokenizer import UnifiedLatentsPipeline, pretrained
from ul_tokenizer.models.presets import build_base
from ul_tokenizer.models.repository import load_autoencoder
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler
from ul_tokenizer.training.fresh_text import build_text_model, full_config, make_tokenizer


@pytest.fixture
def pipeline(repository: Path, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    transformer = build_base("ul-base-tiny", {"cross_attention_dim": 16, "sample_size": 2})
    tokenizer = make_tokenizer(["a red apple", "a green pear"], 100)
    tokenizer.model_max_length = 8
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 8}
    encoder = build_text_model(full_config(sizes, len(tokenizer)))
    parts = (transformer, LogSNRScheduler(), load_autoencoder(str(repository)), encoder, tokenizer)
    UnifiedLatentsPipeline(*parts).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_the_text_encoder_is_bundled_with_its_tokenizer(
    repository: Path,
    pipeline: Path,
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "bundled").mkdir()
    monkeypatch.setattr(pretrained, "ROOT", tmp_path / "bundled")
    script("bundle_weights").bundle(pipeline, "small", torch.float16, autoencoder=repository)
    file = "text_encoder/model.safetensors"
    assert (tmp_path / "bundled" / "small" / file).stat().st_size < 0.8 * (pipeline / file).stat().st_size
    bundled, original = (
        UnifiedLatentsPipeline.from_pretrained(path) for path in (tmp_path / "bundled/small", pipeline)
    )
    assert {weight.dtype for weight in bundled.text_encoder.parameters()} == {torch.float32}
    states, mask = bundled.encode_prompt(["a red apple"])
    expected, expected_mask = original.encode_prompt(["a red apple"])
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(states, expected, rtol=1e-2, atol=1e-2)
    bundled.set_progress_bar_config(disable=True)
    options: Any = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "pt", "return_dict": False}
    (images,) = bundled(prompt="red pear", **options)
    assert images.shape == (1, 3, 16, 16) and images.isfinite().all()


def test_the_record_of_a_training_says_what_its_phases_cost(
    repository: Path, script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "ROOT", tmp_path / "bundled")
    (tmp_path / "bundled").mkdir()
    runs = [tmp_path / "first", tmp_path / "second"]
    for run, rate in zip(runs, (8.0, 4.0), strict=True):
        shutil.copytree(repository, run)
        (run / "config.yaml").write_text(f"train_batch_size: 4\nmax_train_steps: 20\noutput_dir: {run}\n")
        (run / "metrics.jsonl").write_text(json.dumps({"step": 20, "loss": 1.0, "images_per_second": rate}) + "\n")
    words = [str(runs[1]), "small", "--earlier", str(runs[0]), "--machine", "a machine", "--watts", "90"]
    assert script("bundle_weights").main(words) == 0
    made = json.loads((tmp_path / "bundled" / "small" / "training_phases.json").read_text())
    assert [phase["seconds"] for phase in made["phases"]] == [10.0, 20.0]
    assert (made["machine"], made["hours"], made["kwh"]) == ("a machine", 30 / 3600, pytest.approx(30 / 3600 * 0.09))
    assert "output_dir" not in (tmp_path / "bundled" / "small" / "training-phase-1.yaml").read_text()
