"""Image folders as sources of samples, with columns from a metadata file."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ul_tokenizer.sources.base import RESERVED, SkippedSample
from ul_tokenizer.sources.image_folder import ImageFolder

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
_HEAD = 1 << 14  # bytes that two files must share to be compared whole


class FolderSamples:
    """Images below a folder, with classes by subfolder, and columns from a metadata.csv or metadata.jsonl in it.

    Of files with the same content all but the first are left out.

    Args:
        root: the folder.
        keep_duplicates: whether files with the same content stay.

    Raises:
        ValueError: no images, or metadata that can't be read.
    """

    def __init__(self, root: str | Path, keep_duplicates: bool = False) -> None:
        self._folder = ImageFolder(root)
        self._metadata = read_metadata(Path(root))
        has_labels = any("label" in row for row in self._metadata.values())
        self.class_names = () if has_labels else self._folder.class_names
        known = {path.name for path in map(Path, METADATA_FILES)}
        self.skipped = [
            SkippedSample(skip.path.relative_to(root).as_posix(), skip.reason)
            for skip in self._folder.skipped
            if skip.path.name not in known
        ]
        self._indices = list(range(len(self._folder)))
        if not keep_duplicates:
            self._leave_out_duplicates()

    def _leave_out_duplicates(self) -> None:
        first_of = find_duplicates(list(map(self._folder.path, self._indices)))
        for index, first in sorted(first_of.items()):
            self.skipped.append(SkippedSample(self._folder.name(index), f"same content as {self._folder.name(first)}"))
        self._indices = [index for index in self._indices if index not in first_of]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._indices)

    def id(self, index: int) -> str:
        """Path below the folder."""
        return self._folder.name(self._indices[index])

    def open(self, index: int) -> Path:
        """Its file."""
        return self._folder.path(self._indices[index])

    def columns(self, index: int) -> dict[str, Any]:
        """The class, and the metadata's columns."""
        label = self._folder.label(self._indices[index]) if self.class_names else None
        row = self._metadata.get(self.id(index), {})
        return row if label is None else {"label": label, **row}


def read_metadata(root: Path) -> dict[str, dict[str, Any]]:
    """File name below the folder → columns, from metadata.csv or metadata.jsonl, as the library `datasets` has them.

    Raises:
        ValueError: a row without a `file_name`, a line that is no JSON object, or a column with a reserved name.
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
                yield {key: _number_or_text(value) for key, value in cells.items() if key is not None}
            return
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise ValueError(f"{path} must hold a JSON object in every line, got another in line {number}.")
            yield row


def _number_or_text(value: str | None) -> Any:
    """Labels of a CSV are numbers again."""
    if value is not None and value.lstrip("-").isdecimal():
        return int(value)
    return value


def find_duplicates(paths: Sequence[Path]) -> dict[int, int]:
    """Index of each file whose content an earlier one has → index of that one; unreadable files are left alone."""
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


def _grouped(paths: Sequence[Path], indices: Sequence[int], num_bytes: int | None) -> list[list[int]]:
    """Indices of files whose first bytes are equal, where there are several."""
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
