"""Tar archives in the layout of webdataset as sources."""

from __future__ import annotations

import json
import tarfile
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ul_tokenizer.media.images import IMAGE_SUFFIXES
from ul_tokenizer.sources.base import RESERVED, SkippedSample, integer_or_text, numbered_classes, stamp_of_file
from ul_tokenizer.sources.names import CompactNames

COLUMN_NAMES = {".txt": "caption", ".caption": "caption", ".cls": "label"}  # suffix in webdataset → our column
MAX_COLUMN_BYTES = 1 << 20  # a longer text is not read
_COLUMN_SUFFIXES = (*COLUMN_NAMES, ".json")


class _Member(NamedTuple):
    """The place of a file's content in its archive."""

    offset: int
    size: int


class TarSource:
    """The samples of tar archives: files whose names are equal up to the first dot.

    The archives are indexed when the source is opened. A sample is then read from its place; nothing is unpacked to
    the disk. If all .cls files hold integers, the classes are called "0", "1" and so on.

    Args:
        archives: Uncompressed .tar files.

    Raises:
        ValueError: No archive holds an image.
    """

    def __init__(self, archives: Sequence[str | Path]) -> None:
        self._archives = [Path(path) for path in archives]
        self.skipped: list[SkippedSample] = []
        names: list[str] = []
        # Flat arrays: millions of samples as Python objects would take gigabytes in every worker process.
        self._images = array("q")  # archive, offset and size of each image
        self._columns = array("q")  # number in _COLUMN_SUFFIXES, offset and size of each further file
        self._first_columns = array("q", [0])  # number of the first further file of each sample, and of all at the end
        labels: set[int | str] = set()
        for number, path in enumerate(self._archives):
            images, columns = self._files_of(path)
            self._add(number, images, columns)
            names += [f"{path.name}/{key}" for key in images]
            labels.update(_labels(path, (columns[key] for key in images if key in columns)))
        if not names:
            raise ValueError(f"archives must hold at least one image, got {len(self._archives)} without any.")
        self._names = CompactNames(names)
        self.class_names = numbered_classes(labels)

    def _files_of(self, path: Path) -> tuple[dict[str, _Member], dict[str, dict[str, _Member]]]:
        """Images by key, and the further files by key and suffix."""
        images: dict[str, _Member] = {}
        columns: defaultdict[str, dict[str, _Member]] = defaultdict(dict)
        for name, member in self._members(path):
            key, suffix = _split_name(name)
            if suffix in IMAGE_SUFFIXES and key not in images:
                images[key] = member
            elif suffix in IMAGE_SUFFIXES:
                self._skip(path, name, "a second image under the same key")
            elif suffix in _COLUMN_SUFFIXES:
                columns[key][suffix] = member
            else:
                self._skip(path, name, f"{suffix or 'no suffix'} is not the suffix of an image")
        for key in sorted(columns.keys() - images.keys()):
            self._skip(path, key, "no image under this key")
        return images, columns

    def _members(self, path: Path) -> Iterator[tuple[str, _Member]]:
        """The files in an archive; if it is damaged, those before the damage."""
        try:
            with tarfile.open(path, "r:") as archive:
                size = path.stat().st_size
                for info in archive:
                    if not info.isfile():
                        continue
                    if Path(info.name).is_absolute() or ".." in Path(info.name).parts:
                        self._skip(path, info.name, "its path leads out of the archive")
                    elif info.offset_data + info.size > size:
                        self._skip(path, info.name, "the archive ends within it")
                    else:
                        yield info.name, _Member(info.offset_data, info.size)
        except (tarfile.TarError, OSError, EOFError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            self.skipped.append(SkippedSample(path.name, f"the archive can't be read to its end: {reason}"))

    def _skip(self, path: Path, name: str, reason: str) -> None:
        self.skipped.append(SkippedSample(f"{path.name}/{name}", reason))

    def _add(self, archive: int, images: dict[str, _Member], columns: dict[str, dict[str, _Member]]) -> None:
        for key, image in images.items():
            self._images.extend((archive, *image))
            for suffix, member in columns.get(key, {}).items():
                self._columns.extend((_COLUMN_SUFFIXES.index(suffix), *member))
            self._first_columns.append(len(self._columns) // 3)

    def __len__(self) -> int:
        """Number of samples with an image."""
        return len(self._names)

    def id(self, index: int) -> str:
        """Name of the archive, a slash, and the sample's key."""
        return self._names[index]

    def open(self, index: int) -> bytes:
        """The image's bytes."""
        archive, offset, size = self._images[3 * index : 3 * index + 3]
        with self._archives[archive].open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def block_sizes(self) -> list[int]:
        """Number of samples in each archive that has any."""
        archives = np.frombuffer(self._images, np.int64)[::3]
        return [int(size) for size in np.bincount(archives) if size]

    def keep_blocks(self, count: int) -> None:
        """Does nothing: a sample is read from its place, without the rest of its archive."""

    def stamp(self, index: int) -> str:
        """Size and time of the archive."""
        return stamp_of_file(self._archives[self._images[3 * index]])

    def columns(self, index: int) -> dict[str, Any]:
        """The sample's .cls as "label", its .txt or .caption as "caption", and the keys of its .json."""
        first, last = self._first_columns[index], self._first_columns[index + 1]
        if first == last:
            return {}
        columns: dict[str, Any] = {}
        with self._archives[self._images[3 * index]].open("rb") as file:
            for number in range(first, last):
                suffix, offset, size = self._columns[3 * number : 3 * number + 3]
                if size <= MAX_COLUMN_BYTES:
                    file.seek(offset)
                    columns |= _parsed(_COLUMN_SUFFIXES[suffix], file.read(size))
        return columns


def _labels(path: Path, columns: Iterator[dict[str, _Member]]) -> set[int | str]:
    """The distinct labels in an archive."""
    members = [files[".cls"] for files in columns if ".cls" in files and files[".cls"].size <= MAX_COLUMN_BYTES]
    labels: set[int | str] = set()
    if members:
        with path.open("rb") as file:
            for member in members:
                file.seek(member.offset)
                labels.add(_parsed(".cls", file.read(member.size))["label"])
    return labels


def _split_name(name: str) -> tuple[str, str]:
    """webdataset's key, which ends at the first dot of the file's name, and the last suffix in lower case."""
    path = Path(name)
    key = path.with_name(path.name.partition(".")[0])
    return key.as_posix(), path.suffix.lower()


def _parsed(suffix: str, content: bytes) -> dict[str, Any]:
    """The columns in a sample's further file."""
    text = content.decode("utf-8", "replace").strip()
    if suffix == ".json":
        return _json_columns(text)
    return {COLUMN_NAMES[suffix]: integer_or_text(text) if suffix == ".cls" else text}


def _json_columns(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: value for key, value in values.items() if key not in RESERVED}
