"""A part of another source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ul_tokenizer.sources.base import BlockedSource, EncodedSample, SkippedSample, Source, StampedSource


class Subset:
    """Some samples of another source, for example a held-out split; itself a `Source`.

    Args:
        source: The other source.
        indices: Numbers of its samples, in the order in which the subset has them.
    """

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray[Any, np.dtype[np.int64]]) -> None:
        self.source = source
        self._indices = np.asarray(indices, dtype=np.int64)  # one block of memory, which worker processes share

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the whole source, so that labels mean the same in every subset."""
        return self.source.class_names

    @property
    def skipped(self) -> list[SkippedSample]:
        """What the whole source left out."""
        return self.source.skipped

    def __len__(self) -> int:
        """Number of samples in the subset."""
        return len(self._indices)

    def id(self, index: int) -> str:
        """The sample's id in the whole source."""
        return self.source.id(int(self._indices[index]))

    def open(self, index: int) -> EncodedSample:
        """The encoded sample; errors as those of the whole source."""
        return self.source.open(int(self._indices[index]))

    def columns(self, index: int) -> dict[str, Any]:
        """The sample's columns."""
        return self.source.columns(int(self._indices[index]))

    def block_sizes(self) -> list[int]:
        """How many of its samples each block of the whole source has; the subset must be in ascending order.

        A source without blocks has blocks of one sample.
        """
        if not isinstance(self.source, BlockedSource):
            return [1] * len(self)
        ends = np.cumsum(self.source.block_sizes())
        return [int(size) for size in np.diff(np.searchsorted(self._indices, ends), prepend=0) if size]

    def keep_blocks(self, count: int) -> None:
        """Keeps blocks of the whole source in memory."""
        if isinstance(self.source, BlockedSource):
            self.source.keep_blocks(count)

    def stamp(self, index: int) -> str:
        """The stamp of the sample in the whole source; empty if that has none."""
        source = self.source
        return source.stamp(int(self._indices[index])) if isinstance(source, StampedSource) else ""
