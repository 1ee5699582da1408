"""Intervals cover the truth as often as they say, and only if groups are resampled as groups."""

from __future__ import annotations

import math
import time
import tracemalloc

import pytest
import torch
from torch import Tensor

from ul_tokenizer.evaluation.measures.bootstrap import Interval, bootstrap_mean
from ul_tokenizer.evaluation.measures.metrics import psnr


def crops_of_images(images: int, crops: int, seed: int) -> tuple[Tensor, Tensor]:
    """Values of crops, with the mean 3; all crops of an image are almost equal."""
    random = torch.Generator().manual_seed(seed)
    values = 3 + torch.randn(images, 1, generator=random) + 0.1 * torch.randn(images, crops, generator=random)
    return values.flatten().double(), torch.arange(images).repeat_interleave(crops)


def coverage(intervals: list[Interval], truth: float) -> float:
    return sum(interval.low <= truth <= interval.high for interval in intervals) / len(intervals)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    draws = [crops_of_images(60, 5, seed) for seed in range(300)]
    for level in (0.8, 0.95):
        intervals = [bootstrap_mean(*draw, resamples=300, level=level, seed=i) for i, draw in enumerate(draws)]
        assert coverage(intervals, 3.0) == pytest.approx(level, abs=0.05)


def test_crops_taken_for_images_would_promise_too_much() -> None:
    draws = [crops_of_images(60, 5, seed)[0] for seed in range(100)]
    intervals = [bootstrap_mean(values, torch.arange(300), resamples=200) for values in draws]
    assert coverage(intervals, 3.0) < 0.8


def test_an_interval_is_as_wide_as_the_standard_error_says() -> None:
    values, groups = crops_of_images(400, 5, 0)
    value, low, high = bootstrap_mean(values, groups, resamples=4000)
    error = float(values.reshape(400, 5).mean(1).std()) / math.sqrt(400)
    assert value == pytest.approx(float(values.mean()), abs=1e-12)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.08)
    assert (high + low) / 2 == pytest.approx(value, abs=0.2 * error)


def test_groups_of_different_sizes_keep_the_mean_of_all_rows() -> None:
    values, groups = torch.tensor([0.0, 0, 0, 8]), torch.tensor([5, 5, 5, -1])
    value, low, high = bootstrap_mean(values, groups)
    assert (value, low, high) == (2.0, 0.0, 8.0)  # both groups once, or one of them twice


def test_the_order_of_rows_and_the_names_of_groups_say_nothing() -> None:
    values, groups = crops_of_images(30, 4, 0)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    shuffled = bootstrap_mean(values[order], groups[order])
    assert shuffled == pytest.approx(bootstrap_mean(values, 7 * groups + 100), abs=1e-12)


def test_the_same_seed_gives_the_same_interval_and_another_one_hardly_another() -> None:
    values, groups = crops_of_images(50, 4, 0)
    first, again, other = (bootstrap_mean(values, groups, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert other == pytest.approx(first, abs=0.05)


def test_a_falling_transform_turns_the_ends_round() -> None:
    values, groups = crops_of_images(50, 4, 0)
    mse, decibel = bootstrap_mean(values.abs(), groups), bootstrap_mean(values.abs(), groups, psnr)
    assert decibel.low < decibel.value < decibel.high
    assert [decibel.value, decibel.high, decibel.low] == pytest.approx(psnr(torch.tensor(mse).double()).tolist())


def test_exact_reconstructions_have_an_infinite_psnr_and_no_nan() -> None:
    assert bootstrap_mean(torch.zeros(5), torch.arange(5), psnr) == (math.inf, math.inf, math.inf)
    one_inexact = bootstrap_mean(torch.eye(5)[0], torch.arange(5), psnr)
    assert one_inexact.low < one_inexact.value < one_inexact.high == math.inf


def test_one_image_has_a_value_and_no_interval() -> None:
    value, low, high = bootstrap_mean(torch.tensor([1.0, 3.0]), torch.tensor([4, 4]))
    assert value == 2 and math.isnan(low) and math.isnan(high)


def test_fifty_thousand_images_take_little_memory_and_time() -> None:
    values, groups = torch.rand(50_000), torch.arange(50_000)
    bootstrap_mean(values, groups, resamples=2)
    start = time.perf_counter()
    bootstrap_mean(values, groups)
    assert time.perf_counter() - start < 10  # about a second on a quiet machine
    tracemalloc.start()
    try:
        bootstrap_mean(values, groups, resamples=20)
        assert tracemalloc.get_traced_memory()[1] < 4 * 50_000 * 8
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"values": torch.zeros(0), "groups": torch.zeros(0).long()}, r"at least one value, got \(0,\)"),
        ({"values": torch.zeros(2, 2)}, r"\(N,\)"),
        ({"values": torch.tensor([1.0, torch.nan, torch.inf])}, "finite, got 2 that are not"),
        ({"groups": torch.zeros(4).long()}, r"3 integers, one for each value, got \(4,\)"),
        ({"groups": torch.zeros(3)}, "in torch.float32"),
        ({"resamples": 0}, "resamples must be at least 1, got 0"),
        ({"level": 95}, "between 0 and 1, got 95"),
    ],
)
def test_what_has_no_interval_is_refused(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        bootstrap_mean(**({"values": torch.ones(3), "groups": torch.arange(3)} | arguments))  # type: ignore[arg-type]
