"""Sets of features (N, D) in memory or in a memory map: what is legal, and rows of them in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Indices = np.ndarray[Any, np.dtype[np.int64]]


class StoredFeatures(Protocol):
    """Features (N, D), fp32, of which rows are read when they are needed."""

    shape: tuple[int, int]
    ndim: int

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Indices, /) -> np.ndarray[Any, Any]: ...


FeatureSet = Tensor | np.ndarray | StoredFeatures  # (N, D), of any float dtype


def rows(features: FeatureSet, which: slice | Indices) -> Tensor:
    """Some rows, (n, D) in float64; of a memory map, nothing else is read."""
    if isinstance(features, Tensor):
        return features[which if isinstance(which, slice) else torch.from_numpy(which)].detach().double()
    return torch.from_numpy(np.array(features[which], np.float64))


def blocks(features: FeatureSet, size: int) -> Iterator[tuple[int, Tensor]]:
    """All rows in blocks (n, D) of at most `size`, in float64, each with the index of its first row."""
    for first in range(0, len(features), size):
        yield first, rows(features, slice(first, first + size))


def check_pair(names: tuple[str, str], first: FeatureSet, second: FeatureSet) -> None:
    """Checks that two sets hold finite features of one dimension.

    Raises:
        ValueError: another rank, values that aren't finite, or different dimensions; the sentence has the set's name.
    """
    for name, features in zip(names, (first, second), strict=True):
        if features.ndim != 2:
            raise ValueError(f"{name} must be features (N, D), got {tuple(features.shape)}.")
        if bad := sum(int((~block.isfinite()).sum()) for _, block in blocks(features, 1024)):
            raise ValueError(f"{name} must be finite, got {bad} values that are not.")
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{names[1]} must have as many features as {names[0]}, {first.shape[1]}, got {second.shape[1]}."
        )
