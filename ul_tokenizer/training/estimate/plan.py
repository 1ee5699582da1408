"""From what a step needs to what a run needs: memory and batch of a GPU, samples per second, GPU-hours."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ul_tokenizer.training.estimate.counting import StepCost
from ul_tokenizer.training.estimate.gpus import Gpu

FREE_FRACTION = 0.1  # of the memory: for CUDA itself, kernels' workspaces, gradients on their way, and fragments


@dataclass(frozen=True)
class Weights:
    """Numbers of weights on each GPU, and what is kept for each of them."""

    trained: int
    frozen: int
    has_average: bool
    is_mixed: bool  # whether autocast keeps a half-precision copy of the weights during a step
    num_averages: int = 1  # if there are any
    optimizer_bytes_per_weight: int = 8  # both moments of AdamW, in fp32

    @property
    def optimizer_bytes(self) -> int:
        """State of the optimiser."""
        return self.optimizer_bytes_per_weight * self.trained

    @property
    def average_bytes(self) -> int:
        """The moving averages of the weights, in fp32."""
        return 4 * self.trained * self.num_averages * self.has_average

    def total_bytes(self, num_gpus: int) -> int:
        """Weights, gradients, optimiser, average and copies on a GPU under DDP, which splits none of them."""
        gradients = (8 if num_gpus > 1 else 4) * self.trained  # DDP has buckets beside the gradients
        copies = 2 * (self.trained + self.frozen) * self.is_mixed
        return 4 * (self.trained + self.frozen) + gradients + self.optimizer_bytes + self.average_bytes + copies


@dataclass(frozen=True)
class Hardware:
    """The GPUs of a run."""

    gpu: Gpu
    count: int
    peak: float  # FLOP/s of one GPU
    utilization: float  # fraction of the peak that is reached

    @property
    def flops_per_second(self) -> float:
        """FLOP/s of all GPUs together, at this utilisation."""
        return self.count * self.peak * self.utilization


@dataclass(frozen=True)
class Plan:
    """How a run fits on its GPUs.

    Args:
        cost: of one sample of a training step.
        extra_flops: of one sample beside the training step, such as those of a frozen encoder.
        weights: what each GPU holds beside activations.
        hardware: the GPUs.
        is_checkpointed: whether the run uses gradient checkpointing.
        extra_is_encoder: whether `extra_flops` are those of a frozen encoder alone, which stored latents save.
        text_flops: of one sample's text in a frozen text encoder, which stored latents don't save.
    """

    cost: StepCost
    extra_flops: int
    weights: Weights
    hardware: Hardware
    is_checkpointed: bool
    extra_is_encoder: bool = True
    text_flops: int = 0

    def largest_batch(self, is_checkpointed: bool) -> int:
        """The most samples that fit on a GPU at once."""
        of_sample = self.cost.activations
        if is_checkpointed:
            of_sample = self.cost.checkpointed_activations + self.cost.recomputed_activations
        usable = (1 - FREE_FRACTION) * 1e9 * self.hardware.gpu.memory_gb
        return max(0, int((usable - self.weights.total_bytes(self.hardware.count)) / of_sample))

    def batch_of(self, global_batch: int) -> tuple[int, int] | None:
        """(samples per GPU at once, batches per optimiser step) of a global batch; None if it can't be divided."""
        share, rest = divmod(global_batch, self.hardware.count)
        largest = self.largest_batch(self.is_checkpointed)
        if rest or largest < 1:
            return None
        steps = next(steps for steps in range(math.ceil(share / largest), share + 1) if share % steps == 0)
        return share // steps, steps

    @property
    def flops_per_sample(self) -> int:
        """FLOPs of one sample in a step."""
        beside = self.extra_flops + self.text_flops
        return beside + (self.cost.checkpointed_flops if self.is_checkpointed else self.cost.flops)

    @property
    def samples_per_second(self) -> float:
        """Of all GPUs together."""
        return self.hardware.flops_per_second / self.flops_per_sample

    def hours(self, num_samples: int) -> float:
        """Hours of the clock for this number of samples; GPU-hours are this times the number of GPUs."""
        return num_samples / self.samples_per_second / 3600
