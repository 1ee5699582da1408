"""What a dry run prints of a run's cost; every line is a YAML comment."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace

from ul_tokenizer.training.arguments import TrainingArguments
from ul_tokenizer.training.estimate.gpus import GPUS
from ul_tokenizer.training.estimate.plan import FREE_FRACTION, Hardware, Plan


def precision_of(args: TrainingArguments) -> str:
    """The precision of the arguments or, where they leave it open, of the launcher."""
    return args.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def hardware_of(args: TrainingArguments, precision: str) -> Hardware:
    """The GPUs that the arguments name."""
    gpu = GPUS[args.dry_run_gpu]
    peak, _ = gpu.peak(precision, args.allow_tf32)
    return Hardware(gpu, args.dry_run_gpus, peak, args.dry_run_utilization)


def describe_plan(args: TrainingArguments, plan: Plan, samples: str) -> list[str]:
    """Lines on FLOPs, memory, batch and time of a run.

    Args:
        args: the arguments of the run.
        plan: how it fits on its GPUs.
        samples: what samples are called, such as "images".
    """
    return [*_per_sample(plan), *_per_gpu(plan), _gpus(args, plan), *_batches(args, plan), *_time(args, plan, samples)]


def _gpus(args: TrainingArguments, plan: Plan) -> str:
    hardware, gpu = plan.hardware, plan.hardware.gpu
    peak, name = gpu.peak(precision_of(args), args.allow_tf32)
    return (
        f"{hardware.count} × {gpu.name} with {gpu.memory_gb} GB, at {hardware.utilization:.0%} of "
        f"{peak / 1e12:,.0f} TFLOP/s in {name} ({gpu.source})"
    )


def as_comments(lines: Iterable[str]) -> str:
    """The lines as comments of a YAML file."""
    return "\n".join(f"# {line}".rstrip() for line in lines)


def _per_sample(plan: Plan) -> list[str]:
    cost = plan.cost
    lines = [
        f"FLOPs per sample: {_giga(cost.forward_flops)} forward, {_giga(cost.flops)} with the backward pass, "
        f"{_giga(cost.checkpointed_flops)} with gradient checkpointing",
        f"activations per sample: {_gb(cost.activations)}, or {_gb(cost.checkpointed_activations)} with gradient "
        f"checkpointing, plus {_gb(cost.recomputed_activations)} for the block that is computed again",
    ]
    if plan.extra_flops:
        frozen = "the frozen encoder" if plan.extra_is_encoder else "the frozen encoder and the teacher"
        lines.insert(1, f"FLOPs per sample for {frozen}: {_giga(plan.extra_flops)}")
    return lines


def _per_gpu(plan: Plan) -> list[str]:
    weights, count = plan.weights, plan.hardware.count
    return [
        f"on each GPU, without activations: {_gb(weights.total_bytes(count))}, of which "
        f"{_gb(weights.optimizer_bytes)} for the optimiser and {_gb(weights.average_bytes)} for averages of the weights"
    ]


def _batches(args: TrainingArguments, plan: Plan) -> list[str]:
    plain, checkpointed = (plan.largest_batch(is_checkpointed) for is_checkpointed in (False, True))
    lines = [
        f"largest batch per GPU, with {FREE_FRACTION:.0%} of its memory left free: {plain}, or {checkpointed} with "
        "gradient checkpointing"
    ]
    batch, count = global_batch_size(args), plan.hardware.count
    divided = plan.batch_of(batch)
    if batch % count:
        lines.append(f"warning: {count} GPUs can't share a global batch of {batch} equally")
    elif divided is None:
        lines.append(f"warning: not even one sample fits on a {plan.hardware.gpu.name}")
    else:
        of_gpu, steps = divided
        lines.append(
            f"global batch {batch:,} = {count} GPUs × {of_gpu} (--train_batch_size) × {steps} "
            "(--gradient_accumulation_steps)"
        )
        given = args.train_batch_size
        if given > plan.largest_batch(plan.is_checkpointed):
            lines.append(f"warning: --train_batch_size {given} does not fit; use {of_gpu}")
        elif batch % (count * given):
            lines.append(
                f"warning: a global batch of {batch} is not a multiple of {count} GPUs × {given}; use {of_gpu}"
            )
    return lines


def _time(args: TrainingArguments, plan: Plan, samples: str) -> list[str]:
    lines = [_time_of(args, plan, samples)]
    if plan.extra_flops and plan.extra_is_encoder:
        lines.append(f"from stored latents (--latent_dataset): {_time_of(args, replace(plan, extra_flops=0), samples)}")
    return lines


def _time_of(args: TrainingArguments, plan: Plan, samples: str) -> str:
    rate, count = plan.samples_per_second, plan.hardware.count
    line = f"{rate:,.0f} {samples}/s" if rate >= 10 else f"{rate:.2g} {samples}/s"
    if args.max_train_steps is None:
        return f"{line}; --num_train_epochs needs the data to know the number of steps"
    seen = args.max_train_steps * global_batch_size(args)
    hours = plan.hours(seen)
    return (
        f"{line}; {args.max_train_steps:,} steps ({seen / 1e6:,.1f} million {samples}): "
        f"{_significant(hours * count)} GPU-hours, {_duration(hours)}"
    )


def global_batch_size(args: TrainingArguments) -> int:
    """Samples of a step on all GPUs of the plan."""
    given: int | None = getattr(args, "global_batch_size", None)
    return given or args.train_batch_size * args.gradient_accumulation_steps * args.dry_run_gpus


def _giga(flops: int) -> str:
    return f"{flops / 1e9:,.0f} G" if flops >= 1e10 else f"{flops / 1e9:.3g} G"


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2g} MB"


def _significant(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _duration(hours: float) -> str:
    return f"{hours / 24:.1f} days" if hours >= 48 else f"{hours:.1f} hours"
