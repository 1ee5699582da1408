"""LatentDataset: a latent data set as the training of a generator reads it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ul_tokenizer.diffusion.schedule import alpha_sigma
from ul_tokenizer.hub.download import Access
from ul_tokenizer.latents.index import LatentIndex, Shape
from ul_tokenizer.latents.location import find_files
from ul_tokenizer.latents.manifest import Shard, check_header, read_header
from ul_tokenizer.latents.shards import ShardReader
from ul_tokenizer.latents.statistics import MIN_STD, ChannelStatistics, merge_statistics
from ul_tokenizer.latents.stream import LatentStream
from ul_tokenizer.randomness import mixed_seed, words_of

Sample = dict[str, Any]


class _OpenShard(NamedTuple):
    """What reading a sample needs of its shard. Ids and columns are views of packed bytes."""

    reader: ShardReader
    ids: Any  # PackedValues, like those of the columns
    columns: tuple[tuple[str, Any], ...]

    def sample(self, row: int, latent: Tensor) -> Sample:
        """The sample in a row, with its latent."""
        sample = {"id": self.ids.one(row), "latent": latent}
        for column, values in self.columns:
            if (value := values.one(row)) is not None:
                sample[column] = value
        return sample


class LatentDataset(Dataset[Sample]):
    """A map-style data set of latents; `stream` gives the same samples shuffled and divided among processes.

    Item i is a dict: "id" (str), "latent" (z_clean, (c, [t,] h, w) fp32) and the sample's columns, such as "label".
    Latents are mapped into memory. Worker processes share ids and columns, which are packed (see
    `ul_tokenizer.latents.index`); the first opening of a large data set reads its manifests, later ones don't.

    Args:
        path_or_repo: a folder, or the id of a data set repository on the hub.
        revision: branch, tag or commit of the repository.
        expected: header fields that must have these values, e.g. `{"latent_logsnr": 5.0}`.
        normalize: give (z − mean) / std instead of z_clean, by the data set's own statistics per channel.
        token: the hub's token; None for the stored one, False for none.
        cache_dir: folder of downloads; None for the hub's cache.
        local_files_only: use downloaded files only, without a request.

    Raises:
        ValueError: there is no data set, it is damaged or empty, an id stands in it twice, or its header differs from
            `expected`.
        HubError: the repository can't be read.
    """

    def __init__(
        self,
        path_or_repo: str | Path,
        revision: str | None = None,
        *,
        expected: Mapping[str, Any] | None = None,
        normalize: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> None:
        self._files = find_files(path_or_repo, revision, Access(token, cache_dir, local_files_only))
        header = read_header(self._files.folder)
        check_header(header, expected or {}, f"Latent data set {path_or_repo}")
        self._index = LatentIndex(self._files.folder, header)
        if not len(self._index):
            raise ValueError(f"Latent data set {path_or_repo} is empty: it has no finished shard.")
        self._open: dict[int, _OpenShard] = {}
        self.normalize = normalize
        if normalize:  # now, so that worker processes needn't
            statistics = self.statistics
            self._mean, self._std = statistics.mean.float(), statistics.std.clamp_min(MIN_STD).float()

    def __getstate__(self) -> dict[str, Any]:
        """The state without mapped shards, which can't be sent to other processes."""
        return {**self.__dict__, "_open": {}}

    # ------------------------------------------------------------------------------------------------------------
    # Contents
    # ------------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._index)

    @property
    def header(self) -> dict[str, Any]:
        """The header; `docs/reference/latent-format.md` lists its fields."""
        return self._index.header

    @property
    def shards(self) -> Sequence[Shard]:
        """The finished shards, in the order of their samples; each is decoded when it is asked for."""
        return self._index.shards

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns that any sample has."""
        return self._index.column_names

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that integers in the column "label" stand for; empty if unknown."""
        return self._index.class_names

    @property
    def shapes(self) -> dict[Shape, int]:
        """Shapes of latents, (c, [t,] h, w), and how many samples have each."""
        return self._index.shapes

    @property
    def statistics(self) -> ChannelStatistics:
        """Exact statistics of all latents, before they were rounded to the stored dtype."""
        return merge_statistics(ChannelStatistics.from_json(shard.statistics) for shard in self.shards)

    def ranges(self, shape: Shape) -> list[range]:
        """For each shard with latents of this shape, the numbers of its samples."""
        return self._index.ranges(shape)

    # ------------------------------------------------------------------------------------------------------------
    # Samples
    # ------------------------------------------------------------------------------------------------------------

    def __getitem__(self, index: int) -> Sample:
        """One sample.

        Raises:
            IndexError: there is no such sample.
            ValueError: its shard is damaged.
        """
        number, row = self._index.place(index)
        shard = self._opened(number)
        return shard.sample(row, self._normalized(shard.reader.read([row]))[0])

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples in the given order, read shard by shard; a DataLoader calls this for a batch."""
        places: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)  # position in the batch, row in the shard
        for position, index in enumerate(indices):
            number, row = self._index.place(index)
            places[number].append((position, row))
        samples: list[Sample] = [{} for _ in indices]
        for number, found in places.items():
            shard = self._opened(number)
            latents = self._normalized(shard.reader.read([row for _, row in found]))
            for (position, row), latent in zip(found, latents, strict=True):
                samples[position] = shard.sample(row, latent)
        return samples

    def _opened(self, number: int) -> _OpenShard:
        opened = self._open.get(number)
        if opened is None:
            shard = self._index.shards[number]
            reader = ShardReader(self._files.path(shard.file), shard)
            opened = self._open[number] = _OpenShard(reader, shard.ids, tuple(shard.columns.items()))
        return opened

    def _normalized(self, latents: Tensor) -> Tensor:
        if not self.normalize:
            return latents
        mean, std = (values.reshape(1, -1, *[1] * (latents.ndim - 2)) for values in (self._mean, self._std))
        return (latents - mean) / std

    def id(self, index: int) -> str:
        """The id of a sample; its latent is not read."""
        return self._index.id(index)

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order."""
        return (self[index] for index in range(len(self)))

    def sample_z0(self, index: int, seed: int, epoch: int = 0) -> Tensor:
        """z_0 = α₀ z_clean + σ₀ ε, as the decoder expects it.

        Args:
            index: number of the sample.
            seed: of the noise.
            epoch: another epoch gives other noise.

        Returns:
            (c, [t,] h, w), fp32; ε is a pure function of (seed, epoch, id).

        Raises:
            ValueError: the data set normalises its latents; the noise level is that of z_clean itself.
        """
        if self.normalize:
            raise ValueError("normalize must be False for z_0: its noise level is that of z_clean itself.")
        sample = self[index]
        z = sample["latent"]
        noise_seed = mixed_seed(seed, epoch, *words_of(sample["id"]))
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(noise_seed))
        alpha, sigma = alpha_sigma(torch.tensor(self.header["latent_logsnr"]))
        z_0: Tensor = alpha * z + sigma * noise
        return z_0

    def stream(
        self, seed: int = 0, *, shuffle: bool = True, rank: int = 0, world_size: int = 1, batch_size: int = 1
    ) -> LatentStream:
        """An iterable data set of batches, each of one shape.

        Args:
            seed: of the orders; each epoch has its own.
            shuffle: whether to shuffle; if not, samples come as they are stored, shape by shape.
            rank: number of this process, from 0.
            world_size: number of processes that share the samples.
            batch_size: largest number of samples in a batch.

        Returns:
            a `LatentStream`, for `torch.utils.data.DataLoader(…, batch_size=None)`.

        Raises:
            ValueError: a rank outside the processes, or a batch size below 1.
        """
        return LatentStream(self, seed, shuffle=shuffle, rank=rank, world_size=world_size, batch_size=batch_size)
