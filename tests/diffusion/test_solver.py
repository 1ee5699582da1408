"""Steps of the samplers, against the equations and against each other."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ul_tokenizer.diffusion.schedule import alpha_sigma
from ul_tokenizer.diffusion.solver import (
    evenly_spaced,
    extrapolated,
    level_at,
    levels_at,
    ode_step,
    posterior_mean,
    posterior_std,
    round_to_fp32,
)

LOGSNR = st.floats(-30, 30)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(value=st.floats(-1e30, 1e30).filter(lambda x: x == 0 or abs(x) > 1e-30))
def test_rounding_gives_the_nearest_fp32_number(value: float) -> None:
    assert round_to_fp32(value) == struct.unpack("f", struct.pack("f", value))[0]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(logsnr=LOGSNR)
def test_a_level_has_the_alpha_and_sigma_of_the_theory(logsnr: float) -> None:
    level = level_at(logsnr)
    alpha, sigma = alpha_sigma(torch.tensor(logsnr, dtype=torch.float64))
    assert level.alpha == pytest.approx(alpha.item(), rel=1e-14)
    assert level.sigma == pytest.approx(sigma.item(), rel=1e-14)
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 100])
def test_even_spacing_meets_both_ends_and_zero_where_the_middle_is_zero(num_steps: int) -> None:
    values = evenly_spaced(-5.0, 9.0, num_steps)
    assert (values[0], values[-1], len(values)) == (-5.0, 9.0, num_steps + 1)
    expected = torch.linspace(-5, 9, num_steps + 1, dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected, rtol=0, atol=1e-14)
    assert evenly_spaced(-7.3, 7.3, 2 * num_steps)[num_steps] == 0


def test_an_ode_step_keeps_the_predicted_clean_sample_and_noise() -> None:
    t, s = levels_at([-3.0, 1.5])
    x, eps = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    z_s = ode_step(t.alpha * x + t.sigma * eps, x, t, s)
    torch.testing.assert_close(z_s, s.alpha * x + s.sigma * eps)


def test_a_posterior_step_has_the_variance_of_its_level() -> None:
    """The variance of z_t's noise that remains and of the fresh noise add up to σ_s²."""
    t, s = levels_at([-3.0, 1.5])
    ones = torch.ones(1, dtype=torch.float64)
    kept = posterior_mean(t.sigma * ones, 0 * ones, t, s)  # what becomes of noise of standard deviation σ_t
    assert kept.item() ** 2 + posterior_std(t, s) ** 2 == pytest.approx(s.sigma**2)
    clean = posterior_mean(t.alpha * ones, ones, t, s)
    assert clean.item() == pytest.approx(s.alpha)


def test_extrapolation_is_exact_for_a_prediction_that_is_linear_in_log_snr() -> None:
    last, t, s = levels_at([-4.0, -1.0, 1.0])

    def x_hat(logsnr: float) -> torch.Tensor:
        return torch.tensor([2.0 + 0.5 * logsnr], dtype=torch.float64)

    D = extrapolated(x_hat(t.logsnr), x_hat(last.logsnr), last, t, s)
    torch.testing.assert_close(D, x_hat((t.logsnr + s.logsnr) / 2))
