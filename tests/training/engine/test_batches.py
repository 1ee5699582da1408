"""How a step's samples are divided up over processes and micro-batches does not matter."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ul_tokenizer.training.draws.noise import Draws

Train = Callable[..., int]
Logged = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, Tensor]]

# With a large ε, AdamW's step is a smooth function of the gradient: rounding is not blown up where it is near zero.
RUN = {
    "max_train_steps": 4,
    "checkpointing_steps": 2,
    "validation_steps": 2,
    "learning_rate": 1e-2,
    "adam_epsilon": 1e-2,
    "prior_min_hold_steps": 0,
    "prior_hold_gap_db": -100.0,
    "prior_ramp_steps": 4,
}


@pytest.fixture(scope="module")
def one_batch_of_4(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one_batch") / "run"
    assert train(folder, **RUN, train_batch_size=4) == 0
    return folder


def assert_the_same_run(a: Path, b: Path, logged: Logged, weights: Weights) -> None:
    """Losses, gradients, weights, averages and moments agree up to the order of fp32 sums."""
    assert len(logged(a)) == len(logged(b))
    for line, other in zip(logged(a), logged(b), strict=True):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-6)
    mine, theirs = weights(a / "checkpoint-4"), weights(b / "checkpoint-4")
    start = weights(a / "checkpoint-2")
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-6, msg=name)
    moved = [float((mine[name] - start[name]).abs().max()) for name in mine if "conv_out.weight" in name]
    assert min(moved) > 1e-4  # or the comparison would be vacuous


@pytest.mark.parametrize(("processes", "micro_steps", "batch_size"), [(1, 1, 12), (2, 3, 2), (3, 2, 2), (4, 1, 3)])
def test_every_sample_of_a_step_is_drawn_once_and_picks_its_own_value(
    processes: int, micro_steps: int, batch_size: int
) -> None:
    values = torch.arange(60, 72)
    seen: list[int] = []
    for process_index in range(processes):
        accelerator: Any = SimpleNamespace(num_processes=processes, process_index=process_index)
        for micro_step in range(micro_steps):
            draws = Draws.of(5, micro_step, accelerator, batch_size, micro_steps)
            assert draws.of_step == range(60, 72) and len(draws.local) == batch_size
            assert draws.pick(values, torch.device("cpu")).tolist() == list(draws.local)
            seen += draws.local
    assert sorted(seen) == list(range(60, 72))


def test_accumulating_2_batches_of_2_equals_one_batch_of_4(
    train: Train, logged: Logged, weights: Weights, one_batch_of_4: Path, tmp_path: Path
) -> None:
    assert train(tmp_path, **RUN, train_batch_size=2, gradient_accumulation_steps=2) == 0
    assert_the_same_run(tmp_path, one_batch_of_4, logged, weights)


def test_accumulation_may_change_on_resume(
    train: Train, logged: Logged, weights: Weights, one_batch_of_4: Path, tmp_path: Path
) -> None:
    half = {**RUN, "max_train_steps": 3, "checkpointing_steps": 3}
    assert train(tmp_path, **half, train_batch_size=4) == 0
    changes = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "resume_from_checkpoint": "latest"}
    assert train(tmp_path, **{**RUN, **changes}) == 0
    mine, theirs = weights(tmp_path / "checkpoint-4"), weights(one_batch_of_4 / "checkpoint-4")
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.multiprocess
def test_two_processes_equal_one_with_the_same_global_batch(
    start: Callable[..., subprocess.Popen[str]],
    logged: Logged,
    weights: Weights,
    one_batch_of_4: Path,
    tmp_path: Path,
) -> None:
    # `accelerate launch --cpu --num_processes 2` would start one process: on CPUs it leaves that to mpirun.
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    process = start(tmp_path, *torchrun, **RUN, train_batch_size=2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert_the_same_run(tmp_path, one_batch_of_4, logged, weights)
    assert output.count("Trained to step 4") == 1  # only the main process speaks and writes
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    alone = {path.relative_to(one_batch_of_4) for path in one_batch_of_4.rglob("*")}
    assert written == alone
