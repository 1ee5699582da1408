"""Memory, batch and time of a run, by hand."""

from __future__ import annotations

import typing
from dataclasses import replace

import pytest

from ul_tokenizer.training.arguments import TrainingArguments
from ul_tokenizer.training.estimate.counting import StepCost
from ul_tokenizer.training.estimate.gpus import GPUS, Gpu
from ul_tokenizer.training.estimate.plan import Hardware, Plan, Weights

GPU = Gpu("test", 10, 100.0, 50.0, 20.0, "nowhere")
COST = StepCost(10**9, 3 * 10**9, 4 * 10**9, 10**9, 10**8, 4 * 10**8)
PLAN = Plan(COST, 0, Weights(10**8, 0, True, False), Hardware(GPU, 1, 1e14, 0.5), False)


def test_the_arguments_name_the_gpus_that_there_are() -> None:
    assert set(typing.get_args(typing.get_type_hints(TrainingArguments)["dry_run_gpu"])) == set(GPUS)


def test_the_peak_is_that_of_the_precision() -> None:
    assert GPU.peak("bf16", False) == (1e14, "bf16") and GPU.peak("no", True) == (5e13, "TF32")
    assert GPU.peak("no", False) == (2e13, "fp32")


def test_each_trained_weight_takes_20_bytes_with_adamw_and_an_average() -> None:
    assert Weights(1, 0, True, False).total_bytes(1) == 20  # weight, gradient, two moments, average: 4 bytes each
    assert Weights(1, 0, False, False).total_bytes(1) == 16
    assert Weights(1, 0, True, False).total_bytes(8) == 24  # and the gradient in DDP's buckets
    assert Weights(1, 0, True, True).total_bytes(1) == 22  # and the half-precision copy
    assert Weights(0, 1, True, True).total_bytes(8) == 6  # frozen
    assert Weights(1, 0, True, False, num_averages=3).total_bytes(1) == 28
    assert Weights(1, 0, True, False, optimizer_bytes_per_weight=2).total_bytes(1) == 14


def test_the_largest_batch_fills_nine_tenths_of_the_memory() -> None:
    assert PLAN.largest_batch(False) == 7  # 9 GB without the 2 GB of weights
    assert PLAN.largest_batch(True) == 14  # 0.5 GB a sample
    too_large = replace(PLAN, weights=Weights(10**9, 0, True, False))
    assert too_large.largest_batch(False) == 0 and too_large.batch_of(8) is None


def test_a_global_batch_is_divided_into_the_fewest_equal_batches_that_fit() -> None:
    assert PLAN.batch_of(7) == (7, 1)
    assert PLAN.batch_of(8) == (4, 2)
    assert PLAN.batch_of(11) == (1, 11)  # a prime number
    four = replace(PLAN, hardware=replace(PLAN.hardware, count=4))
    assert four.batch_of(48) == (6, 2)
    assert four.batch_of(49) is None


def test_time_follows_from_flops_and_utilisation() -> None:
    assert PLAN.samples_per_second == pytest.approx(1e14 * 0.5 / 3e9)
    assert replace(PLAN, is_checkpointed=True).samples_per_second == pytest.approx(1e14 * 0.5 / 4e9)
    encoded = replace(PLAN, extra_flops=10**9)
    assert encoded.samples_per_second == pytest.approx(1e14 * 0.5 / 4e9)
    assert PLAN.hours(int(3600 * PLAN.samples_per_second)) == pytest.approx(1, rel=1e-3)
