"""The work of an evaluation, in parts that are the same for any number of processes, and that survive a kill.

Samples are divided into parts by their numbers. Each process takes its share of the parts and writes one safetensors
file for each: a column per figure, a row per sample. The files are read in order, so that the result neither depends
on who made which part nor on how often the job was interrupted. A folder belongs to one key; parts made under another
key are never read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ul_tokenizer.evaluation.samples import Sample
from ul_tokenizer.files import whole_file
from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.processes import Processes
from ul_tokenizer.progress import progress

Array = np.ndarray[Any, Any]
Columns = dict[str, Array]  # name → (B, …), one row per sample
NUMBER = "number"  # the column with the samples' numbers
BATCHES_PER_PART = 4
_KEY, _NOTES = "key", "notes"


class Samples(Protocol):
    """Numbered samples."""

    def __len__(self) -> int: ...

    def id(self, number: int, /) -> str:
        """Id of a sample."""
        ...

    def read(self, number: int, /) -> Sample:
        """The sample.

        Raises:
            UnreadableImageError: it can't be read.
        """
        ...


@dataclass
class Batch:
    """Samples of one shape."""

    numbers: list[int]
    samples: list[Sample]


@dataclass
class PartNotes:
    """What is to be said of some samples beside their figures."""

    skipped: list[tuple[str, str]] = field(default_factory=list)  # id and reason
    nonfinite: list[str] = field(default_factory=list)  # ids
    seconds: dict[str, float] = field(default_factory=dict)  # by stage

    def add(self, other: PartNotes) -> None:
        """Adds those of other samples."""
        self.skipped += other.skipped
        self.nonfinite += other.nonfinite
        for stage, seconds in other.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


Measure = Callable[[Batch, PartNotes], Mapping[str, Any]]  # → columns for the samples of the batch


# ---------------------------------------------------------------- making them


@dataclass(frozen=True)
class PartedJob:
    """Measures all samples, part by part.

    Args:
        samples: what is measured.
        measure: the figures of a batch; it may add to the notes.
        folder: folder of the parts.
        key: hash of everything that the figures depend on.
        batch_size: samples per batch. Batches are the same for any number of processes.
        processes: those that share the work.
        description: shown before the progress bar.

    Raises:
        ValueError: a batch size below 1.
    """

    samples: Samples
    measure: Measure
    folder: Path
    key: str
    batch_size: int
    processes: Processes
    description: str

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")

    def run(self) -> Parts:
        """Makes the parts that are missing, and returns all of them once every process has finished."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rank, world_size = self.processes.rank, self.processes.world_size
        mine = range(rank, self._num_parts, world_size)
        pending = [number for number in mine if not self._is_made(number)]
        done = self._num_samples(set(mine) - set(pending))
        total, shown = self._num_samples(mine), self.processes.is_main
        with (
            self.processes.together(),
            progress(self.description, total, "samples", done, shown, in_logs=True) as bar,
            ThreadPoolExecutor(1) as reader,
        ):
            for number in pending:
                notes, columns = PartNotes(), []
                for batch in self._batches(number, notes, reader):
                    rows = {name: np.asarray(values) for name, values in self.measure(batch, notes).items()}
                    columns.append({NUMBER: np.array(batch.numbers), **rows})
                    bar.update(len(batch.numbers))
                self._write(number, _joined(columns), notes)
        return Parts([self._path(number) for number in range(self._num_parts)], self.key)

    @property
    def _part_size(self) -> int:
        return self.batch_size * BATCHES_PER_PART

    @property
    def _num_parts(self) -> int:
        return -(-len(self.samples) // self._part_size)

    def _num_samples(self, parts: Sequence[int] | range | set[int]) -> int:
        return sum(len(self._numbers(part)) for part in parts)

    def _numbers(self, part: int) -> range:
        return range(part * self._part_size, min((part + 1) * self._part_size, len(self.samples)))

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.safetensors"

    def _is_made(self, number: int) -> bool:
        return _key_of(self._path(number)) == self.key

    def _batches(self, part: int, notes: PartNotes, reader: ThreadPoolExecutor) -> Iterator[Batch]:
        """Batches of one shape each; while one is measured, the next is read."""
        numbers = self._numbers(part)
        groups = [numbers[first : first + self.batch_size] for first in range(0, len(numbers), self.batch_size)]
        coming = reader.submit(self._read, groups[0])
        for following in [*groups[1:], None]:
            read, skipped = coming.result()
            if following is not None:
                coming = reader.submit(self._read, following)
            notes.skipped += skipped
            for shape in dict.fromkeys(tuple(sample.pixels.shape) for _, sample in read):
                alike = [(n, sample) for n, sample in read if tuple(sample.pixels.shape) == shape]
                yield Batch([n for n, _ in alike], [sample for _, sample in alike])

    def _read(self, numbers: Sequence[int]) -> tuple[list[tuple[int, Sample]], list[tuple[str, str]]]:
        read, skipped = [], []
        for number in numbers:
            try:
                read.append((number, self.samples.read(number)))
            except UnreadableImageError as error:
                skipped.append((self.samples.id(number), error.reason))
        return read, skipped

    def _write(self, number: int, columns: Columns, notes: PartNotes) -> None:
        texts = {_KEY: self.key, _NOTES: json.dumps(notes.__dict__, ensure_ascii=False)}
        with whole_file(self._path(number)) as temporary:
            save_file({name: np.ascontiguousarray(column) for name, column in columns.items()}, temporary, texts)


def _joined(parts: Sequence[Mapping[str, Array]]) -> Columns:
    """Batches one after the other, in the order of the samples' numbers."""
    if not parts:
        return {NUMBER: np.empty(0, np.int64)}
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(columns[NUMBER], kind="stable")  # shapes were measured one after the other
    return {name: column[order] for name, column in columns.items()}


def _key_of(path: Path) -> str | None:
    with suppress(OSError, SafetensorError), safe_open(path, "numpy") as file:
        return dict(file.metadata() or {}).get(_KEY)
    return None


# ---------------------------------------------------------------- reading them


@dataclass(frozen=True)
class Parts:
    """Finished parts, in order."""

    paths: list[Path]
    key: str

    def columns(self, *without: str) -> Columns:
        """All columns but the named large ones, each as one array; parts without a readable sample have no rows."""
        parts = [part for path in self.paths if (part := _small_columns(path, without))]
        names = parts[0] if parts else {}
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def blocks(self, name: str) -> Iterator[Array]:
        """The rows of one column, (n, …) for each part that has it."""
        for path in self.paths:
            with safe_open(path, "numpy") as file:
                if name in file.keys():  # noqa: SIM118  # not a dict
                    yield file.get_tensor(name)

    def notes(self) -> PartNotes:
        """The notes of all parts."""
        total = PartNotes()
        for path in self.paths:
            with safe_open(path, "numpy") as file:
                total.add(PartNotes(**json.loads(file.metadata()[_NOTES])))
        return total


def _small_columns(path: Path, without: Sequence[str]) -> Columns:
    with safe_open(path, "numpy") as file:
        names = [name for name in file.keys() if name not in without]  # noqa: SIM118  # not a dict
        columns = {name: file.get_tensor(name) for name in names}
    return columns if len(columns.get(NUMBER, ())) else {}


# ---------------------------------------------------------------- features


class FeatureFile:
    """Features (N, D), fp32, in a safetensors file: read row by row, so that memory doesn't grow with N.

    A memory map would be shorter, but the pages that it touches count as this process's memory.

    Args:
        path: file with one tensor, "features".

    Raises:
        ValueError: another file.
        OSError: it can't be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "numpy") as file:
                self.metadata: dict[str, str] = dict(file.metadata() or {})
                self.shape: tuple[int, int] = tuple(file.get_slice("features").get_shape())
        except SafetensorError as error:
            raise ValueError(f"{path} must hold features as this library writes them, and doesn't: {error}.") from error
        with path.open("rb") as stream:
            self._start = 8 + struct.unpack("<Q", stream.read(8))[0]

    ndim = 2

    def __len__(self) -> int:
        """Number of rows, N."""
        return self.shape[0]

    def __getitem__(self, rows: slice | Array) -> Array:
        """The rows of a slice, or those with the given numbers."""
        width = 4 * self.shape[1]
        if isinstance(rows, slice):
            first, end, _ = rows.indices(len(self))
            with self.path.open("rb") as stream:
                stream.seek(self._start + first * width)
                data = stream.read(max(end - first, 0) * width)
            return np.frombuffer(data, np.float32).reshape(-1, self.shape[1])
        result = np.empty((len(rows), self.shape[1]), np.float32)
        with self.path.open("rb", buffering=0) as stream:
            for place, row in enumerate(np.asarray(rows).tolist()):
                stream.seek(self._start + row * width)
                result[place] = np.frombuffer(stream.read(width), np.float32)
        return result


def write_features(path: Path, blocks: Iterator[Array], num: int, dim: int, metadata: Mapping[str, str]) -> None:
    """Writes features block by block, (n, dim) each, `num` rows in all, as fp32.

    safetensors' own function would need all of them in memory.

    Raises:
        OSError: the disk is full or can't be written.
    """
    entry = {"dtype": "F32", "shape": [num, dim], "data_offsets": [0, 4 * num * dim]}
    header = json.dumps({"__metadata__": dict(metadata), "features": entry}, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype="<f4").tobytes())
