"""Streams of a latent data set: shuffled, divided among processes and workers, and continued after an interruption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ul_tokenizer.latents.index import Shape

SHARDS_AT_ONCE = 16  # shards whose samples are mixed; few at a time, which suits slow disks and networks
Order = np.ndarray[tuple[int], np.dtype[np.int64]]


class LatentSource(Protocol):
    """What a stream needs of a latent data set."""

    @property
    def shapes(self) -> dict[Shape, int]:
        """Shapes of latents, and how many samples have each."""
        ...

    def ranges(self, shape: Shape) -> list[range]:
        """For each shard with latents of this shape, the numbers of its samples."""
        ...

    def __getitems__(self, indices: Sequence[int], /) -> list[dict[str, Any]]:
        """Several samples in the given order."""
        ...


class LatentStream(IterableDataset[dict[str, Any]]):
    """Batches of a latent data set, each of one shape. One iteration is one epoch: every sample once.

    Batches take turns: batch k belongs to process k mod `world_size`, and there to worker (k div world_size) mod the
    number of DataLoader workers. The last batches may be smaller, and some processes may have one batch less. The
    batches don't depend on the number of processes or workers. Wrap a stream as `DataLoader(stream, batch_size=None)`.

    To continue in the middle of an epoch with the same number of workers, use torchdata's `StatefulDataLoader` in place
    of `DataLoader`: it saves and restores the state of every worker. To continue with another number of workers or
    processes, which `StatefulDataLoader` can't, count the batches in the training loop and set `epoch` and `position`.

    Args:
        dataset: the data set.
        seed: seed of the orders; each epoch has its own order.
        shuffle: whether to shuffle; if not, samples come as they are stored, shape by shape.
        rank: number of this process, below `world_size`.
        world_size: number of processes that share the data set.
        batch_size: largest number of samples in a batch.

    Attributes:
        epoch: the epoch of the next iteration.
        position: number of this process's batches that the next iteration leaves out.

    Raises:
        ValueError: `rank` is not below `world_size`, or `batch_size` is not positive.
    """

    def __init__(
        self,
        dataset: LatentSource,
        seed: int = 0,
        *,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to below world_size, got {rank} and {world_size}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.dataset, self.seed, self.shuffle = dataset, seed, shuffle
        self.rank, self.world_size, self.batch_size = rank, world_size, batch_size
        self.epoch, self.position = 0, 0
        self._given, self._is_over = 0, False  # in a worker: its batches since `position`, and whether there are more

    def __len__(self) -> int:
        """Number of this process's batches in an epoch."""
        batches = sum(-(-count // self.batch_size) for count in self.dataset.shapes.values())
        return len(range(self.rank, batches, self.world_size))

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch.

        Call this before every epoch if DataLoader workers don't persist, since new workers start at epoch 0.
        """
        self.load_state_dict({"epoch": epoch, "position": 0})

    def state_dict(self) -> dict[str, int]:
        """The current place: the epoch, and the number of its batches that this process has taken.

        In a DataLoader worker "given" counts the worker's own batches since "position", for `StatefulDataLoader`.
        """
        state = {"epoch": self.epoch, "position": self.position}
        return state if get_worker_info() is None else {**state, "given": self._given}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Makes the next iteration continue from the place of a `state_dict`."""
        self.epoch, self.position, self._given = state["epoch"], state["position"], state.get("given", 0)
        self._is_over = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches: "id" and each column as lists, "latents" (B, c, [t,] h, w) fp32."""
        if self._is_over:
            self.set_epoch(self.epoch + 1)
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        mine = self._batches(self.epoch)[self.rank :: self.world_size]
        for number in range(self.position + first + self._given * step, len(mine), step):
            batch = _collate(self.dataset.__getitems__(mine[number].tolist()))
            if worker is None:
                self.position += 1
            else:
                self._given += 1
            yield batch
        if worker is None:
            self.set_epoch(self.epoch + 1)
        # A worker stays where it is until the next epoch is asked for: other workers may still be within this one.
        self._is_over = worker is not None

    def _batches(self, epoch: int) -> list[Order]:
        """All batches of an epoch, of all processes; every process computes the same."""
        random = np.random.default_rng(np.random.SeedSequence((self.seed, epoch)))
        batches: list[Order] = []
        for shape in self.dataset.shapes:
            order = self._order(shape, random)
            batches += [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        return [batches[i] for i in random.permutation(len(batches))] if self.shuffle else batches

    def _order(self, shape: Shape, random: np.random.Generator) -> Order:
        """Numbers of the samples of one shape, mixed among a few shards at a time."""
        shards = [np.arange(part.start, part.stop) for part in self.dataset.ranges(shape)]
        if not self.shuffle:
            return np.concatenate(shards)
        shards = [shards[i] for i in random.permutation(len(shards))]
        groups = [np.concatenate(shards[i : i + SHARDS_AT_ONCE]) for i in range(0, len(shards), SHARDS_AT_ONCE)]
        return np.concatenate([random.permutation(group) for group in groups])


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for sample in samples for name in sample)
    batch: dict[str, Any] = {name: [sample.get(name) for sample in samples] for name in names if name != "latent"}
    return {**batch, "latents": torch.stack([sample["latent"] for sample in samples])}
