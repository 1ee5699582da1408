"""Reads Qt binary resource files (`.rcc`), in which GCompris keeps its pictures.

```
header  'qres' · version · offset of tree · offset of data · offset of names   (big-endian uint32 each)
tree    nodes of 14 bytes (version 1) or 22 (from 2 on: + time of change); node 0 is the root
        name offset u32 · flags u16 · directory: number of children u32, first child u32
                                    · file: country u16, language u16, data offset u32
names   length u16 · hash u32 · UTF-16-BE
data    length u32 · bytes
```
The layout is that of `rcc --binary` (qtbase, src/tools/rcc/rcc.cpp).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

COMPRESSED_ZLIB, DIRECTORY, COMPRESSED_ZSTD = 1, 2, 4


def read_resources(blob: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields (path, content) of every file in an `.rcc`, decompressed.

    Raises:
        ValueError: if `blob` is not a Qt resource file, or is damaged.
    """
    if blob[:4] != b"qres":
        raise ValueError(f"blob must be a Qt resource file that begins with b'qres', got {blob[:4]!r}.")
    try:
        version, tree, data, names = struct.unpack_from(">4I", blob, 4)
        yield from _Tree(blob, version, tree, data, names).files(0, "", depth=0)
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"blob is a damaged Qt resource file: {error}.") from error


class _Tree:
    def __init__(self, blob: bytes, version: int, tree: int, data: int, names: int) -> None:
        self.blob, self.tree, self.data, self.names = blob, tree, data, names
        self.node_size = 22 if version >= 2 else 14

    def files(self, node: int, parent: str, depth: int) -> Iterator[tuple[str, bytes]]:
        if depth > 64:  # a cycle, which a damaged file can hold
            raise ValueError("blob is a damaged Qt resource file: folders nested deeper than 64.")
        at = self.tree + node * self.node_size
        name_offset, flags = struct.unpack_from(">IH", self.blob, at)
        path = f"{parent}/{self.name(name_offset)}" if node else ""
        if flags & DIRECTORY:
            count, first = struct.unpack_from(">2I", self.blob, at + 6)
            for child in range(first, first + count):
                yield from self.files(child, path, depth + 1)
        else:
            (data_offset,) = struct.unpack_from(">I", self.blob, at + 10)
            yield path.lstrip("/"), self.content(data_offset, flags)

    def name(self, offset: int) -> str:
        at = self.names + offset
        (length,) = struct.unpack_from(">H", self.blob, at)
        return self.blob[at + 6 : at + 6 + 2 * length].decode("utf-16-be")

    def content(self, offset: int, flags: int) -> bytes:
        at = self.data + offset
        (length,) = struct.unpack_from(">I", self.blob, at)
        raw = self.blob[at + 4 : at + 4 + length]
        if len(raw) != length:
            raise ValueError(f"blob is a damaged Qt resource file: {length} bytes promised, {len(raw)} there.")
        if flags & COMPRESSED_ZLIB:
            return zlib.decompress(raw[4:])  # qCompress puts the length before the stream
        return _decompress_zstd(raw) if flags & COMPRESSED_ZSTD else raw


def _decompress_zstd(raw: bytes) -> bytes:
    try:
        import zstandard  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ValueError("blob holds zstd-compressed resources: pip install zstandard.") from error
    return bytes(zstandard.ZstdDecompressor().decompressobj().decompress(raw))
