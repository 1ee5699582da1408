"""webdataset's tar archives as sources of samples."""

from __future__ import annotations

import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ul_tokenizer.media.images import IMAGE_SUFFIXES
from ul_tokenizer.sources.base import RESERVED, SkippedSample

COLUMN_SUFFIXES = {".txt": "caption", ".caption": "caption", ".cls": "label"}  # webdataset's, to columns
MAX_COLUMN_BYTES = 1 << 20


class _Member(NamedTuple):
    archive: int
    offset: int
    size: int


class TarSamples:
    """The samples of webdataset's tar archives: files that share a name up to its first dot.

    Archives are indexed once; a sample is then read by its place in the file. Nothing is unpacked to disk.

    Args:
        archives: uncompressed .tar files.

    Raises:
        ValueError: none, or no image in any of them.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, archives: Sequence[str | Path]) -> None:
        self._archives = [Path(path) for path in archives]
        self.skipped: list[SkippedSample] = []
        self._samples: list[tuple[str, _Member, dict[str, _Member]]] = []  # id, image, columns
        for number, path in enumerate(self._archives):
            self._index(number, path)
        if not self._samples:
            raise ValueError(f"archives must hold at least one image, got {len(self._archives)} without any.")

    def _index(self, number: int, path: Path) -> None:
        images: dict[str, _Member] = {}
        columns: defaultdict[str, dict[str, _Member]] = defaultdict(dict)
        for name, member in self._members(number, path):
            key, suffix = _split_name(name)
            if suffix in IMAGE_SUFFIXES and key not in images:
                images[key] = member
            elif suffix in IMAGE_SUFFIXES:
                self.skipped.append(SkippedSample(f"{path.name}/{name}", "a second image under the same key"))
            elif suffix in COLUMN_SUFFIXES or suffix == ".json":
                columns[key][suffix] = member
            else:
                self.skipped.append(SkippedSample(f"{path.name}/{name}", f"{suffix or 'no suffix'} is not an image's"))
        for key in columns.keys() - images.keys():
            self.skipped.append(SkippedSample(f"{path.name}/{key}", "no image under this key"))
        self._samples += [(f"{path.name}/{key}", image, dict(columns[key])) for key, image in images.items()]

    def _members(self, number: int, path: Path) -> Iterator[tuple[str, _Member]]:
        """Files in an archive; of one that ends early or is none, those before the damage."""
        try:
            with tarfile.open(path, "r:") as archive:
                size = path.stat().st_size
                for info in archive:
                    if not info.isfile():
                        continue
                    if Path(info.name).is_absolute() or ".." in Path(info.name).parts:
                        self.skipped.append(SkippedSample(f"{path.name}/{info.name}", "a path out of the archive"))
                    elif info.offset_data + info.size > size:
                        self.skipped.append(SkippedSample(f"{path.name}/{info.name}", "the archive ends within it"))
                    else:
                        yield info.name, _Member(number, info.offset_data, info.size)
        except (tarfile.TarError, OSError, EOFError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            self.skipped.append(SkippedSample(path.name, f"the archive can't be read to its end: {reason}"))

    def __len__(self) -> int:
        """Number of samples with an image."""
        return len(self._samples)

    def id(self, index: int) -> str:
        """Archive and key."""
        return self._samples[index][0]

    def open(self, index: int) -> bytes:
        """The image's bytes."""
        return self._read(self._samples[index][1])

    def _read(self, member: _Member) -> bytes:
        with self._archives[member.archive].open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size)

    def columns(self, index: int) -> dict[str, Any]:
        """The sample's .cls as "label", its .txt as "caption" and the keys of its .json."""
        columns: dict[str, Any] = {}
        for suffix, member in self._samples[index][2].items():
            if member.size > MAX_COLUMN_BYTES:
                continue
            text = self._read(member).decode("utf-8", "replace").strip()
            if suffix == ".json":
                columns |= _json_columns(text)
            else:
                columns[COLUMN_SUFFIXES[suffix]] = int(text) if suffix == ".cls" and text.isdecimal() else text
        return columns


def _split_name(name: str) -> tuple[str, str]:
    """webdataset's key, up to the first dot of the file's name, and the last suffix in lower case."""
    path = Path(name)
    key = path.with_name(path.name.partition(".")[0])
    return key.as_posix(), path.suffix.lower()


def _json_columns(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: value for key, value in values.items() if key not in RESERVED}
