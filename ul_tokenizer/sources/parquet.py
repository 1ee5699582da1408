"""Parquet files, here or on the hub, as sources of samples: rows are read where they lie, nothing is copied first."""

from __future__ import annotations

import bisect
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, NamedTuple

from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.sources.base import RESERVED, SkippedSample
from ul_tokenizer.sources.table import classes_of, need_datasets

_OPENING_THREADS = 8
_KEPT_GROUPS = 2  # of rows, in memory: a batch may reach from one into the next


class _Group(NamedTuple):
    """Rows that are read together."""

    file: int
    number: int  # in its file


class ParquetSamples:
    """The rows of parquet files, numbered through.

    Of each file the footer is read at once; then a row costs the reading of its row group, which is kept while its
    neighbours are asked for. On the hub that is a request for a part of the file.

    Args:
        files: paths, or addresses as fsspec knows them (`hf://datasets/owner/name@commit/data/0.parquet`).
        name: what ids begin with.
        image_column: the column with the images: bytes, or the struct that the library `datasets` stores them as.

    Raises:
        ValueError: no such column, one that holds no images, or no file that can be read.
        ImportError: the extra `data` is not installed.
    """

    def __init__(self, files: Sequence[str], name: str, image_column: str = "image") -> None:
        need_datasets()
        self._name, self._column = name, image_column
        self.skipped: list[SkippedSample] = []
        self._files, footers = self._open_all(files)
        schema = footers[0].schema.to_arrow_schema()
        self.class_names = classes_of(schema, image_column)
        self._plain = [field.name for field in schema if field.name not in RESERVED and _is_plain(field.type)]
        self._groups = [_Group(n, g) for n, footer in enumerate(footers) for g in range(footer.num_row_groups)]
        sizes = [footers[group.file].row_group(group.number).num_rows for group in self._groups]
        self._ends = list(accumulate(sizes))
        self._forget()

    def _open_all(self, files: Sequence[str]) -> tuple[list[str], list[Any]]:
        """Files that are parquet, and their footers."""
        with ThreadPoolExecutor(_OPENING_THREADS, "footers") as pool:
            footers = list(pool.map(_footer, files))
        for file, footer in zip(files, footers, strict=True):
            if isinstance(footer, str):
                self.skipped.append(SkippedSample(file.rpartition("/")[2], f"the file can't be read: {footer}"))
        sound = [(file, footer) for file, footer in zip(files, footers, strict=True) if not isinstance(footer, str)]
        if not sound:
            raise ValueError(f"SRC {self._name} can't be loaded: {self.skipped[0].reason if files else 'no file'}.")
        return [file for file, _ in sound], [footer for _, footer in sound]

    def _forget(self) -> None:
        """Open files and locks stay in their process."""
        self._process, self._lock = os.getpid(), threading.Lock()
        self._readers: dict[int, Any] = {}
        self._kept: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What travels to other processes."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_readers", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """There."""
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        """Number of rows."""
        return self._ends[-1] if self._ends else 0

    def id(self, index: int) -> str:
        """Name and number of the row."""
        return f"{self._name}[{index}]"

    def open(self, index: int) -> bytes:
        """The image's bytes."""
        cell = self._cell(index, self._column)
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not content:
            raise UnreadableImageError(self.id(index), "the row holds no image")
        return bytes(content)

    def columns(self, index: int) -> dict[str, Any]:
        """The other columns, as far as JSON holds them."""
        return {name: self._cell(index, name) for name in self._plain if name != self._column}

    def _cell(self, index: int, column: str) -> Any:
        number = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[number - 1] if number else 0)
        return self._table(number).column(column)[row].as_py()

    def _table(self, number: int) -> Any:
        """The rows of a group."""
        if self._process != os.getpid():  # forked
            self._forget()
        with self._lock:
            if number not in self._kept:
                while len(self._kept) >= _KEPT_GROUPS:
                    del self._kept[next(iter(self._kept))]
                group = self._groups[number]
                wanted = list(dict.fromkeys([self._column, *self._plain]))
                self._kept[number] = self._reader(group.file).read_row_group(group.number, columns=wanted)
            return self._kept[number]

    def _reader(self, file: int) -> Any:
        if file not in self._readers:
            self._readers.clear()  # rows come in order: one file is open at a time
            self._readers[file] = _open(self._files[file])
        return self._readers[file]


def _open(file: str) -> Any:
    """A `pyarrow.parquet.ParquetFile`, of the hub too."""
    import fsspec
    import pyarrow.parquet

    if "://" not in file:
        return pyarrow.parquet.ParquetFile(file)
    # pyarrow knows which bytes it needs, and asks for a row group's columns at once.
    system, path = fsspec.url_to_fs(file)
    return pyarrow.parquet.ParquetFile(system.open(path, "rb", cache_type="none"), pre_buffer=True)


def _footer(file: str) -> Any:
    """A file's metadata, or why it can't be read."""
    try:
        return _open(file).metadata
    except (OSError, ValueError) as error:
        return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _is_plain(kind: Any) -> bool:
    """Whether values of an arrow type are numbers, words or truth values of JSON."""
    import pyarrow.types as types

    tests = (types.is_boolean, types.is_integer, types.is_floating, types.is_string, types.is_large_string)
    return any(test(kind) for test in tests)
