"""Whole data sets, sample by sample: what a source is, and the one that a name stands for.

A source is numbered, so that a job can be divided among processes, stopped and continued: sample i is the same for all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from ul_tokenizer.media.clips import ClipPart

RESERVED = ("id", "latent", "path")  # names that latent data sets have already


class SkippedSample(NamedTuple):
    """A sample that is passed over, and why."""

    id: str
    reason: str


class SampleSource(Protocol):
    """Numbered samples."""

    class_names: tuple[str, ...]  # what integers under "label" stand for; empty if unknown
    skipped: list[SkippedSample]  # what was left out before anything was read

    def __len__(self) -> int:
        """Number of samples, readable or not."""
        ...

    def id(self, index: int) -> str:
        """Unique, and the same in every run."""
        ...

    def open(self, index: int) -> Path | bytes | ClipPart:
        """The encoded image, a file or its bytes, or where a clip is; raises `UnreadableImageError` or OSError."""
        ...

    def columns(self, index: int) -> dict[str, Any]:
        """Label, caption and whatever else is known of the sample, in values that JSON holds."""
        ...
