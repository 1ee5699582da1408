"""A part of another source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ul_tokenizer.sources.base import EncodedSample, SkippedSample, Source


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
