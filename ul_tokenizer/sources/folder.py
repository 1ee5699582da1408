"""Image folders as sources, with columns from a metadata file."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ul_tokenizer.media.images import Skipped, find_images
from ul_tokenizer.processes import Processes
from ul_tokenizer.sources.base import RESERVED, SkippedSample, integer_or_text, numbered_classes, stamp_of_file
from ul_tokenizer.sources.names import CompactNames

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
_HEAD = 1 << 14  # files are compared completely only if their first bytes are equal


class FolderSource:
    """All images below a folder, in the order of their paths.

    The classes are the subfolders, if every image lies in one. Integers in a column "label" of metadata.csv or
    metadata.jsonl take precedence; such classes are called "0", "1" and so on. The metadata's other columns are
    columns of the samples.

    Args:
        root: The folder, or a single image.
        keep_duplicates: Whether to keep all of several files with the same content, instead of the first one only.

    Raises:
        ValueError: There is no image, or the metadata can't be read.
    """

    def __init__(self, root: str | Path, keep_duplicates: bool = False) -> None:
        self.root = Path(root)
        paths, skipped = find_images(self.root)
        if not paths:
            raise ValueError(f"root must hold at least one image, got {root} with {len(skipped)} other files.")
        self._is_file = paths == [self.root]
        self.skipped = [self._skipped_sample(skip) for skip in skipped if skip.path.name not in METADATA_FILES]
        self._metadata = read_metadata(self.root)
        self._take(paths)
        if not keep_duplicates:
            self.drop_duplicates()

    def drop_duplicates(self, processes: Processes | None = None) -> None:
        """Keeps the first one only of several files with the same content.

        Args:
            processes: processes that have opened the same folder and call this method together. The main one reads the
                files and tells the others which are equal. None searches in this process.

        Raises:
            ValueError: the processes see different files.
        """
        paths = [self.open(index) for index in range(len(self))]
        first_of = find_duplicates(paths) if processes is None else _find_together(paths, processes)
        for index, first in sorted(first_of.items()):
            self.skipped.append(SkippedSample(self.id(index), f"same content as {self.id(first)}"))
        if first_of:
            self._take([path for index, path in enumerate(paths) if index not in first_of])

    def _take(self, paths: Sequence[Path]) -> None:
        """Makes these files the samples."""
        self._names = CompactNames(map(self._name_of, paths))
        self.class_names, self._class_numbers = self._classes(paths)

    def _classes(self, paths: Sequence[Path]) -> tuple[tuple[str, ...], dict[str, int]]:
        """Names of the classes, and number of each subfolder if the subfolders are the classes."""
        labels = [row["label"] for row in self._metadata.values() if "label" in row]
        if labels:
            return numbered_classes(labels), {}
        folders = {_first_folder(self._name_of(path)) for path in paths}
        if "" in folders:
            return (), {}
        names = tuple(sorted(folders))
        return names, {name: number for number, name in enumerate(names)}

    def _skipped_sample(self, skip: Skipped) -> SkippedSample:
        return SkippedSample(self._name_of(skip.path), skip.reason)

    def _name_of(self, path: Path) -> str:
        return path.name if self._is_file else path.relative_to(self.root).as_posix()

    def __len__(self) -> int:
        """Number of images, including those that turn out to be unreadable."""
        return len(self._names)

    def id(self, index: int) -> str:
        """The image's path below the folder, with forward slashes."""
        return self._names[index]

    def open(self, index: int) -> Path:
        """The image's file."""
        return self.root if self._is_file else self.root / self._names[index]

    def stamp(self, index: int) -> str:
        """Size and time of the image's file."""
        return stamp_of_file(self.open(index))

    def columns(self, index: int) -> dict[str, Any]:
        """The class under "label", if there are classes, and the image's columns in the metadata."""
        name = self._names[index]
        row = self._metadata.get(name, {})
        if not self._class_numbers:
            return dict(row)
        return {"label": self._class_numbers[_first_folder(name)], **row}


def _first_folder(name: str) -> str:
    """The first part of a path with slashes; empty if it has one part only."""
    folder, slash, _ = name.partition("/")
    return folder if slash else ""


# ---------------------------------------------------------------- metadata


def read_metadata(root: Path) -> dict[str, dict[str, Any]]:
    """Columns by file name from metadata.csv and metadata.jsonl, in the format of the library `datasets`.

    Args:
        root: The folder; a folder without such files has no metadata.

    Returns:
        Path below the folder → columns.

    Raises:
        ValueError: A row without `file_name`, a line that is not a JSON object, or a column with a reserved name.
    """
    rows: dict[str, dict[str, Any]] = {}
    for path in (root / name for name in METADATA_FILES):
        if not path.is_file():
            continue
        for number, row in enumerate(_rows_of(path), 1):
            name = row.pop("file_name", None)
            if not name:
                raise ValueError(f"{path} must have a file_name in every row, got none in row {number}.")
            reserved = sorted(set(row) & set(RESERVED))
            if reserved:
                raise ValueError(f"{path} must not have a column {reserved[0]!r}, which latent data sets have already.")
            rows[str(name)] = row
    return rows


def _rows_of(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            for cells in csv.DictReader(file):
                yield {key: integer_or_text(cell) for key, cell in cells.items() if key is not None}
            return
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{path} must hold a JSON object in every line, got another in line {number}.")
            yield row


# ---------------------------------------------------------------- duplicates


def find_duplicates(paths: Sequence[Path]) -> dict[int, int]:
    """Finds files with the same content.

    Args:
        paths: The files; those that can't be read count as different from all others.

    Returns:
        Index of each file that repeats an earlier one → index of the earliest.
    """
    by_size: defaultdict[int, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        try:
            by_size[path.stat().st_size].append(index)
        except OSError:
            continue
    duplicates: dict[int, int] = {}
    for same_size in by_size.values():
        for same_head in _grouped(paths, same_size, _HEAD):
            for same in _grouped(paths, same_head, None):
                duplicates |= dict.fromkeys(same[1:], same[0])
    return duplicates


def _find_together(paths: Sequence[Path], processes: Processes) -> dict[int, int]:
    """`find_duplicates` by the main process of a group, for all of them; every job of an array searches itself."""
    found = find_duplicates(paths) if processes.is_main else {}
    everyone = processes.gather((len(paths), found))
    counts = [count for count, _ in everyone]
    if len(set(counts)) > 1:
        raise ValueError(f"root must hold the same files for all processes, got {counts} images.")
    return everyone[0][1]


def _grouped(paths: Sequence[Path], indices: Sequence[int], num_bytes: int | None) -> list[list[int]]:
    """Groups of at least two files whose first bytes are equal; None compares complete files."""
    if len(indices) < 2:
        return []
    groups: defaultdict[bytes, list[int]] = defaultdict(list)
    for index in indices:
        try:
            with paths[index].open("rb") as file:
                groups[hashlib.sha256(file.read(num_bytes)).digest()].append(index)
        except OSError:
            continue
    return [group for group in groups.values() if len(group) > 1]
