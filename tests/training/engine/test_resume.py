"""Resuming is exact: a stopped run goes on as if it had not been stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ul_tokenizer.training.engine.checkpoints import find_checkpoint, list_checkpoints

Train = Callable[..., int]
Logged = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, Tensor]]

# The means over 3 steps are half made when the checkpoint of step 4 is written.
HARD = {
    "max_train_steps": 8,
    "checkpointing_steps": 4,
    "logging_steps": 3,
    "validation_steps": 5,
    "gradient_accumulation_steps": 2,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "autoencoder_config": {"dropout": 0.2},
    "prior_config": {"dropout": 0.2},
    "prior_min_hold_steps": 0,
    "prior_hold_gap_db": -100.0,
    "prior_ramp_steps": 6,
    "ema_decay": "0.999,0.5",
    "ema_std": "0.1",
    "resume_from_checkpoint": "latest",
}


@pytest.fixture(scope="module")
def finished(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped; there was no checkpoint that 'latest' could have meant."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert train(folder, **HARD) == 0
    return folder


def copy_until_step_4(finished: Path, folder: Path) -> Path:
    """What a run leaves that is killed between the checkpoints of steps 4 and 8; its log is ahead."""
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoint-8")
    return folder


def assert_equal_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_logs_the_same_losses_and_ends_with_the_same_bits(
    train: Train, logged: Logged, weights: Weights, finished: Path, tmp_path: Path, workers: int
) -> None:
    folder = copy_until_step_4(finished, tmp_path / "run")
    assert train(folder, **HARD, dataloader_num_workers=workers) == 0
    assert logged(folder) == logged(finished)
    assert_equal_bits(weights(folder / "checkpoint-8"), weights(finished / "checkpoint-8"))
    assert_equal_bits(weights(folder), weights(finished))
    states = [json.loads((f / "checkpoint-8" / "trainer_state.json").read_text()) for f in (folder, finished)]
    assert states[0] == states[1]


def test_the_comparison_of_resumed_runs_can_fail(
    train: Train, logged: Logged, weights: Weights, finished: Path, tmp_path: Path
) -> None:
    early, late = (weights(finished / name) for name in ("checkpoint-4", "checkpoint-8"))
    assert all(not torch.equal(early[name], late[name]) for name in early if name.endswith("weight"))
    assert train(tmp_path / "other", **HARD, seed=1) == 0
    assert logged(tmp_path / "other") != logged(finished)


def test_log_lines_past_the_checkpoint_and_half_lines_are_dropped(train: Train, finished: Path, tmp_path: Path) -> None:
    folder = copy_until_step_4(finished, tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "loss": 1.0}\n{"step": 1')
    assert train(folder, **HARD) == 0
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [3, 5, 6, 8, 8]


def test_latest_is_nothing_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "tmp-checkpoint-5").mkdir()
    (tmp_path / "checkpoint-last").mkdir()
    assert find_checkpoint(tmp_path, "latest") is None


def test_checkpoints_are_ordered_by_step_and_not_by_name(tmp_path: Path) -> None:
    for step in (1000, 500, 9999, 10000):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)][-2:] == ["checkpoint-9999", "checkpoint-10000"]


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"train_batch_size": 4}, "batch size"),
        ({"seed": 1}, "seed"),
        ({"train_only": "decoder"}, "optimizer"),
        ({"autoencoder_config": {"latent_channels": 8}, "prior_config": {"in_channels": 8}}, "latent"),
        ({"resume_from_checkpoint": "nowhere"}, "--resume_from_checkpoint"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_with_one_sentence(
    train: Train, finished: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], word: str
) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    assert train(finished, **{**HARD, **changes}) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and word in error
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_damaged_checkpoint_is_one_sentence(
    train: Train, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = copy_until_step_4(finished, tmp_path / "run")
    path = folder / "checkpoint-4" / "optimizer.bin"
    path.write_bytes(path.read_bytes()[:1000])
    assert train(folder, **HARD) == 1
    assert "checkpoint-4 doesn't fit this run or is damaged" in capfd.readouterr().err.strip().splitlines()[-1]


def test_a_new_run_does_not_start_in_the_folder_of_another(
    train: Train, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(finished.rglob("*"))
    assert train(finished, **{**HARD, "resume_from_checkpoint": finished / "checkpoint-4"}) == 1
    assert train(finished) == 1
    assert capfd.readouterr().err.count("holds checkpoint-8") == 2
    assert sorted(finished.rglob("*")) == before


def test_a_finished_run_that_is_run_again_changes_nothing(
    train: Train, weights: Weights, logged: Logged, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    assert train(tmp_path / "run", **HARD) == 0
    assert logged(tmp_path / "run") == logged(finished)
    assert_equal_bits(weights(tmp_path / "run"), weights(finished))


def test_what_a_killed_run_left_half_written_is_removed(train: Train, tmp_path: Path) -> None:
    mine = tmp_path / "run" / "tmp-of-mine"
    unfinished = tmp_path / "run" / "tmp-checkpoint-7"
    for folder in (mine, unfinished):
        folder.mkdir(parents=True)
    assert train(tmp_path / "run", resume_from_checkpoint="latest") == 0
    assert mine.exists() and not unfinished.exists()


def test_arguments_win_over_what_the_checkpoint_remembers(
    train: Train, logged: Logged, finished: Path, tmp_path: Path
) -> None:
    folder = copy_until_step_4(finished, tmp_path / "run")
    changes = {"learning_rate": 0.5, "lr_scheduler": "constant", "adam_beta1": 0.5}
    assert train(folder, **{**HARD, **changes}) == 0
    assert [line["learning_rate"] for line in logged(folder) if "loss" in line][1:] == [0.5, 0.5]
    groups = torch.load(folder / "checkpoint-8" / "optimizer.bin", weights_only=True)["param_groups"]
    assert groups[0]["betas"] == (0.5, 0.99)


def test_the_limit_keeps_the_newest_checkpoints(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path, max_train_steps=5, checkpointing_steps=1, checkpoints_total_limit=2) == 0
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-5"]
