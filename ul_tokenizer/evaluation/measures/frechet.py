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
        _check_finite(features)
        values = features.double()
        return cls(values.mean(0), values.T.cov().reshape(values.shape[1], values.shape[1]))


class Moments:
    """Gathers the mean and covariance of features batch by batch, in float64.

    Each batch is centred on its own mean before it is added (Chan et al. 1979), so that large means cost no digits.

    Args:
        dim: number of features, D.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)  # sum of the products of centred features

    def add(self, features: Tensor) -> None:
        """Takes a batch (B, D) of any float dtype; B may be 0.

        Raises:
            ValueError: another shape, or values that aren't finite.
        """
        if features.ndim != 2 or features.shape[1] != len(self._mean):
            raise ValueError(f"features must be (B, {len(self._mean)}), got {tuple(features.shape)}.")
        _check_finite(features)
        if not len(features):
            return
        values = features.detach().cpu().double()
        mean = values.mean(0)
        centred, shift = values - mean, mean - self._mean
        total = self.count + len(values)
        self._scatter += centred.T @ centred + shift.outer(shift) * (self.count * len(values) / total)
        self._mean += shift * (len(values) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """The Gaussian of all features so far, as `Gaussian.of` fits it; later batches don't change it.

        Raises:
            ValueError: fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"features must have at least 2 samples for a covariance, got {self.count}.")
        return Gaussian(self._mean.clone(), self._scatter / (self.count - 1))


def _check_finite(features: Tensor) -> None:
    if not features.isfinite().all():
        raise ValueError(f"features must be finite, got {int((~features.isfinite()).sum())} values that are not.")


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
