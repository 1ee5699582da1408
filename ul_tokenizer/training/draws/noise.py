"""The draws of a micro-batch and their noise, which don't depend on the number of processes or on resuming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from ul_tokenizer import _compat
from ul_tokenizer.randomness import Stream, derived_seed


def sample_noise(
    shapes: Sequence[tuple[int, ...]], draws: Sequence[int], seed: int, device: torch.device
) -> list[Tensor]:
    """Makes standard normal noise of several shapes for each draw.

    Args:
        shapes: Shapes of the noise of one sample.
        draws: Number of each sample since the start of training.
        seed: Seed of the run.
        device: Device on which the noise is drawn.

    Returns:
        One fp32 tensor (B, *shape) for each shape. Row i depends on the seed and on draws[i] alone. It differs between
        types of device.
    """
    noise = [torch.empty(len(draws), *shape, device=device) for shape in shapes]
    seeds = [derived_seed(seed, Stream.NOISE, draw) for draw in draws]
    if _compat.draws_normal_by_rows(device):
        for part, tensor in enumerate(noise):
            _compat.fill_normal_by_rows(tensor, seeds, part)
        return noise
    generator = torch.Generator(device)
    for i, row_seed in enumerate(seeds):
        generator.manual_seed(row_seed)
        for tensor in noise:
            tensor[i].normal_(generator=generator)
    return noise


@dataclass(frozen=True)
class Draws:
    """The samples of a micro-batch, as numbers since the start of training.

    Everything random about a sample follows from its number and from the number of the first sample of its step. So
    neither the number of processes nor the number of micro-batches changes it.
    """

    step: int
    of_step: range  # samples of this optimiser step, in all processes and micro-batches
    local: range  # samples of this micro-batch on this process

    @classmethod
    def of(cls, step: int, micro_step: int, accelerator: Accelerator, batch_size: int, micro_steps: int) -> Draws:
        """The draws of a micro-batch; consecutive samples go to different processes.

        Args:
            step: Number of the optimiser step.
            micro_step: Number of the micro-batch in the step.
            accelerator: Has the number of processes and the number of this one.
            batch_size: Samples in a micro-batch, per process.
            micro_steps: Micro-batches in a step.
        """
        processes = accelerator.num_processes
        first = (step * micro_steps + micro_step) * batch_size * processes
        of_step = range(batch_size * processes * micro_steps * step, batch_size * processes * micro_steps * (step + 1))
        return cls(step, of_step, range(first + accelerator.process_index, first + batch_size * processes, processes))

    def pick(self, values_of_step: Tensor, device: torch.device) -> Tensor:
        """This micro-batch's entries (B, …), on a device.

        Args:
            values_of_step: on the CPU, (N, …), one entry for each sample of the step.
            device: where the result is.
        """
        start = self.of_step.start
        values = values_of_step[self.local.start - start : self.local.stop - start : self.local.step]
        if device.type == "cuda":  # from memory that isn't pinned, the copy would wait for all work on the GPU
            return values.pin_memory().to(device, non_blocking=True)
        return values.to(device)

    def are_even(self, device: torch.device) -> Tensor:
        """(B,) bool, which of the micro-batch's samples have an even number."""
        return torch.arange(self.local.start, self.local.stop, self.local.step, device=device) % 2 == 0
