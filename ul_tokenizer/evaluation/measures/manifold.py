"""How two sets of features cover each other, by balls around samples, and nearest neighbours.

The ball of a sample reaches to its k-th nearest neighbour in its own set. With M generated samples and N real ones:

    precision   fraction of generated samples in at least one real ball       (Kynkäänniemi et al. 2019)
    recall      fraction of real samples in at least one generated ball       (likewise)
    density     number of real balls that hold a generated sample, mean / k   (Naeem et al. 2020)
    coverage    fraction of real balls that hold at least one generated sample   (likewise)

Distances are Euclidean and computed in float64, a block of rows against a block of columns at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ul_tokenizer.evaluation.measures.feature_sets import FeatureSet, blocks, check_pair, rows

BLOCK = 1024  # rows; whatever the number of samples, 2,048 features then take about 220 MB


class ManifoldMetrics(NamedTuple):
    """Fractions from 0 to 1, except density, which may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


class Neighbours(NamedTuple):
    """The nearest candidates of each query, nearest first."""

    distances: Tensor  # (N, k), float64; exactly 0 between equal features
    indices: Tensor  # (N, k), int64


def nearest_neighbours(queries: FeatureSet, candidates: FeatureSet, k: int = 1) -> Neighbours:
    """The k nearest candidates of each query.

    A query that is among the candidates finds itself, so ask for one more neighbour where that is not wanted.

    Args:
        queries: features (N, D), a tensor or an array, which may be a memory map.
        candidates: features (M, D), likewise.
        k: number of neighbours, at most M.

    Raises:
        ValueError: features that aren't finite or differ in D, or fewer than k candidates.
    """
    check_pair(("queries", "candidates"), queries, candidates)
    if not 1 <= k <= len(candidates):
        raise ValueError(f"k must be from 1 to the number of candidates, {len(candidates)}, got {k}.")
    centre = _mean(candidates)
    parts = [_nearest(block, candidates, centre, k) for _, block in blocks(queries, BLOCK)]
    if not parts:
        return Neighbours(torch.empty(0, k, dtype=torch.float64), torch.empty(0, k, dtype=torch.int64))
    distances, indices = (torch.cat(part) for part in zip(*parts, strict=True))
    return Neighbours(distances, indices)


def manifold_metrics(
    generated: FeatureSet, real: FeatureSet, k_precision: int = 3, k_density: int = 5
) -> ManifoldMetrics:
    """Precision, recall, density and coverage of generated samples.

    Args:
        generated: features (M, D), a tensor or an array, which may be a memory map.
        real: features (N, D), likewise.
        k_precision: neighbour to which a ball reaches, for precision and recall.
        k_density: the same for density and coverage.

    Raises:
        ValueError: features that aren't finite or differ in D, k below 1, or a set without a k-th neighbour.
    """
    check_pair(("generated", "real"), generated, real)
    for name, k in (("k_precision", k_precision), ("k_density", k_density)):
        if k < 1:
            raise ValueError(f"{name} must be at least 1, got {k}.")
    for name, features, k in (("generated", generated, k_precision), ("real", real, max(k_precision, k_density))):
        if len(features) <= k:
            raise ValueError(
                f"{name} must have more than {k} samples, so that each has {k} neighbours, got {len(features)}."
            )
    real_radii = nearest_neighbours(real, real, max(k_precision, k_density) + 1).distances  # itself comes first
    generated_radii = nearest_neighbours(generated, generated, k_precision + 1).distances[:, k_precision]
    return _count_in_balls(generated, real, generated_radii, real_radii[:, [k_precision, k_density]], k_density)


def _count_in_balls(
    generated: FeatureSet, real: FeatureSet, generated_radii: Tensor, real_radii: Tensor, k_density: int
) -> ManifoldMetrics:
    """Counts with the radii (M,) of generated balls and (N, 2) of real ones, for precision and for density."""
    centre = _mean(real)
    precise, in_balls = 0, 0
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    for first, block in blocks(generated, BLOCK):
        x = block - centre
        x_reach = _reach(x, generated_radii[first : first + len(x)])[:, None]
        in_any = torch.zeros(len(x), dtype=torch.bool)
        for start, other in blocks(real, BLOCK):
            part = slice(start, start + len(other))
            y = other - centre
            squares = _squared_distances(x, y)
            in_any |= (squares <= _reach(y, real_radii[part, 0])).any(1).cpu()
            recalled[part] |= (squares <= x_reach).any(0).cpu()
            in_ball = squares <= _reach(y, real_radii[part, 1])
            in_balls += int(in_ball.sum())
            covered[part] |= in_ball.any(0).cpu()
        precise += int(in_any.sum())
    density = in_balls / (k_density * len(generated))
    fractions = [float(hits.double().mean()) for hits in (recalled, covered)]
    return ManifoldMetrics(precise / len(generated), fractions[0], density, fractions[1])


def _reach(centres: Tensor, radii: Tensor) -> Tensor:
    """Squared radii (N,), with room for rounding: a sample on the edge of a ball is in it."""
    return radii.to(centres.device).square() * (1 + 1e-9) + 1e-12 * centres.square().sum(1)


def _nearest(queries: Tensor, candidates: FeatureSet, centre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances and indices (N, k) for a block of queries."""
    x = queries - centre
    squares, indices = x.new_empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    for first, block in blocks(candidates, BLOCK):
        new = torch.arange(first, first + len(block), device=x.device).expand(len(x), -1)
        squares = torch.cat([squares, _squared_distances(x, block - centre)], 1)
        squares, kept = squares.topk(min(k, squares.shape[1]), largest=False)
        indices = torch.cat([indices, new], 1).gather(1, kept)
    # The product's rounding is gone when the few distances are computed once more, from differences.
    columns = [(queries - rows(candidates, column.cpu().numpy())).norm(dim=1) for column in indices.T]
    distances, order = torch.stack(columns, 1).sort(dim=1, stable=True)
    return distances.cpu(), indices.gather(1, order).cpu()


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x − y|² of all pairs, (N, M), by a matrix product, which is far quicker than differences."""
    return (x @ y.T).mul_(-2).add_(x.square().sum(1)[:, None]).add_(y.square().sum(1))


def _mean(features: FeatureSet) -> Tensor:
    """Mean (D,). Features are taken relative to it, so that the product of large features loses nothing."""
    sums = [block.sum(0) for _, block in blocks(features, BLOCK)]
    return torch.stack(sums).sum(0) / len(features)
