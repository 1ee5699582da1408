"""Training steps by the engine itself, as `gpu_check.py` measures them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from accelerate.utils import find_executable_batch_size
from torch import Tensor

from ul_tokenizer.training.engine.accelerator import make_accelerator
from ul_tokenizer.training.engine.steps import Stepper
from ul_tokenizer.training.estimate.plan import Plan

WARM_UP = 2


@dataclass(frozen=True)
class StepFigures:
    """What a training step takes."""

    batch_size: int
    images_per_second: float
    flops_per_second: float
    peak_memory_gb: float | None
    synchronizations: float | None  # how often the host waits for the GPU in a step
    is_finite: bool


class Job(NamedTuple):
    """What is measured."""

    arguments: Callable[..., Any]  # makes the arguments of a run, from further ones
    stage: Callable[[Any], Any]  # makes the stage from them
    plan: Callable[[Any], Plan]  # counts what a step needs


def measure_step(job: Job, device: torch.device, steps: int, most: int, **options: Any) -> StepFigures:
    """Measures optimiser steps with the largest batch that fits.

    Args:
        job: what is measured.
        device: where it runs.
        steps: number of timed steps.
        most: the largest batch to try.
        **options: further arguments of the run.
    """
    plan = job.plan(job.arguments(**options))

    @find_executable_batch_size(starting_batch_size=_first_batch(plan, device, most))
    def run(batch_size: int) -> StepFigures:
        stage = job.stage(job.arguments(train_batch_size=batch_size, **options))
        return _measure(stage, batch_size, steps, plan.cost.flops)

    figures: StepFigures = run()
    return figures


def _first_batch(plan: Plan, device: torch.device, most: int) -> int:
    """Somewhat more than the plan expects to fit, since the search only goes down."""
    if device.type != "cuda":
        return most
    memory = torch.cuda.get_device_properties(device).total_memory / 1e9
    here = replace(plan.hardware, gpu=plan.hardware.gpu._replace(memory_gb=int(memory)), count=1)
    return min(most, max(1, int(1.2 * replace(plan, hardware=here).largest_batch(plan.is_checkpointed))))


def _measure(stage: Any, batch_size: int, steps: int, flops: int) -> StepFigures:
    accelerator = make_accelerator(stage.args)
    stage.prepare(accelerator)
    stepper = Stepper(stage.args, stage, accelerator, stage.args.max_train_steps, lambda *_, **__: None)
    stepper.set_train_mode()
    device = accelerator.device
    batch = next(stepper.batches(0))
    batches = _again(batch)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for number in range(WARM_UP):
        values = stepper.step(number, batches)
    _wait(device)
    start = time.perf_counter()
    for number in range(WARM_UP, WARM_UP + steps):
        values = stepper.step(number, batches)
    _wait(device)
    seconds = (time.perf_counter() - start) / steps
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    waits = _synchronizations(lambda: stepper.step(WARM_UP + steps, batches), device)
    accelerator.free_memory()
    is_finite = bool(torch.isfinite(values["loss"])) if "loss" in values else False
    return StepFigures(batch_size, batch_size / seconds, batch_size * flops / seconds, memory, waits, is_finite)


def _again(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same batch from pinned memory for ever, so that no step waits for the disk."""
    while True:
        yield dict(batch)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _synchronizations(step: Callable[[], dict[str, Tensor]], device: torch.device) -> float | None:
    """How often torch waits for the GPU in a step; None on a CPU, which is never waited for."""
    if device.type != "cuda":
        step()
        return None
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return float(sum("synchroniz" in str(warning.message).lower() for warning in caught))
