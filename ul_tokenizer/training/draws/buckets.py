"""The order of samples of several shapes: all draws of a step have one shape, so that they can be stacked."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ul_tokenizer.randomness import Stream, numpy_generator

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


class BucketedOrder:
    """Draw n → index of a sample, where draws of the same group of `group_size` come from one bucket.

    Every epoch takes each sample at least once, in a new order. The last group of a bucket is filled up with samples
    of the same bucket.

    Args:
        buckets: (N,), the number of each sample's bucket.
        group_size: number of draws in an optimiser step, on all processes and in all micro-batches together.
        seed: seed of the orders.

    Raises:
        ValueError: there is no sample, or the group size is not positive.
    """

    def __init__(self, buckets: Indices, group_size: int, seed: int) -> None:
        if not len(buckets) or group_size < 1:
            raise ValueError(f"buckets and group_size must not be empty, got {len(buckets)} and {group_size}.")
        self.buckets, self.group_size, self.seed = np.asarray(buckets), group_size, seed
        _, counts = np.unique(self.buckets, return_counts=True)
        self._length = int(np.ceil(counts / group_size).sum()) * group_size
        self._epoch = lru_cache(maxsize=2)(self._order)  # workers and processes reach the next epoch at different times

    def __len__(self) -> int:
        """Number of draws in an epoch."""
        return self._length

    def index(self, n: int) -> int:
        """The sample of draw n, which has no upper limit."""
        epoch, position = divmod(n, self._length)
        return int(self._epoch(epoch)[position])

    def _order(self, epoch: int) -> Indices:
        random = numpy_generator(self.seed, Stream.EPOCH_ORDER, epoch)
        groups = [group for bucket in np.unique(self.buckets) for group in self._groups_of(bucket, random)]
        return np.concatenate([groups[k] for k in random.permutation(len(groups))])

    def _groups_of(self, bucket: int, random: np.random.Generator) -> list[Indices]:
        members = random.permutation(np.flatnonzero(self.buckets == bucket))
        missing = -len(members) % self.group_size
        filled = np.concatenate([members, random.choice(members, missing)]) if missing else members
        return np.split(filled, len(filled) // self.group_size)

    def __getstate__(self) -> dict[str, object]:
        """The attributes that worker processes can receive."""
        return {key: value for key, value in self.__dict__.items() if key != "_epoch"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Restores the order in a worker process."""
        self.__dict__.update(state)
        self._epoch = lru_cache(maxsize=2)(self._order)
