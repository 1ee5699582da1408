"""All manifests of a data set as one block of bytes, in which a shard is found and decoded without reading the others.

```
per shard: ids, columns, the other fields as JSON ─ … ─ counts, places ─ contents as JSON ─ where that begins, magic
```

The layout is private: it serves one machine and may change with every version.
`docs/reference/latent-format.md` describes the files that data sets consist of.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np

from ul_tokenizer.latents.manifest import Shard
from ul_tokenizer.latents.packed_values import Array, pack, unpack

_MAGIC = b"ULINDEX1"
_END = struct.Struct("<Q8s")
_ALIGNMENT = 8  # of everything, so that numbers can be used where they lie
_MOST_DECODED = 256  # shards that are kept as objects

Place = tuple[int, int]  # start, and number of bytes


class ShardPacker:
    """Writes shards into a file, one after the other, in constant memory for ids and columns."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._position = file, 0
        self._counts: list[int] = []
        self._places: list[int] = []
        self._shape_numbers: list[int] = []
        self._shapes: dict[tuple[int, ...], int] = {}
        self._column_names: dict[str, None] = {}

    def add(self, shard: Shard) -> None:
        """Appends a shard."""
        fields = {name: value for name, value in vars(shard).items() if name not in ("ids", "columns")}
        columns = {name: self._put_values(values) for name, values in shard.columns.items()}
        fields |= {"ids": self._put_values(shard.ids), "columns": columns}
        self._places += self._put(json.dumps(fields).encode())
        self._counts.append(len(shard.ids))
        self._shape_numbers.append(self._shapes.setdefault(shard.shape[1:], len(self._shapes)))
        self._column_names.update(dict.fromkeys(shard.columns))

    def _put_values(self, values: Sequence[object]) -> tuple[str, Place]:
        kind, content = pack(values)
        return kind, self._put(content)

    def _put(self, content: bytes) -> Place:
        start = self._position
        padding = -len(content) % _ALIGNMENT
        self._file.write(content + bytes(padding))
        self._position += len(content) + padding
        return start, len(content)

    def finish(self) -> None:
        """Writes the table of contents."""
        contents = {
            "ends": self._put(np.cumsum(self._counts, dtype=np.int64).tobytes()),
            "places": self._put(np.array(self._places, np.int64).tobytes()),
            "shape_numbers": self._put(np.array(self._shape_numbers, np.int64).tobytes()),
            "shapes": list(self._shapes),
            "column_names": list(self._column_names),
        }
        start, _ = self._put(json.dumps(contents).encode())
        self._file.write(_END.pack(start, _MAGIC))


class PackedShards(Sequence[Shard]):
    """The shards of a data set, decoded when they are asked for; their ids and columns are views of the bytes.

    Args:
        source: a file that `ShardPacker` wrote, which is mapped into memory, or its content. Only the path of a file
            is pickled.

    Attributes:
        ends: (number of shards,) int64: how many samples the shards up to and including each have.
        shapes: shapes of latents, (c, [t,] h, w), in the order in which shards have them.
        shape_numbers: (number of shards,) int64: positions in `shapes`.
        column_names: names of the columns that any shard has.

    Raises:
        ValueError: the file is no such file.
        OSError: it can't be read.
    """

    def __init__(self, source: Path | bytes) -> None:
        self._source = source
        self._buffer: Array = (
            np.frombuffer(source, np.uint8)
            if isinstance(source, bytes)
            else np.memmap(source, np.uint8, "r").view(np.ndarray)  # whose slices are quicker
        )
        start, magic = _END.unpack(self._buffer[-_END.size :].tobytes()) if len(self._buffer) >= _END.size else (0, b"")
        if magic != _MAGIC:
            raise ValueError(f"File {source!r} is not the index of a latent data set.")
        contents = json.loads(self._buffer[start : -_END.size].tobytes().rstrip(b"\0"))
        self.ends, self._places, self.shape_numbers = (
            self._bytes(contents[name]).view(np.int64) for name in ("ends", "places", "shape_numbers")
        )
        self.shapes = [tuple(shape) for shape in contents["shapes"]]
        self.column_names: tuple[str, ...] = tuple(contents["column_names"])
        self._decoded: dict[int, Shard] = {}

    def __reduce__(self) -> tuple[object, tuple[Path | bytes]]:
        return PackedShards, (self._source,)

    def _bytes(self, place: Place) -> Array:
        start, size = place
        return self._buffer[start : start + size]

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Shard: ...
    @overload
    def __getitem__(self, index: slice) -> list[Shard]: ...
    def __getitem__(self, index: int | slice) -> Shard | list[Shard]:
        if isinstance(index, int) and (shard := self._decoded.get(index)):
            return shard
        numbers = range(len(self))[index]  # raises IndexError
        return self._shard(numbers) if isinstance(numbers, int) else [self._shard(number) for number in numbers]

    def __iter__(self) -> Iterator[Shard]:
        return map(self._decode, range(len(self)))  # not kept, so that a walk over all shards needs no memory

    def _shard(self, number: int) -> Shard:
        if number in self._decoded:
            return self._decoded[number]
        if len(self._decoded) >= _MOST_DECODED:
            self._decoded.clear()
        return self._decoded.setdefault(number, self._decode(number))

    def _decode(self, number: int) -> Shard:
        fields = json.loads(self._bytes((int(self._places[2 * number]), int(self._places[2 * number + 1]))).tobytes())
        count = fields["shape"][0]
        kind, place = fields["ids"]
        columns = {name: unpack(k, self._bytes(p), count) for name, (k, p) in fields["columns"].items()}
        ids = unpack(kind, self._bytes(place), count)
        return Shard(**{**fields, "shape": tuple(fields["shape"]), "ids": ids, "columns": columns})


def pack_shards(shards: Iterable[Shard], file: BinaryIO) -> None:
    """Writes shards into a file that `PackedShards` reads."""
    packer = ShardPacker(file)
    for shard in shards:
        packer.add(shard)
    packer.finish()
