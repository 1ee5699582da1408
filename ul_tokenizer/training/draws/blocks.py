"""A shuffled order of samples that are stored in blocks: few blocks are in use at a time, as in a shuffle buffer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ul_tokenizer.randomness import Stream, numpy_generator

Indices = np.ndarray[Any, np.dtype[np.int64]]


class BlockOrder:
    """Draw n → index of a sample: blocks in a new order in each epoch, and samples shuffled within a window.

    An epoch puts the blocks in a random order and cuts this sequence of samples into windows, within which samples
    are in random order. Every epoch takes each sample once. The index is a pure function of n and the seed, so that a
    resumed run goes on exactly, with any number of processes and workers.

    Args:
        block_sizes: Number of samples in each block; consecutive samples are in one block.
        window: Number of samples that are shuffled together.
        seed: Seed of the orders.

    Raises:
        ValueError: There is no sample, or the window is empty.
    """

    def __init__(self, block_sizes: Sequence[int], window: int, seed: int) -> None:
        self._sizes = np.asarray(block_sizes, np.int64)
        if not self._sizes.sum() or window < 1:
            raise ValueError(f"block_sizes and window must not be empty, got {len(self._sizes)} and {window}.")
        self.window, self.seed = window, seed
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._length = int(self._sizes.sum())
        self._start_in_process()

    def _start_in_process(self) -> None:
        self._epoch = lru_cache(maxsize=2)(self._blocks)  # workers reach the next epoch at different times
        self._place = lru_cache(maxsize=4)(self._permutation)

    def __len__(self) -> int:
        """Number of draws in an epoch."""
        return self._length

    @property
    def most_blocks(self) -> int:
        """In how many blocks the samples of a window can be, at most."""
        smallest_first = np.cumsum(np.sort(self._sizes))
        return min(len(self._sizes), int(np.searchsorted(smallest_first, self.window)) + 2)

    def index(self, n: int) -> int:
        """The sample of draw n, which has no upper limit."""
        epoch, position = divmod(n, self._length)
        number, within = divmod(position, self.window)
        blocks, ends = self._epoch(epoch)
        position = number * self.window + int(self._place(epoch, number)[within])
        place = int(np.searchsorted(ends, position, "right"))
        block = blocks[place]
        return int(self._starts[block] + position - (ends[place] - self._sizes[block]))

    def _blocks(self, epoch: int) -> tuple[Indices, Indices]:
        """The order of the blocks in an epoch, and where each of them ends."""
        blocks = numpy_generator(self.seed, Stream.EPOCH_ORDER, epoch).permutation(len(self._sizes))
        return blocks, np.cumsum(self._sizes[blocks])

    def _permutation(self, epoch: int, number: int) -> Indices:
        """The order within a window, of which the last one of an epoch may be shorter."""
        size = min(self.window, self._length - number * self.window)
        return numpy_generator(self.seed, Stream.EPOCH_ORDER, epoch, number).permutation(size)

    def __getstate__(self) -> dict[str, object]:
        """The attributes that worker processes can receive."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_epoch", "_place")}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restores the order in a worker process."""
        self.__dict__.update(state)
        self._start_in_process()
