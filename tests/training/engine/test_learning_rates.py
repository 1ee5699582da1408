"""Schedules of the learning rate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from ul_tokenizer.training.engine.learning_rates import make_lr_scheduler
from ul_tokenizer.training.stage1_arguments import Stage1Arguments

STEPS, WARMUP = 100, 10
THEIRS = ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]


def make_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)


def rates(name: str, **changes: Any) -> list[float]:
    """The learning rate at each step and after the last one, as a fraction of the highest."""
    args = Stage1Arguments(train_data_dir="x", lr_scheduler=name, lr_warmup_steps=WARMUP, **changes)  # type: ignore[arg-type]
    return run(make_optimizer(), lambda optimizer: make_lr_scheduler(args, optimizer, STEPS))


def run(optimizer: torch.optim.Optimizer, make: Any) -> list[float]:
    scheduler = make(optimizer)
    found = [scheduler.get_last_lr()[0] / 2.0]
    for _ in range(STEPS):
        optimizer.step()
        scheduler.step()
        found.append(scheduler.get_last_lr()[0] / 2.0)
    return found


@pytest.mark.parametrize("name", THEIRS)
def test_schedules_of_diffusers_keep_their_bits(name: str) -> None:
    def make(optimizer: torch.optim.Optimizer) -> Any:
        return get_scheduler(name, optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS)

    assert rates(name) == run(make_optimizer(), make)


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "warmup_stable_decay"])
def test_a_floor_raises_the_fall_and_leaves_the_rise(name: str) -> None:
    plain, raised = rates(name), rates(name, lr_min_ratio=0.25)
    assert raised[: WARMUP + 1] == plain[: WARMUP + 1]
    assert raised[-1] == pytest.approx(0.25, abs=1e-6) and plain[-1] == pytest.approx(0.0, abs=1e-6)
    assert raised[WARMUP:] == pytest.approx([0.25 + 0.75 * rate for rate in plain[WARMUP:]])


def test_rsqrt_is_constant_and_then_falls_with_the_root_of_the_step() -> None:
    found = rates("rsqrt", lr_rsqrt_steps=25)
    assert found[: WARMUP + 1] == pytest.approx([step / WARMUP for step in range(WARMUP + 1)])
    assert found[WARMUP:26] == [1.0] * (26 - WARMUP)
    assert found[100] == pytest.approx(0.5) and found[26] == pytest.approx((25 / 26) ** 0.5)
    assert rates("rsqrt")[40] == pytest.approx(0.5)  # by default it falls after the warm-up


@pytest.mark.parametrize(("shape", "half_way"), [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - 0.5**0.5)])
def test_warmup_stable_decay_is_constant_until_its_last_steps(shape: str, half_way: float) -> None:
    found = rates("warmup_stable_decay", lr_decay_steps=40, lr_decay_shape=shape)
    assert found[WARMUP:61] == [1.0] * (61 - WARMUP)
    assert found[80] == pytest.approx(half_way) and found[100] == pytest.approx(0.0, abs=1e-12)
    assert found[60:] == sorted(found[60:], reverse=True)
    assert rates("warmup_stable_decay")[79:82] == pytest.approx([1.0, 1.0, 0.95])  # by default, a fifth of all steps


def test_options_of_diffusers_schedules_reach_them() -> None:
    assert rates("cosine_with_restarts", lr_num_cycles=2)[WARMUP + 45] == pytest.approx(1.0)
    assert rates("polynomial", lr_power=2.0)[WARMUP + 45] == pytest.approx(0.25, abs=1e-6)
