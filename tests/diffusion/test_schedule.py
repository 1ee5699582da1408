"""λ(t), dλ/dt, α and σ."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

from ul_tokenizer.diffusion.schedule import LogSNRSchedule, alpha_sigma, resolution_shift

SCHEDULES = [
    LogSNRSchedule(5.0, -10.0, "cosine"),
    LogSNRSchedule(5.0, -10.0, "linear"),
    LogSNRSchedule(10.0, -15.0, "cosine", shift_clean=-2.0, shift_noisy=-2.0),
    LogSNRSchedule(8.0, -10.0, "cosine", shift_clean=-4.2, shift_noisy=1.4),
    LogSNRSchedule(8.0, -10.0, "linear", shift_clean=-4.2, shift_noisy=1.4),
]
each_schedule = pytest.mark.parametrize(
    "schedule", SCHEDULES, ids=lambda s: f"{s.kind}{s.shift_clean:+}{s.shift_noisy:+}"
)


def grid(n: int = 101, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.linspace(0, 1, n, dtype=dtype)


@each_schedule
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 5e-5)])
def test_both_ends_are_met_whatever_the_shifts(schedule: LogSNRSchedule, dtype: torch.dtype, tolerance: float) -> None:
    ends = schedule.logsnr(torch.tensor([0.0, 1.0], dtype=dtype))
    assert ends.tolist() == pytest.approx([schedule.logsnr_max, schedule.logsnr_min], abs=tolerance)


@each_schedule
def test_the_derivative_is_the_exact_one(schedule: LogSNRSchedule) -> None:
    t = grid().requires_grad_()
    (by_autograd,) = torch.autograd.grad(schedule.logsnr(t).sum(), t)
    torch.testing.assert_close(schedule.dlogsnr_dt(t.detach()), by_autograd, rtol=1e-9, atol=0.0)


@each_schedule
def test_the_derivative_in_fp32_equals_the_one_in_float64(schedule: LogSNRSchedule) -> None:
    t = grid(1001, torch.float32)
    exact = schedule.dlogsnr_dt(t.double())
    torch.testing.assert_close(schedule.dlogsnr_dt(t).double(), exact, rtol=1e-3, atol=0.0)


@each_schedule
def test_logsnr_falls_with_t_in_fp32(schedule: LogSNRSchedule) -> None:
    assert (schedule.logsnr(grid(1001, torch.float32)).diff() < 0).all()
    assert (schedule.dlogsnr_dt(grid(1001, torch.float32)) < 0).all()


def test_the_derivative_integrates_to_the_range_of_logsnr() -> None:
    schedule = LogSNRSchedule(5.0, -10.0, "cosine")
    t = grid(20001)
    assert torch.trapezoid(schedule.dlogsnr_dt(t), t).item() == pytest.approx(-15.0, abs=1e-4)


def test_shape_and_dtype_of_t_come_back() -> None:
    for schedule in SCHEDULES:
        t = torch.rand(2, 3, dtype=torch.float32)
        for values in (schedule.logsnr(t), schedule.dlogsnr_dt(t)):
            assert (values.shape, values.dtype) == (t.shape, t.dtype)


def test_a_cosine_is_minus_two_log_tan_of_a_straight_angle() -> None:
    angle = torch.atan(torch.exp(-0.5 * LogSNRSchedule(5.0, -10.0, "cosine").logsnr(grid())))
    torch.testing.assert_close(angle.diff(), angle.diff().mean().expand(100), rtol=1e-9, atol=0.0)


# Near t = 1 the tangent's argument has no digits left in fp32; the schedule measures it from π/2.
def test_a_cosine_from_minus_60_is_finite_and_falling_in_fp32() -> None:
    schedule = LogSNRSchedule(5.0, -60.0, "cosine")
    logsnr, slope = (f(grid(1001, torch.float32)) for f in (schedule.logsnr, schedule.dlogsnr_dt))
    assert logsnr.isfinite().all()
    assert logsnr[-1].item() == pytest.approx(-60.0, abs=1e-4)
    assert (slope < 0).all()


def test_alpha_squared_and_sigma_squared_sum_to_one() -> None:
    alpha, sigma = alpha_sigma(torch.linspace(-60, 60, 241))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(241), rtol=0.0, atol=5e-7)


@pytest.mark.parametrize("logsnr", [-60.0, -20.0, 0.0, 20.0, 60.0])
def test_alpha_and_sigma_keep_their_relative_precision_in_fp32(logsnr: float) -> None:
    alpha, sigma = alpha_sigma(torch.tensor(logsnr))
    assert alpha.item() == pytest.approx((1.0 / (1.0 + math.exp(-logsnr))) ** 0.5, rel=1e-5)
    assert sigma.item() == pytest.approx((1.0 / (1.0 + math.exp(logsnr))) ** 0.5, rel=1e-5)


def test_the_ratio_of_alpha_and_sigma_is_the_log_snr() -> None:
    logsnr = torch.linspace(-60, 60, 121)
    alpha, sigma = alpha_sigma(logsnr)
    torch.testing.assert_close(2.0 * (alpha.log() - sigma.log()), logsnr, rtol=1e-5, atol=1e-5)


def test_gradients_of_alpha_and_sigma_are_finite_and_exact_at_the_ends() -> None:
    logsnr = torch.tensor([-60.0, 0.0, 60.0], requires_grad=True)
    alpha, sigma = alpha_sigma(logsnr)
    (d_alpha,) = torch.autograd.grad(alpha.sum(), logsnr, retain_graph=True)
    (d_sigma,) = torch.autograd.grad(sigma.sum(), logsnr)
    # dα/dλ = ½ α σ², dσ/dλ = −½ σ α²
    torch.testing.assert_close(d_alpha, 0.5 * alpha * sigma**2, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(d_sigma, -0.5 * sigma * alpha**2, rtol=1e-5, atol=0.0)
    assert d_alpha[0] > 0
    assert d_sigma[2] < 0


def test_larger_images_are_shifted_to_more_noise() -> None:
    assert resolution_shift(512, 64) == pytest.approx(-2.0 * math.log(8.0))
    assert resolution_shift(64, 64) == 0.0
    assert resolution_shift(256, 64) == -resolution_shift(64, 256)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_shift_adds_itself_to_logsnr_everywhere_and_keeps_the_slope(kind: Any) -> None:
    shift, t = resolution_shift(256, 64), grid()
    plain = LogSNRSchedule(8.0, -10.0, kind)
    shifted = LogSNRSchedule(8.0 + shift, -10.0 + shift, kind, shift_clean=shift, shift_noisy=shift)
    torch.testing.assert_close(shifted.logsnr(t), plain.logsnr(t) + shift, rtol=0.0, atol=1e-9)
    torch.testing.assert_close(shifted.dlogsnr_dt(t), plain.dlogsnr_dt(t), rtol=1e-9, atol=0.0)


def test_an_interpolated_schedule_goes_from_the_high_to_the_low_noise_resolution() -> None:
    t = grid()
    clean, noisy = resolution_shift(256, 512), resolution_shift(256, 32)
    interpolated = LogSNRSchedule.interpolated(256, low=32, high=512, logsnr_max=8.0, logsnr_min=-10.0)
    base = LogSNRSchedule(8.0 - clean, -10.0 - noisy, "cosine").logsnr(t)
    low, high, between = base + noisy, base + clean, interpolated.logsnr(t)
    assert between[0].item() == pytest.approx(high[0].item(), abs=1e-9)
    assert between[-1].item() == pytest.approx(low[-1].item(), abs=1e-9)
    torch.testing.assert_close(between, torch.lerp(high, low, t), rtol=0.0, atol=1e-9)
    assert ((low < between) & (between < high))[1:-1].all()


def test_interpolating_between_equal_resolutions_is_a_plain_shift() -> None:
    shift = resolution_shift(128, 64)
    assert LogSNRSchedule.interpolated(128, 64, 64, 8.0, -10.0) == LogSNRSchedule(8.0, -10.0, "cosine", shift, shift)


@each_schedule
def test_a_schedule_is_rebuilt_from_its_dict(schedule: LogSNRSchedule) -> None:
    assert LogSNRSchedule(**schedule.to_dict()) == schedule


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((5.0, -10.0, "sigmoid"), "kind.*'linear' or 'cosine'.*'sigmoid'"),
        ((-10.0, 5.0), r"logsnr_min must be below logsnr_max.*5\.0.*-10\.0"),
        ((5.0, 5.0), "logsnr_min must be below logsnr_max"),
        ((math.inf, -10.0), "finite.*inf"),
        ((5.0, math.nan), "finite.*nan"),
        ((5.0, -10.0, "cosine", 0.0, -math.inf), "finite"),
        ((5.0, -10.0, "linear", 30.0, 0.0), r"shift_clean and shift_noisy.*30\.0"),
        ((5.0, -10.0, "cosine", 0.0, 40.0), r"shift_clean and shift_noisy.*40\.0"),
        ((5.0, -10.0, "cosine", -60.0, 60.0), "shift_clean and shift_noisy"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        LogSNRSchedule(*arguments)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert ". " not in message


# ---------------------------------------------------------------- any schedule


@st.composite
def schedules(draw: st.DrawFn) -> LogSNRSchedule:
    """Legal schedules: both kinds, ends up to ±20, and shifts that leave λ falling."""
    low, span = draw(st.floats(-20, 10)), draw(st.floats(2, 25))
    kind: Any = draw(st.sampled_from(["linear", "cosine"]))
    clean, noisy = draw(st.floats(-4, 4)), draw(st.floats(-4, 4))
    try:
        return LogSNRSchedule(min(low + span, 20.0), low, kind, clean, noisy)
    except ValueError:  # shifts that are too large for the span
        reject()


any_schedule = given(schedule=schedules())
times = st.lists(st.floats(0.001, 0.999), min_size=1, max_size=8)


def double(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@any_schedule
def test_any_schedule_falls_from_its_highest_to_its_lowest_log_snr(schedule: LogSNRSchedule) -> None:
    logsnr = schedule.logsnr(grid(257))
    assert (logsnr.diff() < 0).all()
    assert logsnr[[0, -1]].tolist() == pytest.approx([schedule.logsnr_max, schedule.logsnr_min], abs=1e-7)


@given(schedule=schedules(), t=times)
def test_the_derivative_of_any_schedule_is_that_of_finite_differences(schedule: LogSNRSchedule, t: list[float]) -> None:
    h, at = 1e-6, double(t)
    differences = (schedule.logsnr(at + h) - schedule.logsnr(at - h)) / (2 * h)
    torch.testing.assert_close(schedule.dlogsnr_dt(at), differences, rtol=2e-5, atol=1e-6)


@any_schedule
def test_the_derivative_of_any_schedule_integrates_to_its_range(schedule: LogSNRSchedule) -> None:
    # Simpson's rule in a variable that is dense at both ends, where a cosine's λ is steep.
    u = grid(4001)
    t, dt_du = (1 - torch.cos(math.pi * u)) / 2, math.pi / 2 * torch.sin(math.pi * u)
    slope = schedule.dlogsnr_dt(t) * dt_du
    weights = torch.ones_like(u)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    integral = float((weights * slope).sum()) / (3 * 4000)
    assert integral == pytest.approx(schedule.logsnr_min - schedule.logsnr_max, rel=2e-3)


@any_schedule
def test_any_schedule_is_rebuilt_from_its_dict(schedule: LogSNRSchedule) -> None:
    assert LogSNRSchedule(**schedule.to_dict()) == schedule


@given(logsnr=st.floats(-80, 80))
def test_any_log_snr_comes_back_from_alpha_and_sigma(logsnr: float) -> None:
    alpha, sigma = alpha_sigma(double([logsnr]))
    assert float(2 * (alpha.log() - sigma.log())) == pytest.approx(logsnr, abs=1e-9)
    assert float(alpha**2 + sigma**2) == pytest.approx(1, abs=1e-12)
    (opposite_alpha, opposite_sigma) = alpha_sigma(double([-logsnr]))
    assert (opposite_alpha, opposite_sigma) == (sigma, alpha)
