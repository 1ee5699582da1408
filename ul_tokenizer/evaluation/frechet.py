"""Fréchet distance between two sets of features, in float64.

    d²(N₁, N₂) = |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁ Σ₂)^½

On Inception's features this is the FID; on those of another network it has to be called by another name.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """Mean and covariance of features."""

    mean: Tensor  # (D,), float64
    covariance: Tensor  # (D, D), float64

    @classmethod
    def of(cls, features: Tensor) -> Gaussian:
        """Fits features (N, D) of any float dtype; the covariance is the unbiased one.

        Raises:
            ValueError: fewer than two samples, another rank, or values that aren't finite.
        """
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features must be (N, D) with at least 2 samples, got {tuple(features.shape)}.")
        if not features.isfinite().all():
            raise ValueError(f"features must be finite, got {int((~features.isfinite()).sum())} values that are not.")
        values = features.double()
        return cls(values.mean(0), values.T.cov().reshape(values.shape[1], values.shape[1]))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """d² of two Gaussians of the same D, at least 0."""
    root = _square_root(first.covariance)
    # Σ₁^½ Σ₂ Σ₁^½ has the eigenvalues of Σ₁Σ₂ and is symmetric: features that are always 0 do no harm.
    eigenvalues = torch.linalg.eigvalsh(root @ second.covariance @ root)
    traces = first.covariance.trace() + second.covariance.trace()
    distance = (first.mean - second.mean).square().sum() + traces - 2 * eigenvalues.clamp(min=0).sqrt().sum()
    return max(float(distance), 0.0)


def _square_root(covariance: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    return (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T
