"""Precision, recall, density, coverage and neighbours beside their definitions, over all pairs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ul_tokenizer.evaluation.measures import manifold
from ul_tokenizer.evaluation.measures.manifold import ManifoldMetrics, manifold_metrics, nearest_neighbours

distances_of = import_module("scipy.spatial.distance").cdist


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifold, "BLOCK", 37)  # so that every test has several blocks, and a smaller last one


def two_sets(dim: int = 6, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Generated and real samples that overlap in part."""
    random = torch.Generator().manual_seed(0)
    generated = 0.7 * torch.randn(130, dim, generator=random, dtype=torch.float64) + 0.6
    return generated + offset, torch.randn(170, dim, generator=random, dtype=torch.float64) + offset


def by_definition(generated: np.ndarray, real: np.ndarray, k_precision: int, k_density: int) -> ManifoldMetrics:
    def radii(x: np.ndarray, k: int) -> np.ndarray:
        to_others = [np.sort(np.delete(row, i)) for i, row in enumerate(distances_of(x, x))]
        return np.array([row[k - 1] for row in to_others])

    pairs = distances_of(generated, real)
    in_dense_ball = pairs <= radii(real, k_density)[None]
    return ManifoldMetrics(
        precision=(pairs <= radii(real, k_precision)[None]).any(1).mean(),
        recall=(pairs <= radii(generated, k_precision)[:, None]).any(0).mean(),
        density=in_dense_ball.sum() / (k_density * len(generated)),
        coverage=in_dense_ball.any(0).mean(),
    )


@pytest.mark.parametrize(("k_precision", "k_density"), [(3, 5), (1, 1), (6, 2)])
@pytest.mark.parametrize("dim", [2, 6, 40])
def test_the_metrics_are_their_definitions(k_precision: int, k_density: int, dim: int) -> None:
    generated, real = two_sets(dim)
    result = manifold_metrics(generated, real, k_precision, k_density)
    assert result == pytest.approx(by_definition(generated.numpy(), real.numpy(), k_precision, k_density), abs=1e-12)
    assert len(set(result)) == 4  # a figure in another's place would be seen


def test_large_features_change_nothing() -> None:
    near, far = two_sets(), two_sets(offset=1e6)
    assert manifold_metrics(*far) == manifold_metrics(*near)
    moved = nearest_neighbours(*far, k=3)
    assert torch.allclose(moved.distances, nearest_neighbours(*near, k=3).distances, rtol=1e-8)


def test_a_set_covers_itself_even_if_distances_tie() -> None:
    corners = torch.cartesian_prod(
        *[torch.tensor([-0.1, 0.2, 0.5], dtype=torch.float64)] * 4
    )  # each has neighbours at one distance
    result = manifold_metrics(corners, corners)
    assert result == pytest.approx(by_definition_with_ties(corners.numpy()), abs=1e-12)
    assert result.precision == result.recall == result.coverage == 1


def by_definition_with_ties(x: np.ndarray) -> ManifoldMetrics:
    """The same set twice; distances are rounded, so that equal ones are equal."""
    pairs = distances_of(x, x).round(6)
    counts = [(pairs <= np.sort(pairs, 1)[:, k][None]).sum() for k in (3, 5)]
    return ManifoldMetrics(1, 1, counts[1] / (5 * len(x)), 1)


def test_sets_far_apart_share_nothing_and_a_collapsed_one_has_no_recall() -> None:
    generated, real = two_sets()
    assert manifold_metrics(generated + 100, real) == (0, 0, 0, 0)
    collapsed = manifold_metrics(real[:1].expand(130, -1), real)
    assert collapsed.precision == 1
    assert collapsed.recall == 1 / 170  # only the real sample itself lies in balls without extent
    assert collapsed.coverage < 0.2


@pytest.mark.parametrize("k", [1, 4, 170])
def test_neighbours_are_the_nearest_of_all(k: int) -> None:
    queries, candidates = two_sets()
    distances, indices = nearest_neighbours(queries, candidates, k)
    pairs = distances_of(queries.numpy(), candidates.numpy())
    assert indices.shape == (130, k) and distances.dtype == torch.float64
    assert (indices.numpy() == pairs.argsort(1)[:, :k]).all()
    assert np.allclose(distances.numpy(), np.sort(pairs, 1)[:, :k], rtol=1e-12)


def test_a_copy_is_found_at_distance_zero_in_fp32_far_from_the_origin() -> None:
    candidates = (two_sets(dim=64, offset=1e4)[1]).float()
    distances, indices = nearest_neighbours(candidates[[150, 3]], candidates)
    assert indices.flatten().tolist() == [150, 3] and distances.flatten().tolist() == [0, 0]


def test_no_queries_have_no_neighbours() -> None:
    distances, indices = nearest_neighbours(torch.zeros(0, 6), two_sets()[1], k=2)
    assert distances.shape == indices.shape == (0, 2)


def test_a_memory_map_gives_the_same_figures(tmp_path: Path) -> None:
    generated, real = (x.float() for x in two_sets())
    np.save(tmp_path / "real.npy", real.numpy())
    mapped = np.load(tmp_path / "real.npy", mmap_mode="r")
    assert manifold_metrics(generated, mapped) == manifold_metrics(generated, real)
    assert torch.equal(nearest_neighbours(mapped, generated, 2).indices, nearest_neighbours(real, generated, 2).indices)


@pytest.mark.parametrize(
    ("generated", "real", "options", "sentence"),
    [
        (torch.zeros(3, 2), torch.zeros(9, 2), {}, "generated must have more than 3 samples, .* got 3"),
        (torch.zeros(4, 2), torch.zeros(5, 2), {}, "real must have more than 5 samples, .* got 5"),
        (torch.zeros(9, 2), torch.zeros(9, 3), {}, "real must have as many features as generated, 2, got 3"),
        (torch.zeros(9, 2), torch.full((9, 2), torch.inf), {}, "real must be finite, got 18 values"),
        (torch.zeros(9, 2), torch.zeros(9, 2), {"k_density": 0}, "k_density must be at least 1, got 0"),
    ],
)
def test_sets_without_balls_are_refused(
    generated: Tensor, real: Tensor, options: dict[str, int], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        manifold_metrics(generated, real, **options)


@pytest.mark.parametrize("k", [0, 10])
def test_more_neighbours_than_candidates_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k must be from 1 to the number of candidates, 9, got {k}"):
        nearest_neighbours(torch.zeros(2, 2), torch.zeros(9, 2), k)
