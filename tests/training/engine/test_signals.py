"""Real signals to real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from ul_tokenizer.training.engine.checkpoints import list_checkpoints, step_of
from ul_tokenizer.training.engine.signals import StopSignal
from ul_tokenizer.training.stage1 import Stage1

Start = Callable[..., subprocess.Popen[str]]
STEPS = 600  # more than a process gets done before its signal
RUN = {
    "max_train_steps": STEPS,
    "checkpointing_steps": 7,
    "logging_steps": 1,
    "checkpoints_total_limit": 2,
    "resume_from_checkpoint": "latest",
}


def last_logged(folder: Path) -> int:
    try:
        return int(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    except (OSError, IndexError, ValueError):
        return 0


def newest(folder: Path) -> int:
    return step_of(list_checkpoints(folder)[-1])


def stop_after(process: subprocess.Popen[str], folder: Path, step: int, number: signal.Signals) -> str:
    """Sends a signal once a step was logged; returns what the process printed."""
    deadline = time.monotonic() + 60
    while last_logged(folder) < step:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(number)
    return process.communicate(timeout=60)[0]


@pytest.mark.slow
def test_a_run_that_is_terminated_killed_and_interrupted_ends_as_one_that_was_not(
    start: Start,
    train: Callable[..., int],
    logged: Callable[[Path], list[dict[str, Any]]],
    weights: Callable[[Path], dict[str, Tensor]],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "stopped"
    process = start(folder, **RUN)
    output = stop_after(process, folder, 3, signal.SIGTERM)
    assert process.returncode == 0, output
    saved = newest(folder)
    assert 3 <= saved < STEPS and f"SIGTERM received: saved checkpoint-{saved}" in output
    assert not (folder / "config.json").exists()  # no model is passed off as trained

    process = start(folder, **RUN)
    stop_after(process, folder, saved + 20, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    killed_at = last_logged(folder)
    assert saved < newest(folder) <= killed_at

    process = start(folder, **RUN)
    resumed_at = newest(folder)
    output = stop_after(process, folder, killed_at + 1, signal.SIGINT)
    assert process.returncode == 0 and "Traceback" not in output, output
    assert f"checkpoint-{resumed_at} at step {resumed_at}" in output and "SIGINT received" in output

    last = newest(folder) + 5
    assert train(folder, **{**RUN, "max_train_steps": last}) == 0
    assert train(tmp_path / "not-stopped", **{**RUN, "max_train_steps": last}) == 0
    assert logged(folder) == logged(tmp_path / "not-stopped")
    mine, theirs = (weights(f / f"checkpoint-{last}") for f in (folder, tmp_path / "not-stopped"))
    assert [name for name in theirs if not torch.equal(mine[name], theirs[name])] == []


def test_a_signal_to_the_process_group_leaves_the_loaders_workers_to_the_loop(start: Start, tmp_path: Path) -> None:
    process = start(tmp_path, **RUN, dataloader_num_workers=1, new_group=True)
    deadline = time.monotonic() + 60
    while last_logged(tmp_path) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert f"saved checkpoint-{newest(tmp_path)}" in output


def test_ctrl_c_before_the_first_step_is_clean(
    train: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stage1, "prepare", lambda stage, accelerator: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        assert train(tmp_path) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == "interrupted.\n"


def test_the_handlers_from_before_are_back_after_training(train: Callable[..., int], tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert train(tmp_path) == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_signal_acts_as_before() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with StopSignal() as stop:
            accelerator = Accelerator(cpu=True)
            assert not stop.received(accelerator)
            signal.raise_signal(signal.SIGTERM)
            assert stop.received(accelerator) and stop.name == "SIGTERM" and received == []
            signal.raise_signal(signal.SIGTERM)
            assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
