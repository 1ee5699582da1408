"""The accelerator of a run: processes, precision, state and trackers."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from ul_tokenizer import _compat
from ul_tokenizer.training.arguments import TrainingArguments


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """Makes the accelerator that the arguments describe; trackers write their own files to `output_dir/logs`.

    Raises:
        ValueError: a tracker is unknown or not installed, or the device does not support the precision.
    """
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # otherwise processes that torchrun starts would not form a group
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=args.report_to,
        project_config=ProjectConfiguration(args.output_dir, logging_dir=str(Path(args.output_dir, "logs"))),
        step_scheduler_with_optimizer=False,
    )
    if args.report_to and not accelerator.log_with:
        raise ValueError(f"--report_to {args.report_to} needs the package {args.report_to}, which is not installed.")
    return accelerator


def precision_warning(mixed_precision: str, device: torch.device) -> str | None:
    """A warning if the CPU only emulates a precision, which takes many times as long as fp32; otherwise None."""
    if mixed_precision == "no" or device.type != "cpu":
        return None
    if _compat.is_native_on_cpu(mixed_precision) is not False:
        return None
    return f"this CPU has no {mixed_precision} arithmetic; --mixed_precision no is many times faster."
