"""The order in which a training reads a latent data set: shuffled, divided among processes, and to be continued."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ul_tokenizer.latents.manifest import Shard

SHARDS_AT_ONCE = 16  # whose samples are mixed: few files at a time, as slow disks and networks want
Order = np.ndarray[tuple[int], np.dtype[np.int64]]


class Shards(Protocol):
    """What a stream needs of a latent data set."""

    @property
    def shards(self) -> Sequence[Shard]:
        """The finished files, in the order in which their samples are numbered."""

    @property
    def shapes(self) -> dict[tuple[int, ...], int]:
        """Shapes of latents, and how many samples have each."""

    def __getitems__(self, indices: Sequence[int], /) -> list[dict[str, Any]]:
        """Several samples, in the order asked for."""


class LatentStream(IterableDataset[dict[str, Any]]):
    """Batches of a latent data set, each of one shape; one epoch per iteration, over all samples without repetition.

    Batches take turns: batch k belongs to process k mod `world_size`, and there to worker (k div world_size) mod the
    number of DataLoader workers. The last ones may be smaller, and some processes may have one less. The batches
    don't depend on the number of processes or workers. To be wrapped as `DataLoader(stream, batch_size=None)`.

    Args:
        dataset: the data set.
        seed: of the orders; each epoch has its own.
        shuffle: whether to mix; without, samples come as they are stored, shape by shape.
        rank: this process's number, of `world_size`.
        world_size: how many processes share the data set.
        batch_size: samples of a batch.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(
        self,
        dataset: Shards,
        seed: int = 0,
        *,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        batch_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be below world_size, got {rank} and {world_size}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.dataset, self.seed, self.shuffle = dataset, seed, shuffle
        self.rank, self.world_size, self.batch_size = rank, world_size, batch_size
        self.epoch, self.position = 0, 0

    def __len__(self) -> int:
        """Batches of this process in an epoch."""
        batches = sum(-(-count // self.batch_size) for count in self.dataset.shapes.values())
        return len(range(self.rank, batches, self.world_size))

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch.

        Needed before each one with DataLoader workers that don't persist, which know nothing of those before them.
        """
        self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Where it stands: the epoch, and batches of it that this process was given.

        With DataLoader workers, count the batches in the training loop and set `position` to that instead: workers
        read ahead.
        """
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration goes on from there."""
        self.epoch, self.position = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches: "id" and each column as lists, "latents" (B, c, [t,] h, w) fp32."""
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        mine = self._batches(self.epoch)[self.rank :: self.world_size]
        for number in range(self.position + first, len(mine), step):
            batch = _collate(self.dataset.__getitems__(mine[number].tolist()))
            self.position = number + 1
            yield batch
        self.epoch, self.position = self.epoch + 1, 0

    def _batches(self, epoch: int) -> list[Order]:
        """All batches of an epoch, of all processes: the same wherever it is computed."""
        random = np.random.default_rng(np.random.SeedSequence((self.seed, epoch)))
        batches: list[Order] = []
        for shape in self.dataset.shapes:
            order = self._order(shape, random)
            batches += [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        return [batches[i] for i in random.permutation(len(batches))] if self.shuffle else batches

    def _order(self, shape: tuple[int, ...], random: np.random.Generator) -> Order:
        """Indices of the samples of one shape, mixed among a few shards at a time."""
        shards, start = [], 0
        for shard in self.dataset.shards:
            if shard.shape[1:] == shape:
                shards.append(np.arange(start, start + len(shard.ids)))
            start += len(shard.ids)
        if not self.shuffle:
            return np.concatenate(shards)
        shards = [shards[i] for i in random.permutation(len(shards))]
        groups = [np.concatenate(shards[i : i + SHARDS_AT_ONCE]) for i in range(0, len(shards), SHARDS_AT_ONCE)]
        return np.concatenate([random.permutation(group) for group in groups])


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for sample in samples for name in sample)
    batch: dict[str, Any] = {name: [sample.get(name) for sample in samples] for name in names if name != "latent"}
    return {**batch, "latents": torch.stack([sample["latent"] for sample in samples])}
