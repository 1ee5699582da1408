"""Schedules of the learning rate: those of diffusers and two of our own, as factors of its highest value."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LambdaLR

from ul_tokenizer.training.arguments import TrainingArguments

Schedule = Callable[[int], float]  # step → factor
DECAY_FRACTION = 0.2  # of all steps, for warmup_stable_decay
FALLS: dict[str, Callable[[float], float]] = {  # progress from 0 to 1 → factor from 1 to 0
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "sqrt": lambda progress: 1 - math.sqrt(progress),
}


def make_lr_scheduler(args: TrainingArguments, optimizer: torch.optim.Optimizer, max_steps: int) -> LambdaLR:
    """Makes the schedule of the learning rate."""
    warmup, floor = args.lr_warmup_steps, args.lr_min_ratio
    if args.lr_scheduler == "rsqrt":
        scheduler = LambdaLR(optimizer, rsqrt(warmup, args.lr_rsqrt_steps or max(warmup, 1)))
    elif args.lr_scheduler == "warmup_stable_decay":
        decay = args.lr_decay_steps or math.ceil(DECAY_FRACTION * max_steps)
        scheduler = LambdaLR(optimizer, warmup_stable_decay(warmup, decay, max_steps, args.lr_decay_shape))
    else:
        scheduler = get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=max_steps,
            num_cycles=args.lr_num_cycles,
            power=args.lr_power,
        )
    if floor:  # step 0 has the same factor with a floor
        scheduler.lr_lambdas = [with_floor(schedule, floor, warmup) for schedule in scheduler.lr_lambdas]
    return scheduler


def rsqrt(warmup_steps: int, constant_steps: int) -> Schedule:
    """A constant, then the inverse square root of the step."""

    def factor(step: int) -> float:
        return _rise(step, warmup_steps) * math.sqrt(constant_steps / max(step, constant_steps))

    return factor


def warmup_stable_decay(warmup_steps: int, decay_steps: int, max_steps: int, shape: str) -> Schedule:
    """A constant, then a fall to 0 at the last step."""

    def factor(step: int) -> float:
        progress = (step - (max_steps - decay_steps)) / decay_steps
        return _rise(step, warmup_steps) * FALLS[shape](min(max(progress, 0.0), 1.0))

    return factor


def with_floor(schedule: Schedule, floor: float, warmup_steps: int) -> Schedule:
    """The schedule, falling to `floor` instead of 0; its rise is the same."""

    def factor(step: int) -> float:
        return schedule(step) if step < warmup_steps else floor + (1 - floor) * schedule(step)

    return factor


def _rise(step: int, warmup_steps: int) -> float:
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0
