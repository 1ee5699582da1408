"""The kernel distance beside an independent computation, and torchmetrics'."""

from __future__ import annotations

import math
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ul_tokenizer.evaluation.measures.kernel_distance import KernelDistance, kernel_distance, squared_mmd


def two_sets(shift: float = 0.3, samples: tuple[int, int] = (90, 120), dim: int = 24) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(samples[0], dim, generator=random), torch.rand(samples[1], dim, generator=random) + shift


def by_sums_over_pairs(x: np.ndarray, y: np.ndarray) -> float:
    """MMD² as a double sum over samples, in Python's floats."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (math.fsum((a * b).tolist()) / len(a) + 1) ** 3

    def mean_of_others(z: np.ndarray) -> float:
        values = [kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
        return math.fsum(values) / len(values)

    return mean_of_others(x) + mean_of_others(y) - 2 * math.fsum(kernel(a, b) for a in x for b in y) / len(x) / len(y)


def test_the_mmd_of_two_sets_is_its_sum_over_pairs() -> None:
    x, y = (z.double() for z in two_sets(samples=(20, 31)))
    assert float(squared_mmd(x, y)) == pytest.approx(by_sums_over_pairs(x.numpy(), y.numpy()), rel=1e-12)


def test_subsets_are_those_of_torch_fidelity() -> None:
    a, b = (z.double().numpy() for z in two_sets())
    random, values = np.random.RandomState(2020), []
    for _ in range(4):
        x = a[random.choice(90, 25, replace=False)]
        y = b[random.choice(120, 25, replace=False)]
        values.append(by_sums_over_pairs(x, y))
    result = kernel_distance(*two_sets(), subsets=4, subset_size=25)
    assert result.mean == pytest.approx(np.mean(values), rel=1e-9)
    assert result.std == pytest.approx(np.std(values), rel=1e-9)


def test_of_whole_sets_it_is_torchmetrics() -> None:
    a, b = two_sets(samples=(100, 100))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it keeps all features
        metric: Any = import_module("torchmetrics.image.kid").KernelInceptionDistance(nn.Identity(), 3, subset_size=100)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    mean, std = metric.compute()
    result = kernel_distance(a, b, subsets=3)
    assert result.mean == pytest.approx(float(mean), rel=1e-6) and result.mean > 0.1
    assert result.std == pytest.approx(0, abs=1e-12) and float(std) == pytest.approx(0, abs=1e-6)


def test_a_subset_is_no_larger_than_the_smaller_set() -> None:
    smaller, larger = two_sets()
    for sets in ((smaller, larger), (larger, smaller)):
        result = kernel_distance(*sets, subsets=2)
        assert result == KernelDistance(result.mean, result.std, 2, 90)


def test_it_has_no_bias() -> None:
    a, b = torch.randn(400, 8, generator=torch.Generator().manual_seed(1)).split(200)
    result = kernel_distance(a, b, subsets=200, subset_size=20)
    assert abs(result.mean) < 3 * result.std / math.sqrt(400 / 40)  # as many independent values as 20 go into a set
    assert kernel_distance(a, b + 1, subsets=20, subset_size=20).mean > 10 * abs(result.mean)


def test_a_memory_map_gives_the_same_figure(tmp_path: Path) -> None:
    a, b = two_sets()
    np.save(tmp_path / "a.npy", a.numpy())
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert kernel_distance(mapped, b.numpy(), 3, 50) == kernel_distance(a, b, 3, 50)


@pytest.mark.parametrize(
    ("a", "options", "sentence"),
    [
        (torch.zeros(1, 24), {}, "features_a must have at least 2 samples, got 1"),
        (torch.zeros(5, 23), {}, "features_b must have as many features as features_a, 23, got 24"),
        (torch.zeros(24), {}, r"features_a must be features \(N, D\), got \(24,\)"),
        (torch.full((2, 24), torch.nan), {}, "features_a must be finite, got 48 values"),
        (torch.zeros(5, 24), {"subsets": 0}, "subsets must be at least 1, got 0"),
        (torch.zeros(5, 24), {"subset_size": 1}, "subset_size must be at least 2, got 1"),
    ],
)
def test_sets_without_a_distance_are_refused(a: Tensor, options: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        kernel_distance(a, two_sets()[1], **options)
