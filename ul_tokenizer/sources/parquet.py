"""The rows of parquet files, on this machine or on the hub, read in place: nothing is copied first."""

from __future__ import annotations

import bisect
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ul_tokenizer.sources.base import SkippedSample, stamp_of_file
from ul_tokenizer.sources.hub import need_datasets

_OPENING_THREADS = 8
_KEPT_GROUPS = 2  # row groups in memory; two, since a batch may reach from one into the next
_OPEN_FILES = 8  # a window of a shuffled order may reach over several


class _Group(NamedTuple):
    """Rows that parquet stores, and we read, together."""

    file: int
    number: int  # in its file


class ParquetRows:
    """The rows of several parquet files, numbered consecutively; see `Rows`.

    The footers of all files are read at once. Reading a row then reads its whole row group, which is kept while its
    neighbours are read. Rows should therefore be read in order, or in random order within a few row groups that
    `keep_blocks` keeps in memory; on the hub every row group is a request.

    Args:
        files: Paths, or addresses for fsspec (`hf://datasets/owner/name@commit/data/0.parquet`).
        name: What error messages call the table.

    Raises:
        ValueError: None of the files can be read.
        ImportError: The extra `data` is not installed.
    """

    def __init__(self, files: Sequence[str], name: str) -> None:
        datasets = need_datasets()
        self._files, footers, self.skipped = _sound_files(files, name)
        self.features: Any = datasets.Features.from_arrow_schema(footers[0].schema.to_arrow_schema())
        self._groups = [_Group(n, g) for n, footer in enumerate(footers) for g in range(footer.num_row_groups)]
        sizes = [footers[group.file].row_group(group.number).num_rows for group in self._groups]
        self._ends = list(accumulate(sizes))
        self._most_kept = _KEPT_GROUPS
        self._image_column, self._columns = "", list[str]()
        self._start_in_process()

    def _start_in_process(self) -> None:
        """Makes what can't be shared between processes: open files, and the lock around them."""
        self._process, self._lock = os.getpid(), threading.Lock()
        self._readers: dict[int, Any] = {}
        self._kept: OrderedDict[int, Any] = OrderedDict()  # least recently used first

    def __getstate__(self) -> dict[str, Any]:
        """The attributes that other processes can receive."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_readers", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the rows in another process."""
        self.__dict__.update(state)
        self._start_in_process()

    def __len__(self) -> int:
        """Number of rows."""
        return self._ends[-1] if self._ends else 0

    def select(self, image_column: str, columns: list[str]) -> None:
        """Chooses which columns `image` and `values` read."""
        self._image_column, self._columns = image_column, columns

    def image(self, index: int) -> bytes | None:
        """The bytes of a row's image; a path without bytes means nothing here."""
        table, row = self._group_of(index)
        cell = table.column(self._image_column)[row].as_py()
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        return bytes(content) if content else None

    def values(self, index: int) -> dict[str, Any]:
        """The chosen columns of a row."""
        table, row = self._group_of(index)
        return {name: table.column(name)[row].as_py() for name in self._columns}

    def column(self, name: str) -> list[Any]:
        """All values of one column."""
        return [value for file in self._files for value in _open(file).read(columns=[name]).column(0).to_pylist()]

    def block_sizes(self) -> list[int]:
        """Number of rows in each row group that has any."""
        return [size for size in np.diff(self._ends, prepend=0).tolist() if size]

    def keep_blocks(self, count: int) -> None:
        """Keeps this number of row groups in memory, instead of two."""
        self._most_kept = max(_KEPT_GROUPS, count)

    def stamp(self, index: int) -> str:
        """Size and time of the row's file; the address of a file on the hub, which names its commit."""
        file = self._files[self._groups[bisect.bisect_right(self._ends, index)].file]
        return file if "://" in file else stamp_of_file(Path(file))

    def _group_of(self, index: int) -> tuple[Any, int]:
        """The row group that holds a row, as an arrow table, and the row's number in it."""
        number = bisect.bisect_right(self._ends, index)
        return self._table(number), index - (self._ends[number - 1] if number else 0)

    def _table(self, number: int) -> Any:
        if self._process != os.getpid():  # this is a forked process
            self._start_in_process()
        with self._lock:
            if number not in self._kept:
                while len(self._kept) >= self._most_kept:
                    self._kept.popitem(last=False)
                group = self._groups[number]
                wanted = list(dict.fromkeys([self._image_column, *self._columns]))
                self._kept[number] = self._reader(group.file).read_row_group(group.number, columns=wanted)
            self._kept.move_to_end(number)
            return self._kept[number]

    def _reader(self, file: int) -> Any:
        if file not in self._readers:
            if len(self._readers) >= _OPEN_FILES:
                del self._readers[next(iter(self._readers))]
            self._readers[file] = _open(self._files[file])
        return self._readers[file]


def find_sound_files(files: Sequence[str], name: str) -> tuple[list[str], list[SkippedSample]]:
    """The files whose footers can be read, and the others with the reasons.

    Args:
        files: As in `ParquetRows`.
        name: What error messages call the table.

    Raises:
        ValueError: None of the files can be read.
        ImportError: The extra `data` is not installed.
    """
    need_datasets()
    sound, _, skipped = _sound_files(files, name)
    return sound, skipped


def _sound_files(files: Sequence[str], name: str) -> tuple[list[str], list[Any], list[SkippedSample]]:
    with ThreadPoolExecutor(_OPENING_THREADS, "footers") as pool:
        footers = list(pool.map(_footer, files))
    pairs = list(zip(files, footers, strict=True))
    sound = [(file, footer) for file, footer in pairs if not isinstance(footer, str)]
    skipped = [
        SkippedSample(file.rpartition("/")[2], f"the file can't be read: {footer}")
        for file, footer in pairs
        if isinstance(footer, str)
    ]
    if not sound:
        raise ValueError(f"source {name} can't be loaded: {skipped[0].reason if files else 'it has no file'}.")
    return [file for file, _ in sound], [footer for _, footer in sound], skipped


def _open(file: str) -> Any:
    """A file, on this machine or on the hub, as a `pyarrow.parquet.ParquetFile`."""
    import fsspec
    import pyarrow.parquet

    if "://" not in file:
        return pyarrow.parquet.ParquetFile(file)
    # pyarrow knows which bytes it needs and requests a row group's columns at once, so fsspec need not read ahead.
    system, path = fsspec.url_to_fs(file)
    return pyarrow.parquet.ParquetFile(system.open(path, "rb", cache_type="none"), pre_buffer=True)


def _footer(file: str) -> Any:
    """A file's metadata, or the reason why it can't be read."""
    try:
        return _open(file).metadata
    except (OSError, ValueError) as error:
        return " ".join(str(error).split()).rstrip(".") or type(error).__name__
