"""What a source is: the numbered samples of a data set, which encoding and training read alike.

Samples are numbered so that a job can be divided among processes, stopped and continued: every process and every run
gives the same number to the same sample.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from ul_tokenizer.media.clips import ClipPart

CAPTION = "caption"  # column with the captions, unless another one is chosen
RESERVED = ("id", "latent", "path")  # columns that every latent data set has
MAX_CLASSES = 1 << 16  # larger numbers under "label" are taken for something other than classes

EncodedSample: TypeAlias = "Path | bytes | ClipPart"
"""The file of an image, its bytes, or the place of a clip in a video."""


class SkippedSample(NamedTuple):
    """A sample that is left out, and the reason."""

    id: str
    reason: str


class Source(Protocol):
    """The numbered samples of a data set."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class; integers in the column "label" index it. Empty if the classes are unknown."""
        ...

    @property
    def skipped(self) -> list[SkippedSample]:
        """Files and samples that were left out when the source was opened."""
        ...

    def __len__(self) -> int:
        """Number of samples, including those that turn out to be unreadable."""
        ...

    def id(self, index: int) -> str:
        """A name that is unique in the source and the same in every run."""
        ...

    def open(self, index: int) -> EncodedSample:
        """The encoded sample; nothing is decoded.

        Raises:
            UnreadableImageError: The sample holds no image.
            OSError: The data can't be read.
            ValueError: The data is damaged.
        """
        ...

    def columns(self, index: int) -> dict[str, Any]:
        """What is known of the sample, such as "label" and "caption", as values that JSON can hold."""
        ...


@runtime_checkable
class BlockedSource(Protocol):
    """A source whose neighbouring samples are stored together, so that they are best read together."""

    def block_sizes(self) -> list[int]:
        """Number of samples in each block, in the order of the samples; together they are all samples."""
        ...

    def keep_blocks(self, count: int) -> None:
        """Keeps this number of blocks in memory, once they were read."""
        ...


@runtime_checkable
class StampedSource(Protocol):
    """A source that notices changes of its files."""

    def stamp(self, index: int) -> str:
        """A text that changes when the file, archive or table that holds the sample changes."""
        ...


def stamp_of_file(path: Path) -> str:
    """A text that changes when a file changes: its size and the time of its last change. Errors are OSErrors."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def label_of(source: Source, index: int) -> int | None:
    """The class of a sample, or None if the source has no classes or the sample has no label.

    Raises:
        ValueError: The label is not below the number of classes.
    """
    return label_in(source.columns(index), source, index) if source.class_names else None


def label_in(columns: Mapping[str, Any], source: Source, index: int) -> int | None:
    """The class in a sample's columns; None if there is none.

    Raises:
        ValueError: the class has no name in `source.class_names`.
    """
    label = columns.get("label")
    if not source.class_names or not isinstance(label, int) or label < 0:  # -1 often marks a missing label
        return None
    if label >= len(source.class_names):
        raise ValueError(f"labels must be below {len(source.class_names)}, got {label} for {source.id(index)}.")
    return label


def caption_in(columns: Mapping[str, Any], column: str = CAPTION) -> str | None:
    """The caption in a sample's columns; None if it has none."""
    caption = columns.get(column)
    return None if caption is None else str(caption)  # a CSV file's "1984" was read as a number


def integer_or_text(text: str | None) -> int | str | None:
    """The value of a cell in a format without types: what looks like an integer of at most 64 bits becomes one."""
    return int(text) if text is not None and re.fullmatch(r"-?[0-9]{1,18}", text) else text


def numbered_classes(labels: Iterable[Any]) -> tuple[str, ...]:
    """Names for classes that only have numbers: "0", "1", … up to the largest label.

    Returns:
        The names; empty if there are no labels, if some are not integers, or if one is above `MAX_CLASSES`.
    """
    largest = -1
    for label in labels:
        if label is None or label == "":
            continue
        if type(label) is not int or label >= MAX_CLASSES:
            return ()
        largest = max(largest, label)
    return tuple(map(str, range(largest + 1)))
