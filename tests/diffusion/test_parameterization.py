"""Conversions between predictions."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ul_tokenizer.diffusion.parameterization import (
    PREDICTION_TYPES,
    broadcast_to_rank,
    to_eps,
    to_x,
    to_x_and_eps,
    velocity,
)
from ul_tokenizer.diffusion.schedule import alpha_sigma

each_prediction = pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@each_prediction
@pytest.mark.parametrize("logsnr", [-20.0, -10.0, 0.0, 5.0, 20.0])
def test_a_true_prediction_gives_x_and_eps_back(prediction: str, logsnr: float) -> None:
    x, eps = torch.randn(2, 4, 4, dtype=torch.float64), torch.randn(2, 4, 4, dtype=torch.float64)
    level = torch.full((2,), logsnr, dtype=torch.float64)
    alpha, sigma = alpha_sigma(level[:, None, None])
    z = alpha * x + sigma * eps
    truth = {"sample": x, "epsilon": eps, "v_prediction": velocity(x, eps, level)}[prediction]
    x_hat, eps_hat = to_x_and_eps(truth, z, level, cast(Any, prediction))
    torch.testing.assert_close(x_hat, x, rtol=0.0, atol=1e-10)
    torch.testing.assert_close(eps_hat, eps, rtol=0.0, atol=1e-10)


@each_prediction
def test_any_prediction_is_consistent_with_the_noisy_sample(prediction: str) -> None:
    output, z = torch.randn(5, 5, 5), torch.randn(5, 5, 5)
    logsnr = torch.tensor([-10.0, -3.0, 0.0, 2.0, 5.0])
    x, eps = to_x_and_eps(output, z, logsnr, cast(Any, prediction))
    alpha, sigma = alpha_sigma(logsnr[:, None, None])
    torch.testing.assert_close(alpha * x + sigma * eps, z, rtol=1e-5, atol=1e-5)


@each_prediction
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_are_converted_in_fp32(prediction: str, dtype: torch.dtype) -> None:
    output, z, logsnr = torch.randn(2, 8).to(dtype), torch.randn(2, 8).to(dtype), torch.tensor([-20.0, 20.0])
    ours = to_x_and_eps(output, z, logsnr, cast(Any, prediction))
    exact = to_x_and_eps(output.float(), z.float(), logsnr, cast(Any, prediction))
    for value, expected in zip(ours, exact, strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, expected)


def test_an_unknown_prediction_type_is_refused() -> None:
    z = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"prediction_type must be one of .* got 'flow'"):
        to_x_and_eps(z, z, torch.zeros(1), cast(Any, "flow"))


def test_a_level_is_laid_along_the_batch_axis() -> None:
    assert broadcast_to_rank(torch.zeros(3), torch.zeros(3, 3, 3, 3)).shape == (3, 1, 1, 1)
    assert broadcast_to_rank(torch.zeros(()), torch.zeros(3, 3)).shape == (1, 1)
    assert broadcast_to_rank(torch.zeros(1).half(), torch.zeros(3).half()).dtype == torch.float32


# ---------------------------------------------------------------- any level, any numbers

finite = st.floats(-10, 10)


@given(x=finite, eps=finite, logsnr=st.floats(-20, 20), kind=st.sampled_from(PREDICTION_TYPES))
def test_any_true_prediction_gives_x_and_eps_back(x: float, eps: float, logsnr: float, kind: Any) -> None:
    x_, eps_, level = (torch.tensor([[value]], dtype=torch.float64) for value in (x, eps, logsnr))
    alpha, sigma = alpha_sigma(level)
    z, level = alpha * x_ + sigma * eps_, level[0]
    truth = {"sample": x_, "epsilon": eps_, "v_prediction": velocity(x_, eps_, level)}[kind]
    # 1/α and 1/σ magnify the rounding of z_t, most at the ends.
    tolerance = 1e-13 * (1 + float(1 / alpha + 1 / sigma))
    x_hat, eps_hat = to_x_and_eps(truth, z, level, kind)
    assert float(x_hat) == pytest.approx(x, abs=10 * tolerance)
    assert float(eps_hat) == pytest.approx(eps, abs=10 * tolerance)


@given(v=finite, z=finite, logsnr=st.floats(-20, 20))
def test_any_prediction_of_v_turns_into_the_others_and_back(v: float, z: float, logsnr: float) -> None:
    v_, z_, level = (torch.tensor([value], dtype=torch.float64) for value in (v, z, logsnr))
    x, eps = to_x_and_eps(v_, z_, level, "v_prediction")
    torch.testing.assert_close(velocity(x, eps, level), v_, rtol=0, atol=1e-12)
    torch.testing.assert_close(to_x(x, z_, level, "sample"), x)
    torch.testing.assert_close(to_eps(eps, z_, level, "epsilon"), eps)


@given(shape=st.lists(st.integers(1, 3), min_size=1, max_size=5), one=st.booleans())
def test_a_level_per_sample_meets_the_batch_axis_of_any_shape(shape: list[int], one: bool) -> None:
    levels = torch.arange(1 if one else shape[0], dtype=torch.float32)
    meeting = broadcast_to_rank(levels, torch.zeros(shape)).expand(shape)
    expected = levels.expand(shape[0])
    assert torch.equal(meeting.flatten(1)[:, 0] if len(shape) > 1 else meeting, expected)


@given(shape=st.lists(st.integers(2, 4), min_size=1, max_size=4), count=st.integers(2, 6))
def test_another_number_of_levels_than_samples_is_refused(shape: list[int], count: int) -> None:
    assume(count != shape[0])
    with pytest.raises(ValueError, match="logsnr must hold one value or one per sample"):
        broadcast_to_rank(torch.zeros(count), torch.zeros(shape))
