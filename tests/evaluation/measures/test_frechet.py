"""The Fréchet distance against what is known of it in closed form."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch

from ul_tokenizer.evaluation.measures.frechet import Gaussian, Moments, frechet_distance


def gaussian(mean: list[float], covariance: list[list[float]]) -> Gaussian:
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(covariance, dtype=torch.float64))


def test_of_independent_features_it_is_the_distance_of_means_and_of_standard_deviations() -> None:
    first = gaussian([1, 2, 3], [[1, 0, 0], [0, 4, 0], [0, 0, 9]])
    second = gaussian([1, 0, 0], [[4, 0, 0], [0, 4, 0], [0, 0, 0]])
    assert frechet_distance(first, second) == pytest.approx((4 + 9) + (1 + 0 + 9), rel=1e-12)


def test_of_correlated_features_it_is_the_closed_form_for_two_dimensions() -> None:
    a, b = [[2.0, 0.7], [0.7, 1.0]], [[1.0, -0.4], [-0.4, 3.0]]
    product = torch.tensor(a, dtype=torch.float64) @ torch.tensor(b, dtype=torch.float64)
    trace_of_root = (product.trace() + 2 * product.det().sqrt()).sqrt()  # of a 2×2 matrix with positive eigenvalues
    expected = 2 + 1 + 1 + 3 - 2 * float(trace_of_root)
    assert frechet_distance(gaussian([0, 0], a), gaussian([0, 0], b)) == pytest.approx(expected, rel=1e-12)


def test_it_is_symmetric() -> None:
    torch.manual_seed(0)
    first, second = Gaussian.of(torch.randn(50, 5) @ torch.randn(5, 5)), Gaussian.of(torch.randn(50, 5))
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-10)


@pytest.mark.parametrize("rank", [64, 5])
def test_of_a_set_to_itself_it_is_zero_even_with_features_that_say_nothing(rank: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(500, rank) @ torch.randn(rank, 64)
    features[:, 60:] = 0
    itself = Gaussian.of(features)
    assert 0 <= frechet_distance(itself, itself) < 1e-8 * float(itself.covariance.trace())


def test_a_shift_adds_its_square() -> None:
    torch.manual_seed(0)
    features = torch.randn(500, 8, dtype=torch.float64)
    distances = [frechet_distance(Gaussian.of(features), Gaussian.of(features + s)) for s in (0.1, 1.0, 3.0)]
    assert distances == pytest.approx([8 * 0.01, 8 * 1.0, 8 * 9.0], rel=1e-9)


def test_samples_of_one_distribution_come_nearer_with_their_number() -> None:
    torch.manual_seed(0)
    few, many = (frechet_distance(*(Gaussian.of(torch.randn(n, 8)) for _ in range(2))) for n in (50, 5000))
    assert 0 < many < few / 10


def test_large_features_in_fp32_lose_nothing() -> None:
    torch.manual_seed(0)
    features = torch.randn(1000, 4).round(decimals=2)
    near, far = Gaussian.of(features), Gaussian.of((features + 4096).float())
    assert torch.allclose(near.covariance, far.covariance, rtol=1e-2)
    assert Gaussian.of(features).covariance.dtype == torch.float64


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        (torch.zeros(1, 4), r"at least 2 samples, got \(1, 4\)"),
        (torch.zeros(4), r"\(N, D\)"),
        (torch.full((3, 2), torch.nan), "finite, got 6 values"),
    ],
)
def test_features_without_a_covariance_are_refused(features: torch.Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Gaussian.of(features)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_it_is_the_distance_by_scipys_matrix_root(mean: float) -> None:
    torch.manual_seed(0)
    mixing = torch.randn(48, 48) / 7
    first, second = torch.rand(300, 48) @ mixing + mean, 0.8 * torch.randn(400, 48) @ mixing + mean
    distance = frechet_distance(Gaussian.of(first), Gaussian.of(second))
    a, b = first.double().numpy(), second.double().numpy()
    covariances = np.cov(a.T), np.cov(b.T)
    root = import_module("scipy.linalg").sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(sum(covariances) - 2 * root)
    assert distance == pytest.approx(expected, rel=1e-8)


# ---------------------------------------------------------------- moments


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("sizes", [[1] * 300, [300], [0, 7, 1, 150, 0, 142], [299, 1], [64] * 4 + [44]])
def test_moments_of_batches_are_those_of_the_whole(mean: float, sizes: list[int]) -> None:
    torch.manual_seed(0)
    features = torch.randn(300, 16) @ torch.randn(16, 16) * torch.logspace(-2, 2, 16) + mean
    moments = Moments(16)
    for batch in features.split(sizes):
        moments.add(batch)
    gathered, whole = moments.gaussian(), Gaussian.of(features)
    deviations = whole.covariance.diagonal().sqrt()
    assert moments.count == 300
    assert torch.allclose(gathered.mean, whole.mean, rtol=1e-12, atol=0 if mean else 1e-12)
    assert ((gathered.covariance - whole.covariance).abs() <= 1e-9 * deviations.outer(deviations)).all()
    assert torch.allclose(gathered.covariance.diagonal(), whole.covariance.diagonal(), rtol=1e-9, atol=0)
    assert frechet_distance(gathered, whole) <= 1e-7 * float(whole.covariance.trace())


def test_a_gaussian_stays_while_moments_go_on() -> None:
    moments = Moments(3)
    moments.add(torch.eye(3))
    before = moments.gaussian()
    mean, covariance = before.mean.clone(), before.covariance.clone()
    moments.add(torch.ones(2, 3))
    assert torch.equal(before.mean, mean) and torch.equal(before.covariance, covariance)
    assert not torch.equal(moments.gaussian().mean, mean)


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        (torch.zeros(2, 3), r"\(B, 4\), got \(2, 3\)"),
        (torch.zeros(4), r"\(B, 4\), got \(4,\)"),
        (torch.tensor([[1.0, torch.nan, 3, -torch.inf]]), "finite, got 2 values"),
    ],
)
def test_features_that_moments_cannot_take_are_refused_and_change_nothing(
    features: torch.Tensor, sentence: str
) -> None:
    moments = Moments(4)
    with pytest.raises(ValueError, match=sentence):
        moments.add(features)
    assert moments.count == 0


@pytest.mark.parametrize("samples", [0, 1])
def test_too_few_samples_have_no_covariance(samples: int) -> None:
    moments = Moments(4)
    moments.add(torch.zeros(samples, 4))
    with pytest.raises(ValueError, match=f"at least 2 samples .*, got {samples}"):
        moments.gaussian()
