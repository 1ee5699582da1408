"""Kernel distance between two sets of features: the squared maximum mean discrepancy with a cubic kernel.

    k(x, y) = (x·y / D + 1)³
    MMD² = mean of k(x, x') over x ≠ x' + mean of k(y, y') over y ≠ y' − 2 · mean of k(x, y)

It has no bias, so it may be negative, and it needs no more samples than features. On Inception's features it is the KID
(Bińkowski et al. 2018). The mean over random subsets is what is quoted; they are drawn as torch-fidelity draws them, so
that both give the same number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ul_tokenizer.evaluation.measures.feature_sets import FeatureSet, check_pair, rows


class KernelDistance(NamedTuple):
    """MMD² of random subsets."""

    mean: float
    std: float  # of the subsets' values, a measure of their spread and not of the mean's error
    subsets: int
    subset_size: int


def kernel_distance(
    features_a: FeatureSet, features_b: FeatureSet, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> KernelDistance:
    """Mean MMD² of random subsets of two sets, in float64.

    Args:
        features_a: (N, D), a tensor or an array, which may be a memory map.
        features_b: (M, D), likewise.
        subsets: number of pairs of subsets; one is enough where a subset is the whole of both sets.
        subset_size: samples in each subset; lowered to N and M.
        seed: seed of the subsets.

    Raises:
        ValueError: fewer than two samples, features that aren't finite or differ in D, or a number out of range.
    """
    check_pair(("features_a", "features_b"), features_a, features_b)
    for name, number, least in (("subsets", subsets, 1), ("subset_size", subset_size, 2), ("seed", seed, 0)):
        if number < least:
            raise ValueError(f"{name} must be at least {least}, got {number}.")
    for name, features in (("features_a", features_a), ("features_b", features_b)):
        if len(features) < 2:
            raise ValueError(f"{name} must have at least 2 samples, got {len(features)}.")
    size = min(subset_size, len(features_a), len(features_b))
    if size == len(features_a) == len(features_b):  # every subset would be the whole set
        subsets = 1
    # The older generator, because torch-fidelity uses it. Each pair draws from the first set before the second.
    random = np.random.RandomState(seed)
    values = torch.empty(subsets, dtype=torch.float64)
    for index in range(subsets):
        x, y = (
            rows(features, random.choice(len(features), size, replace=False)) for features in (features_a, features_b)
        )
        values[index] = squared_mmd(x, y)
    return KernelDistance(float(values.mean()), float(values.std(correction=0)), subsets, size)


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """MMD² of two sets (N, D) and (M, D) without bias, as a tensor without dimensions."""
    return _mean_of_others(_kernel(x, x)) + _mean_of_others(_kernel(y, y)) - 2 * _kernel(x, y).mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_of_others(kernel: Tensor) -> Tensor:
    """Mean of a matrix (N, N) without its diagonal."""
    return (kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1))
