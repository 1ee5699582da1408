"""LatentDataset: a latent data set as a generator's training reads it."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ul_tokenizer.diffusion.schedule import alpha_sigma
from ul_tokenizer.latents.manifest import check_header, manifests, read_header, read_shards
from ul_tokenizer.latents.shards import ShardReader, find_files
from ul_tokenizer.latents.statistics import MIN_STD, ChannelStatistics, merge_statistics
from ul_tokenizer.latents.stream import LatentStream
from ul_tokenizer.randomness import mixed_seed, words_of

Sample = dict[str, Any]


class LatentDataset(Dataset[Sample]):
    """Map-style; `stream` gives the same samples shuffled, and divided among processes.

    Item i is a dict: "id" (str), "latent" (z_clean, (c, [t,] h, w) fp32) and the sample's columns, such as "label".
    Latents are mapped into memory, by each process for itself.

    Args:
        path_or_repo: a folder, or the id of a data set repository on the hub.
        revision: branch, tag or commit there.
        expected: header fields that must have these values, e.g. `{"latent_logsnr": 5.0}`.
        normalize: give (z − mean) / std by the data set's own statistics per channel, in place of z_clean.

    Raises:
        ValueError: no data set, a damaged one, an empty one, an id that is there twice, or a header that differs from
            `expected`.
    """

    def __init__(
        self,
        path_or_repo: str | Path,
        revision: str | None = None,
        *,
        expected: Mapping[str, Any] | None = None,
        normalize: bool = False,
    ) -> None:
        self._files = find_files(path_or_repo, revision)
        folder = self._files.folder
        self.header = read_header(folder)
        check_header(self.header, expected or {}, f"Latent data set {path_or_repo}")
        self.shards = [shard for path in manifests(folder) for shard in read_shards(path)]
        if not self.shards:
            raise ValueError(f"Latent data set {path_or_repo} is empty: no shard of it is finished.")
        self._check_ids()
        self._ends = list(accumulate(len(shard.ids) for shard in self.shards))
        self.normalize = normalize
        self._readers: dict[int, ShardReader] = {}

    def _check_ids(self) -> None:
        seen: set[str] = set()
        for shard in self.shards:
            for name in shard.ids:
                if name in seen:
                    raise ValueError(f"Latent data set {self._files.folder} is damaged: it has the id {name!r} twice.")
                seen.add(name)

    def __getstate__(self) -> dict[str, Any]:
        """Mapped memory doesn't travel to other processes."""
        return {**self.__dict__, "_readers": {}}

    # ------------------------------------------------------------------------------------------------------------
    # What is in it
    # ------------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of samples."""
        return self._ends[-1]

    @property
    def column_names(self) -> tuple[str, ...]:
        """Columns that any sample has."""
        return tuple(dict.fromkeys(name for shard in self.shards for name in shard.columns))

    @property
    def class_names(self) -> tuple[str, ...]:
        """What integers under "label" stand for; empty if the header doesn't say."""
        return tuple(self.header.get("class_names") or ())

    @property
    def shapes(self) -> dict[tuple[int, ...], int]:
        """Shapes of latents, and how many samples have each."""
        counts: defaultdict[tuple[int, ...], int] = defaultdict(int)
        for shard in self.shards:
            counts[shard.shape[1:]] += len(shard.ids)
        return dict(counts)

    @property
    def statistics(self) -> ChannelStatistics:
        """Exact, of all latents before they were rounded to the stored dtype."""
        return merge_statistics([ChannelStatistics.from_json(shard.statistics) for shard in self.shards])

    # ------------------------------------------------------------------------------------------------------------
    # Samples
    # ------------------------------------------------------------------------------------------------------------

    def __getitem__(self, index: int) -> Sample:
        """One sample; raises IndexError beyond the end, ValueError for a damaged shard."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several samples, shard by shard, in the order asked for; what a DataLoader calls."""
        places = [self._place(index) for index in indices]
        rows: defaultdict[int, list[int]] = defaultdict(list)
        for position, (number, _) in enumerate(places):
            rows[number].append(position)
        samples: list[Sample] = [{} for _ in places]
        for number, positions in rows.items():
            latents = self._normalized(self._reader(number).read([places[p][1] for p in positions]))
            for position, latent in zip(positions, latents, strict=True):
                samples[position] = self._sample(number, places[position][1], latent)
        return samples

    def _place(self, index: int) -> tuple[int, int]:
        """Number of the shard, and row in it."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, got {index}.")
        index %= len(self)
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def _reader(self, number: int) -> ShardReader:
        if number not in self._readers:
            shard = self.shards[number]
            self._readers[number] = ShardReader(self._files.path(shard.file), shard)
        return self._readers[number]

    def _normalized(self, latents: Tensor) -> Tensor:
        if not self.normalize:
            return latents
        if not hasattr(self, "_mean_std"):
            statistics = self.statistics
            self._mean_std = statistics.mean.float(), statistics.std.clamp_min(MIN_STD).float()
        mean, std = (values.reshape(1, -1, *[1] * (latents.ndim - 2)) for values in self._mean_std)
        return (latents - mean) / std

    def _sample(self, number: int, row: int, latent: Tensor) -> Sample:
        shard = self.shards[number]
        columns = {name: values[row] for name, values in shard.columns.items() if values[row] is not None}
        return {"id": shard.ids[row], "latent": latent, **columns}

    def id(self, index: int) -> str:
        """A sample's id, without reading its latent."""
        number, row = self._place(index)
        return self.shards[number].ids[row]

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order."""
        return (self[index] for index in range(len(self)))

    def sample_z0(self, index: int, seed: int, epoch: int = 0) -> Tensor:
        """z_0 = α₀ z_clean + σ₀ ε, as the decoder knows it, with ε a pure function of (seed, epoch, id).

        Raises:
            ValueError: the data set normalises its latents, to which that noise level does not apply.
        """
        if self.normalize:
            raise ValueError("normalize must be False for z_0: its noise level is that of z_clean itself.")
        z = self[index]["latent"]
        noise_seed = mixed_seed(seed, epoch, *words_of(self.id(index)))
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(noise_seed))
        alpha, sigma = alpha_sigma(torch.tensor(self.header["latent_logsnr"]))
        z_0: Tensor = alpha * z + sigma * noise
        return z_0

    def stream(
        self, seed: int = 0, *, shuffle: bool = True, rank: int = 0, world_size: int = 1, batch_size: int = 1
    ) -> LatentStream:
        """An iterable data set of batches of one shape each; see `LatentStream`."""
        return LatentStream(self, seed, shuffle=shuffle, rank=rank, world_size=world_size, batch_size=batch_size)
