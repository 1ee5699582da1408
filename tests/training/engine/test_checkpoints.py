"""Checkpoints are written while the training goes on, whole or not at all, in as many files as they need."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ul_tokenizer.training.engine import saved
from ul_tokenizer.training.engine.checkpoints import Snapshot, list_checkpoints
from ul_tokenizer.training.engine.lock import NAME, OutputLock
from ul_tokenizer.training.engine.steps import Stepper

Train = Callable[..., int]
Logged = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, Tensor]]


# ---------------------------------------------------------------- in the background


def test_steps_are_made_while_a_checkpoint_is_written_and_it_holds_the_weights_of_its_step(
    train: Train, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tmp_path / "waiting", max_train_steps=4, checkpointing_steps=2, async_checkpoints=False) == 0
    step_3, write, step = threading.Event(), Snapshot.write, Stepper.step

    def wait_for_step_3(snapshot: Snapshot, folder: Path) -> None:
        assert step_3.wait(60), "the training waits for its checkpoint"
        write(snapshot, folder)

    def tell(steps: Stepper, number: int, batches: Any) -> Any:
        result = step(steps, number, batches)
        if number == 2:
            step_3.set()
        return result

    monkeypatch.setattr(Snapshot, "write", wait_for_step_3)
    monkeypatch.setattr(Stepper, "step", tell)
    assert train(tmp_path / "going-on", max_train_steps=4, checkpointing_steps=2) == 0
    for name in ("checkpoint-2", "checkpoint-4"):
        mine, theirs = weights(tmp_path / "going-on" / name), weights(tmp_path / "waiting" / name)
        assert mine.keys() == theirs.keys()
        assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []


KILLED = """
import os, signal, sys
from pathlib import Path
from ul_tokenizer.training.command import run_command
from ul_tokenizer.training.engine.saved import SavedModel
kept = SavedModel.write
def write(model, folder):
    kept(model, folder)
    if "checkpoint-2" in str(folder):
        os.kill(os.getpid(), signal.SIGKILL)
SavedModel.write = write
sys.exit(run_command("autoencoder"))
"""


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(
    start: Callable[..., subprocess.Popen[str]], train: Train, weights: Weights, tmp_path: Path
) -> None:
    run = {"max_train_steps": 3, "checkpointing_steps": 1}
    process = start(tmp_path / "killed", code=KILLED, **run)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == -signal.SIGKILL, output
    assert [path.name for path in list_checkpoints(tmp_path / "killed")] == ["checkpoint-1"]
    assert (tmp_path / "killed" / "tmp-checkpoint-2").is_dir() and (tmp_path / "killed" / NAME).is_file()
    assert train(tmp_path / "killed", **run, resume_from_checkpoint="latest") == 0
    assert train(tmp_path / "whole", **run) == 0
    mine, theirs = (weights(tmp_path / name / "checkpoint-3") for name in ("killed", "whole"))
    assert [key for key in theirs if not torch.equal(mine[key], theirs[key])] == []
    assert not list((tmp_path / "killed").glob("tmp-*")) and not (tmp_path / "killed" / NAME).exists()


# ---------------------------------------------------------------- several files


def test_a_run_resumes_from_weights_in_several_files(
    train: Train, logged: Logged, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tmp_path / "one-file", max_train_steps=2) == 0
    monkeypatch.setattr(saved, "MAX_SHARD_SIZE", "50KB")
    run = {"checkpointing_steps": 1, "resume_from_checkpoint": "latest"}
    assert train(tmp_path / "several", **run, max_train_steps=1) == 0
    for name in ("autoencoder", "autoencoder_ema", "prior"):
        assert len(list((tmp_path / "several" / "checkpoint-1" / name).glob("*.safetensors"))) > 1
    assert train(tmp_path / "several", **run, max_train_steps=2) == 0
    assert logged(tmp_path / "several")[-2] == logged(tmp_path / "one-file")[-2]
    mine, theirs = (read_all(tmp_path / name / "checkpoint-2") for name in ("several", "one-file"))
    assert mine.keys() == theirs.keys()
    assert [key for key in theirs if not torch.equal(mine[key], theirs[key])] == []


def read_all(checkpoint: Path) -> dict[str, Tensor]:
    names = ("autoencoder", "autoencoder_ema", "prior", "prior_ema")
    return {f"{name}/{key}": value for name in names for key, value in saved.read_weights(checkpoint / name).items()}


def test_a_missing_file_of_several_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "MAX_SHARD_SIZE", "1KB")
    layers = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))
    saved.SavedModel("{}", layers.state_dict()).write(tmp_path / "model")
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 1
    whole = saved.read_weights(tmp_path / "model")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in layers.state_dict().items())
    files[0].unlink()
    with pytest.raises(OSError, match=files[0].name):
        saved.read_weights(tmp_path / "model")


# ---------------------------------------------------------------- a live folder


def test_a_second_run_into_a_live_folder_is_refused_and_a_killed_run_is_not_live(
    start: Callable[..., subprocess.Popen[str]],
    train: Train,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = start(tmp_path, max_train_steps=100_000, checkpointing_steps=5, dataloader_num_workers=1)
    try:
        deadline = time.monotonic() + 120
        while not list_checkpoints(tmp_path):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.05)
        with monkeypatch.context() as patch:
            patch.setattr("ul_tokenizer.training.stage1.Stage1", None)  # the refusal comes before anything is made
            assert train(tmp_path, resume_from_checkpoint="latest") == 1
        (line,) = capfd.readouterr().err.strip().splitlines()
        assert line.startswith(f"error: --output_dir {tmp_path} must be used by one run at a time, but process ")
        assert f" {process.pid} on " in line
    finally:
        process.kill()
        process.communicate()
    last = json.loads((list_checkpoints(tmp_path)[-1] / "trainer_state.json").read_text())["step"]
    assert train(tmp_path, resume_from_checkpoint="latest", max_train_steps=last + 1) == 0
    assert not (tmp_path / NAME).exists()


def test_a_lock_that_was_removed_after_it_was_opened_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ul_tokenizer.training.engine import lock as module

    kept, calls = module._lock, 0

    def lock_late(handle: int, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            path.unlink()  # the run that had the lock ends now
        kept(handle, path)

    monkeypatch.setattr(module, "_lock", lock_late)
    with OutputLock(tmp_path / "run") as lock:
        lock.take()
        lock.take()
        assert calls == 2 and (tmp_path / "run" / NAME).read_text()
    assert not (tmp_path / "run" / NAME).exists()
