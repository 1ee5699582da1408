"""What a latent data set holds, without its latents: header, shards, ids and columns. Needs no torch.

Ids and columns of 10⁷ samples take a few hundred megabytes: small data sets keep them packed in memory, large ones in a
file in the user's cache, which is made when the data set is first opened and which all processes map.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ul_tokenizer.files import whole_file
from ul_tokenizer.latents.ids import RepeatedIds
from ul_tokenizer.latents.manifest import Header, Shard, manifests, read_shards
from ul_tokenizer.latents.packed_shards import PackedShards, pack_shards

IN_MEMORY_BYTES = 16_000_000  # of manifests; above this, their index is a file
UNUSED_SECONDS = 14 * 24 * 3600  # after which the index of an earlier state of the same data set is removed

Shape = tuple[int, ...]


class LatentIndex:
    """The contents of a latent data set, except for its latents.

    Args:
        folder: folder of the manifests.
        header: the data set's header.

    Attributes:
        header: the data set's header.
        shards: the finished shards; each is decoded when it is asked for.

    Raises:
        ValueError: a damaged manifest, or an id that stands twice.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        self.header = header
        self.shards = load_shards(folder)
        self._ends: list[int] = self.shards.ends.tolist()  # a list, which `bisect` searches more quickly
        self._count = self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        """Number of samples."""
        return self._count

    def place(self, index: int) -> tuple[int, int]:
        """Number of a sample's shard, and the row in it; negative numbers count from the end.

        Raises:
            IndexError: there is no such sample.
        """
        if not -self._count <= index < self._count:
            raise IndexError(f"index must be below {self._count}, got {index}.")
        index %= self._count
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def id(self, index: int) -> str:
        """The id of a sample."""
        number, row = self.place(index)
        name: str = self.shards[number].ids[row]
        return name

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns that any sample has."""
        return self.shards.column_names

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that integers in the column "label" stand for; empty if unknown."""
        return tuple(self.header.get("class_names") or ())

    @property
    def shapes(self) -> dict[Shape, int]:
        """Shapes of latents, (c, [t,] h, w), and how many samples have each."""
        counts = np.diff(self.shards.ends, prepend=0)
        totals = np.bincount(self.shards.shape_numbers, counts, len(self.shards.shapes))
        return dict(zip(self.shards.shapes, map(int, totals), strict=True))

    def ranges(self, shape: Shape) -> list[range]:
        """For each shard with latents of this shape, the numbers of its samples."""
        number = self.shards.shapes.index(shape)
        bounds = zip([0, *self._ends[:-1]], self._ends, self.shards.shape_numbers.tolist(), strict=True)
        return [range(start, stop) for start, stop, n in bounds if n == number]

    def facts(self) -> dict[str, Any]:
        """Figures about the data set, and its header."""
        size, rounding = 0, 0.0
        for shard in self.shards:
            size, rounding = size + shard.bytes, max(rounding, shard.rounding.get("rms", 0.0))
        return {
            "samples": len(self),
            "shards": len(self.shards),
            "bytes": size,
            "shapes": {"×".join(map(str, shape)): count for shape, count in self.shapes.items()},
            "columns": list(self.column_names),
            "rounding_rms": rounding,
            **self.header,
        }


# ---------------------------------------------------------------- packing, once


def load_shards(folder: Path) -> PackedShards:
    """The shards of a folder's manifests: packed now, or mapped from the user's cache.

    Raises:
        ValueError: a damaged manifest, or an id that stands twice.
    """
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in manifests(folder)]
    if sum(size for _, size, _ in stamps) > IN_MEMORY_BYTES:
        with suppress(OSError):  # a cache that can't be written is no reason to fail: memory does as well
            return _cached(folder, repr(stamps))
    packed = io.BytesIO()
    _pack(folder, packed)
    return PackedShards(packed.getvalue())


def cache_folder() -> Path:
    """Folder of index files: `ul_tokenizer/latent-index` in $XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "ul_tokenizer" / "latent-index"


def _cached(folder: Path, stamps: str) -> PackedShards:
    """Maps the index file of a folder whose manifests have these sizes and times; makes it if needed."""
    place, state = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (str(folder.resolve()), stamps))
    path = cache_folder() / f"{place}-{state}.index"
    with suppress(OSError, ValueError):
        shards = PackedShards(path)
        os.utime(path)
        return shards
    with whole_file(path) as temporary, temporary.open("wb") as file:
        _pack(folder, file)
    _remove_unused(path, f"{place}-*.index")
    return PackedShards(path)


def _remove_unused(path: Path, pattern: str) -> None:
    for other in path.parent.glob(pattern):
        with suppress(OSError):
            if other != path and time.time() - other.stat().st_mtime > UNUSED_SECONDS:
                other.unlink()


def _pack(folder: Path, file: Any) -> None:
    """Packs the manifests of a folder into a file."""
    repeated = RepeatedIds()

    def checked() -> Iterator[Shard]:
        for path in manifests(folder):
            for shard in read_shards(path):
                repeated.add(shard.ids)
                yield shard

    pack_shards(checked(), file)
    groups = (shard.ids for path in manifests(folder) for shard in read_shards(path))
    for _, name, _ in repeated.find(groups):
        raise ValueError(f"Latent data set {folder} is damaged: it has the id {name!r} twice.")
