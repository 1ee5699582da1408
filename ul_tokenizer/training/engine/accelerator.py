"""The accelerator of a run: processes, precision, state and trackers."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration

from ul_tokenizer import _compat
from ul_tokenizer.training.arguments import TrainingArguments
from ul_tokenizer.training.engine.sharding import fsdp_plugin, shard_on_cpu

PRECISIONS = ("no", "bf16", "fp16")
_REFUSED = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """Makes the accelerator that the arguments and the launcher describe, and fits the arguments to its processes.

    Trackers write their own files to `output_dir/logs`. With `global_batch_size`, `gradient_accumulation_steps` is set.

    Raises:
        ValueError: a tracker is unknown or not installed, the device does not support the precision, the launcher asks
            for what this training does not support, or the processes don't divide the global batch.
    """
    _check_launcher(args)
    plugin = fsdp_plugin()
    timeout = args.process_group_timeout_minutes
    handlers = [] if timeout is None else [InitProcessGroupKwargs(timeout=datetime.timedelta(minutes=timeout))]
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # otherwise processes that torchrun starts would not form a group
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=str(Path(args.output_dir, "logs"))),
        step_scheduler_with_optimizer=False,
        fsdp_plugin=plugin,
        kwargs_handlers=handlers,
    )
    if plugin is not None:
        shard_on_cpu(accelerator, plugin)
    args.gradient_accumulation_steps = accumulation_steps(args, accelerator.num_processes)
    # Set afterwards, because a variable of the launcher would win over the constructor's argument.
    accelerator.gradient_accumulation_steps = args.gradient_accumulation_steps
    if args.report_to and not accelerator.log_with:
        raise ValueError(f"--report_to {args.report_to} needs the package {args.report_to}, which is not installed.")
    return accelerator


def _check_launcher(args: TrainingArguments) -> None:
    for variable, name in _REFUSED.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise ValueError(f"accelerate must not be configured to use {name}; use FSDP or plain processes instead.")
    precision = args.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in PRECISIONS:
        raise ValueError(f"accelerate's mixed precision must be one of {', '.join(PRECISIONS)}, got {precision}.")


def accumulation_steps(args: TrainingArguments, num_processes: int) -> int:
    """Number of batches per optimiser step that gives the global batch size, if there is one.

    Raises:
        ValueError: no number does.
    """
    if args.global_batch_size is None:
        return args.gradient_accumulation_steps
    at_once = args.train_batch_size * num_processes
    if args.global_batch_size % at_once:
        several = f"{num_processes} processes with a --train_batch_size of {args.train_batch_size}"
        raise ValueError(
            f"--global_batch_size must be a multiple of {at_once} for {several}, got {args.global_batch_size}."
        )
    return args.global_batch_size // at_once


def global_batch_size(args: TrainingArguments, accelerator: Accelerator) -> int:
    """Samples of an optimiser step, on all processes together."""
    return args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps


def describe_run(args: TrainingArguments, accelerator: Accelerator) -> str:
    """One line about processes, precision and batch, for the start of a run."""
    count = accelerator.num_processes
    processes = "1 process" if count == 1 else f"{count} processes"
    chosen = "" if args.mixed_precision or "ACCELERATE_MIXED_PRECISION" not in os.environ else " (the launcher's)"
    return (
        f"{processes} on {accelerator.device.type} ({accelerator.distributed_type.value.lower()}), mixed precision "
        f"{accelerator.mixed_precision}{chosen}, {global_batch_size(args, accelerator)} samples per step"
    )


def precision_warning(mixed_precision: str, device: torch.device) -> str | None:
    """A warning if the CPU only emulates a precision, which takes many times as long as fp32; otherwise None."""
    if mixed_precision == "no" or device.type != "cpu":
        return None
    if _compat.is_native_on_cpu(mixed_precision) is not False:
        return None
    return f"this CPU has no {mixed_precision} arithmetic; --mixed_precision no is many times faster."
