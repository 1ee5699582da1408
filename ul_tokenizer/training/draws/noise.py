"""Which draws a micro-batch holds, and the noise of each: a resumed run repeats it on any number of processes."""

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
    """Standard normal noise of several shapes for each draw.

    Args:
        shapes: per-sample shapes.
        draws: the number of each sample since the start of training.
        seed: the run's.
        device: where.

    Returns:
        a (B, *shape) fp32 tensor per shape; row i depends on draws[i] alone.
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
    """Which samples of the run a micro-batch holds, by their numbers since the start of training.

    All that is random about a sample follows from its number and its step's first one, so that neither the number of
    processes nor that of micro-batches changes it.
    """

    step: int
    of_step: range  # of all processes and micro-batches of this optimiser step
    local: range  # of this micro-batch, on this process

    @classmethod
    def of(cls, step: int, micro_step: int, accelerator: Accelerator, batch_size: int, micro_steps: int) -> Draws:
        """Of a micro-batch; processes take turns at the samples."""
        processes = accelerator.num_processes
        first = (step * micro_steps + micro_step) * batch_size * processes
        of_step = range(batch_size * processes * micro_steps * step, batch_size * processes * micro_steps * (step + 1))
        return cls(step, of_step, range(first + accelerator.process_index, first + batch_size * processes, processes))

    def pick(self, values_of_step: Tensor) -> Tensor:
        """This micro-batch's entries of a tensor over the step's samples."""
        start = self.of_step.start
        return values_of_step[self.local.start - start : self.local.stop - start : self.local.step]
