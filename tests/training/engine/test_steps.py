"""A step does not wait for the device, and waits where it must are few."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ul_tokenizer.training.engine.accelerator import make_accelerator
from ul_tokenizer.training.engine.errors import TrainingError
from ul_tokenizer.training.engine.readback import Readback
from ul_tokenizer.training.engine.signals import StopSignal
from ul_tokenizer.training.engine.steps import Stepper
from ul_tokenizer.training.engine.tracking import RunningMeans
from ul_tokenizer.training.parsing import parse_arguments
from ul_tokenizer.training.stage1 import Stage1
from ul_tokenizer.training.stage1_arguments import Stage1Arguments

Flags = Callable[..., list[str]]


class Reads(TorchDispatchMode):
    """Counts reads of a tensor's value by the host: `.item()`, `bool(tensor)`, `tensor.tolist()` and the like."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero, torch.ops.aten.equal)
        self.count += func.overloadpacket in reads
        return func(*args, **(kwargs or {}))


def make_stepper(flags: list[str]) -> Stepper:
    args = parse_arguments(Stage1Arguments, flags)
    accelerator = make_accelerator(args)
    stage = Stage1(args)
    stepper = Stepper(args, stage, accelerator, 100, lambda message, everywhere=False: None)
    stepper.set_train_mode()
    return stepper


def reads_of_a_step(stepper: Stepper) -> int:
    means, batches = RunningMeans(), stepper.batches(0)
    means.add(stepper.step(0, batches))
    prepared = iter([next(batches) for _ in range(2)])
    with Reads() as reads:
        means.add(stepper.step(1, prepared))
    return reads.count


@pytest.mark.parametrize("clip", ["parts", "global"])
def test_the_host_reads_nothing_in_a_step(
    smallest_flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: str
) -> None:
    changes = {"gradient_accumulation_steps": 2, "ema_decay": "0.9,0.99", "ema_std": "0.1", "clip_grad_norm": clip}
    stepper = make_stepper(smallest_flags(tmp_path, **changes))
    assert reads_of_a_step(stepper) == 1  # whether the step before was finite; its copy has arrived by then
    monkeypatch.setattr(Readback, "value", lambda readback: 1.0)
    assert reads_of_a_step(stepper) == 0


def test_an_optimiser_that_cannot_skip_a_step_by_itself_is_asked_for(
    smallest_flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Readback, "value", lambda readback: 1.0)
    stepper = make_stepper(smallest_flags(tmp_path, optimizer="muon"))
    assert reads_of_a_step(stepper) >= 1


def test_too_many_non_finite_steps_end_the_run_one_step_later_at_most(
    smallest_flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = make_stepper(smallest_flags(tmp_path, max_nonfinite_steps=2))
    loss = stepper.stage.loss
    monkeypatch.setattr(stepper.stage, "loss", lambda *a: (loss(*a)[0] * torch.nan, {}))
    batches = stepper.batches(0)
    for number in range(2):
        assert all(value.isnan() for value in stepper.step(number, batches).values())
    with pytest.raises(TrainingError, match="2 steps in a row at step 2"):
        stepper.step(2, batches)
    other = make_stepper(smallest_flags(tmp_path, max_nonfinite_steps=2))
    monkeypatch.setattr(other.stage, "loss", stepper.stage.loss)
    for number in range(2):
        other.step(number, batches)
    with pytest.raises(TrainingError, match="2 steps in a row at step 2"):
        other.state_dict()  # before a checkpoint is written


def test_networks_are_compiled_only_if_asked_for_on_a_cpu(
    smallest_flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    for changes, expected in (({}, []), ({"compile": False}, []), ({"compile": True}, ["Stage1Model"])):
        compiled.clear()
        make_stepper(smallest_flags(tmp_path, **changes))
        assert compiled == expected


@pytest.mark.slow
def test_compiled_steps_have_the_losses_of_others(smallest_flags: Flags, tmp_path: Path) -> None:
    losses: dict[bool, list[float]] = {}
    for is_compiled in (False, True):
        stepper = make_stepper(smallest_flags(tmp_path, compile=is_compiled, max_train_steps=4))
        batches = stepper.batches(0)
        losses[is_compiled] = [float(stepper.step(number, batches)["loss"]) for number in range(3)]
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


# ---------------------------------------------------------------- means and signals


class TwoProcesses:
    """An accelerator of two processes that do the same."""

    num_processes, device = 2, torch.device("cpu")

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return tensor * 2 if reduction == "sum" else tensor


def test_means_leave_out_skipped_steps_and_names_without_a_value() -> None:
    accelerator, means = Accelerator(cpu=True), RunningMeans()
    for a, b in ((1.0, torch.nan), (torch.nan, torch.nan), (3.0, torch.nan)):
        means.add({"a": torch.tensor(a), "b": torch.tensor(b)})
    half_made = RunningMeans()
    half_made.load_state_dict(means.state_dict(accelerator), torch.device("cpu"))
    half_made.add({"a": torch.tensor(8.0), "b": torch.tensor(5.0)})
    assert means.take(accelerator) == {"a": 2.0} and means.take(accelerator) == {}
    assert half_made.take(accelerator) == {"a": 4.0, "b": 5.0}


def test_several_processes_hear_of_a_signal_one_step_later() -> None:
    accelerator: Any = TwoProcesses()
    stop = StopSignal()
    assert not stop.received(accelerator)
    stop.name = "SIGTERM"
    assert not stop.received(accelerator)
    assert stop.received(accelerator)
