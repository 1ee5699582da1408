"""The draws of each micro-batch and their noise, the same after a resume and on any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from ul_tokenizer.randomness import Stream, derived_seed


def sample_noise(
    shapes: Sequence[tuple[int, ...]], draws: Sequence[int], seed: int, device: torch.device
) -> list[Tensor]:
    """Makes standard normal noise of several shapes for each draw.

    Args:
        shapes: shapes of a single sample.
        draws: the number of each sample since the start of the training.
        seed: seed of the run.
        device: device of the noise.

    Returns:
        an fp32 tensor (B, *shape) for each shape; row i depends on seed and draws[i] only.
    """
    noise = [torch.empty(len(draws), *shape, device=device) for shape in shapes]
    generator = torch.Generator(device)
    for i, draw in enumerate(draws):
        generator.manual_seed(derived_seed(seed, Stream.NOISE, draw))
        for tensor in noise:
            tensor[i].normal_(generator=generator)
    return noise


@dataclass(frozen=True)
class Draws:
    """The samples of a micro-batch, by their numbers since the start of the training.

    All random numbers of a sample depend on its number and on the first number of its step only. So neither the number
    of processes nor that of micro-batches changes them.
    """

    step: int
    of_step: range  # samples of this optimiser step, in all processes and micro-batches
    local: range  # samples of this micro-batch on this process

    @classmethod
    def of(cls, step: int, micro_step: int, accelerator: Accelerator, batch_size: int, micro_steps: int) -> Draws:
        """The draws of a micro-batch; processes take turns at the samples."""
        processes = accelerator.num_processes
        first = (step * micro_steps + micro_step) * batch_size * processes
        of_step = range(batch_size * processes * micro_steps * step, batch_size * processes * micro_steps * (step + 1))
        return cls(step, of_step, range(first + accelerator.process_index, first + batch_size * processes, processes))

    def pick(self, values_of_step: Tensor) -> Tensor:
        """Selects the entries of this micro-batch from a tensor over the samples of the step."""
        start = self.of_step.start
        return values_of_step[self.local.start - start : self.local.stop - start : self.local.step]
