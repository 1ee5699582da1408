"""The objective: nats, weights, and where gradients go.

Expectations over Gaussian data and noise are exact: the errors of linear denoisers are quadratic, and ±1 with equal
weights integrates quadratics. Only t is integrated numerically, on a grid of midpoints.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ul_tokenizer.diffusion.objective import (
    RandomLatentLevel,
    SigmoidWeighting,
    UnifiedLatentsLoss,
    Variant,
    bits_per_pixel_divisor,
    diffuse,
    draw_latent,
    eps_squared_error,
    gaussian_loss,
    nats_to_bits,
    normal_kl,
    prior_loss,
    scale_gradient,
    sigmoid_loss,
    stratified_times,
    terminal_kl,
    variance_gain,
)
from ul_tokenizer.diffusion.parameterization import PREDICTION_TYPES, PredictionType, velocity
from ul_tokenizer.diffusion.schedule import LogSNRSchedule, alpha_sigma

each_kind = pytest.mark.parametrize("kind", ["linear", "cosine"])
SIGNS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # (u, ε): exact for quadratics


def midpoints(n: int) -> Tensor:
    return (torch.arange(n) + 0.5) / n


def predict(x: Tensor, eps: Tensor, logsnr: Tensor, prediction_type: PredictionType) -> Tensor:
    return {"sample": x, "epsilon": eps, "v_prediction": velocity(x, eps, logsnr)}[prediction_type]


def gaussian_prior_loss(schedule: LogSNRSchedule, s: float, prediction_type: PredictionType, n: int = 20_000) -> float:
    """E[prior loss + terminal KL] of one dimension of N(0, s²) under its optimal denoiser."""
    t = midpoints(n).repeat_interleave(4)
    z, eps = (s * SIGNS[:, :1]).repeat(n, 1), SIGNS[:, 1:].repeat(n, 1)
    logsnr = schedule.logsnr(t)
    alpha, sigma = (a[:, None] for a in alpha_sigma(logsnr))
    z_t = diffuse(z, eps, logsnr)
    total = alpha**2 * s**2 + sigma**2
    prediction = predict(alpha * s**2 / total * z_t, sigma / total * z_t, logsnr, prediction_type)
    losses = prior_loss(prediction, z, eps, t, schedule, prediction_type) + terminal_kl(z, schedule)
    return losses.double().mean().item()


# ---------------------------------------------------------------- values


@each_kind
@pytest.mark.parametrize("s", [0.3, 1.0, 3.0])
def test_a_gaussian_costs_half_ln_1_plus_s2_e5_nats_per_dimension_on_any_schedule(kind: str, s: float) -> None:
    # What levels beyond −10 leave out, ½ ln(1 + s² e⁻¹⁰), is what the terminal KL puts in, to second order in e⁻¹⁰.
    schedule = LogSNRSchedule(5.0, -10.0, kind)  # type: ignore[arg-type]
    expected = 0.5 * math.log1p(s**2 * math.exp(5))
    assert gaussian_prior_loss(schedule, s, "v_prediction") == pytest.approx(expected, abs=2e-5)


@settings(max_examples=20)
@given(
    s=st.floats(0.2, 4),
    top=st.floats(2, 7),
    bottom=st.floats(-12, -9),
    kind=st.sampled_from(["linear", "cosine"]),
    shifts=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    prediction_type=st.sampled_from(PREDICTION_TYPES),
)
def test_the_elbo_of_a_gaussian_depends_on_no_schedule_but_on_its_cleanest_level(
    s: float, top: float, bottom: float, kind: Any, shifts: tuple[float, float], prediction_type: Any
) -> None:
    schedule = LogSNRSchedule(top, bottom, kind, *shifts)
    expected = 0.5 * math.log1p(s**2 * math.exp(top))
    # The terminal KL replaces the levels beyond `bottom` up to terms of second order in their SNR.
    beyond = (s**2 * math.exp(bottom)) ** 2 + math.exp(2 * bottom)
    assert gaussian_prior_loss(schedule, s, prediction_type, n=4000) == pytest.approx(expected, abs=beyond + 1e-3)


@given(logsnr=st.floats(-15, 15), factor=st.floats(0.1, 3), bias=st.floats(-3, 8), below=st.floats(-5, 5))
def test_with_the_boost_the_weight_of_x_never_falls_towards_noise_below_its_level(
    logsnr: float, factor: float, bias: float, below: float
) -> None:
    weighting, levels = SigmoidWeighting(factor, bias, below), torch.tensor([logsnr, logsnr + 0.5]).double()
    weights = weighting.weight(levels)
    assert weights[0] >= weights[1] > 0
    assert (weights <= factor).all()
    of_x = weights * weighting.boost(levels) * levels.exp()
    if logsnr + 0.5 <= below:  # w · e^{λ_f − λ} · e^λ = w · e^{λ_f}
        torch.testing.assert_close(of_x, weights * math.exp(below))


def test_without_the_terminal_kl_the_levels_beyond_the_noisiest_would_be_missing() -> None:
    s, schedule = 3.0, LogSNRSchedule(5.0, -2.0, "linear")
    kl = terminal_kl(s * SIGNS[:, :1], schedule).mean().item()
    alpha_sq = 1 / (1 + math.exp(2.0))
    assert kl == pytest.approx(0.5 * (alpha_sq * s**2 - alpha_sq - math.log1p(-alpha_sq)), rel=1e-6)
    integral = 0.5 * (math.log1p(s**2 * math.exp(5)) - math.log1p(s**2 * math.exp(-2)))
    assert gaussian_prior_loss(schedule, s, "v_prediction") == pytest.approx(integral + kl, abs=2e-5)


def test_a_unit_gaussian_costs_3_61_bits_per_dimension() -> None:
    nats = gaussian_prior_loss(LogSNRSchedule(5.0, -10.0, "linear"), 1.0, "v_prediction")
    assert nats_to_bits(torch.tensor(nats)).item() == pytest.approx(3.61, abs=0.005)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_every_prediction_type_gives_the_same_loss(prediction_type: PredictionType) -> None:
    torch.manual_seed(0)
    t = torch.tensor([0.05, 0.4, 0.9])
    schedule, weighting = LogSNRSchedule(5.0, -5.0, "cosine"), SigmoidWeighting()
    x, eps, guess = torch.randn(3, 3, 2, 3, 4)
    logsnr = schedule.logsnr(t)
    alpha, sigma = (a[:, None, None, None] for a in alpha_sigma(logsnr))
    guessed_eps = (diffuse(x, eps, logsnr) - alpha * guess) / sigma
    losses = {
        p: (
            prior_loss(predict(guess, guessed_eps, logsnr, p), x, eps, t, schedule, p),
            sigmoid_loss(predict(guess, guessed_eps, logsnr, p), x, eps, t, schedule, weighting, p),
        )
        for p in ("v_prediction", prediction_type)
    }
    torch.testing.assert_close(losses[prediction_type], losses["v_prediction"], rtol=2e-4, atol=1e-4)


def test_an_unknown_prediction_type_is_refused() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"prediction_type must be one of .* got 'flow'"):
        eps_squared_error(x, x, x, torch.zeros(1), "flow")  # type: ignore[arg-type]


@each_kind
def test_the_decoder_loss_is_positive_at_every_level(kind: str) -> None:
    torch.manual_seed(0)
    t, schedule = midpoints(64), LogSNRSchedule(9.0, -5.0, kind)  # type: ignore[arg-type]
    x, eps, prediction = torch.randn(3, 64, 3, 4, 4)
    assert (sigmoid_loss(prediction, x, eps, t, schedule, SigmoidWeighting()) > 0).all()


def test_the_decoder_loss_in_eps_equals_that_in_x_with_e_to_the_b() -> None:
    """paper.md §2, both forms of Eq. 4, written out."""
    torch.manual_seed(0)
    t, schedule, weighting = midpoints(8), LogSNRSchedule(9.0, -5.0, "linear"), SigmoidWeighting(1.7, 2.5)
    x, eps, guess = torch.randn(3, 8, 3, 4, 4)
    logsnr = schedule.logsnr(t)
    squares = (x - guess).square().flatten(1).sum(1)
    in_x = 1.7 * 0.5 * 14.0 * math.exp(2.5) * torch.sigmoid(logsnr - 2.5) * squares
    torch.testing.assert_close(sigmoid_loss(guess, x, eps, t, schedule, weighting, "sample"), in_x, rtol=1e-5, atol=0)


# ---------------------------------------------------------------- weights


def test_the_weight_tends_to_the_loss_factor_in_noise_and_to_nothing_near_the_image() -> None:
    weights = SigmoidWeighting(loss_factor=1.7, bias=2.0).weight(torch.tensor([-40.0, 2.0, 40.0]))
    torch.testing.assert_close(weights, torch.tensor([1.7, 0.85, 0.0]))


@pytest.mark.parametrize(("factor", "table"), [(1.3, -1.20), (1.5, -0.69), (1.7, -0.36), (1.9, -0.11), (2.1, 0.10)])
@pytest.mark.parametrize("bias", [0.0, 2.0])
def test_the_weight_crosses_one_where_the_papers_table_says(factor: float, table: float, bias: float) -> None:
    weighting = SigmoidWeighting(factor, bias)
    assert weighting.crossing - bias == pytest.approx(table, abs=0.006)
    below, at, above = weighting.weight(torch.tensor([-0.1, 0.0, 0.1]) + weighting.crossing)
    assert below > 1 > above
    assert at.item() == pytest.approx(1, abs=1e-5)


def test_a_loss_factor_of_one_or_less_never_crosses() -> None:
    assert SigmoidWeighting(loss_factor=1.0).crossing == -math.inf
    with pytest.raises(ValueError, match=r"loss_factor must be positive, got -1\.0"):
        SigmoidWeighting(loss_factor=-1.0)


def test_the_boost_is_one_above_its_level_and_e_to_the_distance_below() -> None:
    logsnr = torch.tensor([-3.0, -1.0, 0.0, 4.0])
    expected = torch.tensor([math.exp(2), 1.0, 1.0, 1.0])
    torch.testing.assert_close(SigmoidWeighting(boost_below=-1.0).boost(logsnr), expected)
    assert torch.equal(SigmoidWeighting().boost(logsnr), torch.ones(4))


# ---------------------------------------------------------------- variants


@pytest.mark.parametrize("logsnr", [-10.0, 0.0, 5.0, 10.0])
def test_the_divergence_from_a_standard_normal_is_that_of_torch(logsnr: float) -> None:
    torch.manual_seed(0)
    z = torch.randn(3, 4, 2, 2).double()
    alpha, sigma = alpha_sigma(torch.tensor(logsnr).double())
    q, p = torch.distributions.Normal(alpha * z, sigma), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(q, p).flatten(1).sum(1)
    torch.testing.assert_close(normal_kl(z, logsnr).double(), expected, rtol=1e-5, atol=1e-5)


def test_under_a_normal_prior_unit_gaussian_latents_cost_what_the_perfect_prior_says() -> None:
    """For z ~ N(0, 1), E[KL] is the mutual information of z_clean and z_0: ½ ln(1 + e⁵) nats."""
    signs = torch.tensor([[1.0], [-1.0]])  # exact for quadratics
    assert normal_kl(signs, 5.0).mean().item() == pytest.approx(0.5 * math.log1p(math.exp(5.0)), rel=1e-6)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_gaussian_loss_is_the_squared_error_over_twice_its_variance(prediction_type: PredictionType) -> None:
    torch.manual_seed(0)
    x, noise, error = torch.randn(3, 2, 3, 4, 4)
    logsnr = torch.tensor([-5.0, 1.0])
    alpha, sigma = (a[:, None, None, None] for a in alpha_sigma(logsnr))
    x_hat = x + error
    eps_hat = (diffuse(x, noise, logsnr) - alpha * x_hat) / sigma
    prediction = predict(x_hat, eps_hat, logsnr, prediction_type)
    if prediction_type == "v_prediction":
        prediction = alpha * eps_hat - sigma * x_hat
    loss = gaussian_loss(prediction, x, noise, logsnr, SigmoidWeighting(1.7, 3.0), prediction_type)
    torch.testing.assert_close(loss, 1.7 * math.exp(3.0) * 0.5 * error.square().flatten(1).sum(1), rtol=1e-3, atol=1e-3)


def test_at_clean_levels_the_decoder_loss_weighs_the_squared_error_as_the_gaussian_loss_does() -> None:
    torch.manual_seed(0)
    x, noise, prediction = torch.randn(3, 1, 3, 4, 4)
    weighting, logsnr = SigmoidWeighting(1.5, 0.0), torch.tensor([12.0])
    per_level = 0.5 * weighting.weight(logsnr) * eps_squared_error(prediction, x, noise, logsnr, "v_prediction")
    gaussian = gaussian_loss(prediction, x, noise, logsnr, weighting)
    torch.testing.assert_close(gaussian, per_level, rtol=1e-4, atol=1e-4)


def test_the_bound_of_a_gaussian_latent_with_a_learned_variance_is_its_mutual_information() -> None:
    """For μ ~ N(0, s²) and z = μ + σ_z ε it is ½ ln((α₀² (s² + σ_z²) + σ₀²) / (α₀² σ_z² + σ₀²))."""
    s, logvar, logsnr = 1.3, -1.0, 5.0
    total = math.hypot(s, math.exp(0.5 * logvar))
    bound = gaussian_prior_loss(LogSNRSchedule(logsnr, -14.0, "linear"), total, "v_prediction")
    gain = variance_gain(torch.full((1, 1), logvar), logsnr).item()
    snr = math.exp(logsnr)
    expected = 0.5 * math.log((snr * total**2 + 1) / (snr * math.exp(logvar) + 1))
    assert bound - gain == pytest.approx(expected, rel=2e-3)


def test_a_latent_with_a_variance_is_drawn_with_that_deviation() -> None:
    torch.manual_seed(0)
    z, noise = torch.randn(2, 4, 10_000)
    logvar = torch.tensor([-2.0, 0.0, 1.0, 2.0])[:, None].expand(4, 10_000)
    drawn = draw_latent(z, logvar, noise)
    torch.testing.assert_close((drawn - z).std(1), (0.5 * logvar[:, 0]).exp(), rtol=0.03, atol=0)


LEVEL = RandomLatentLevel(bias=1.0, low=-3.0, high=5.0)


def test_random_levels_are_those_of_the_truncated_logistic_distribution() -> None:
    levels = LEVEL.level(midpoints(100_000))
    assert levels.min() >= -3.0 and levels.max() <= 5.0
    for logsnr in (-3.0, -1.0, 0.0, 1.0, 4.0, 5.0):
        above = (levels > logsnr).float().mean().item()
        assert LEVEL.weight(torch.tensor([logsnr])).item() == pytest.approx(above, abs=1e-3)
    assert torch.equal(LEVEL.weight(torch.tensor([-20.0, 7.0])), torch.tensor([1.0, 0.0]))


def test_the_weighted_bound_is_the_mean_of_the_bounds_that_end_at_the_levels() -> None:
    """E over λ_z(0) of ∫ f(λ) dλ up to λ_z(0) is ∫ P(λ_z(0) > λ) f(λ) dλ, here for f = e^{λ/4}."""
    ends = LEVEL.level(midpoints(100_000)).double()
    mean = 4 * ((ends / 4).exp() - math.exp(-10 / 4)).mean()
    logsnr = torch.linspace(-10, 5, 100_001).double()
    torch.testing.assert_close(
        torch.trapezoid(LEVEL.weight(logsnr) * (logsnr / 4).exp(), logsnr), mean, rtol=1e-4, atol=0
    )


def test_far_from_its_ends_the_weight_is_the_sigmoid_weighting_of_a_base_model() -> None:
    wide, logsnr = RandomLatentLevel(1.0, -30.0, 30.0), torch.linspace(-8, 8, 33)
    torch.testing.assert_close(wide.weight(logsnr), SigmoidWeighting(1.0, 1.0).weight(logsnr))


def test_a_level_without_a_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"low must be below high, got 5.0 and 5.0"):
        RandomLatentLevel(1.0, 5.0, 5.0)


def test_a_divergence_without_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="kl_weight must be positive, got 0"):
        Variant(kl_weight=0)


# ---------------------------------------------------------------- sums, never means


def test_doubling_the_height_doubles_every_term() -> None:
    torch.manual_seed(0)
    t, schedule = midpoints(2), LogSNRSchedule(5.0, -5.0, "cosine")
    x, eps, prediction = torch.randn(3, 2, 3, 4, 5)

    def terms(*tensors: Tensor) -> list[Tensor]:
        v, clean, noise = tensors
        return [
            prior_loss(v, clean, noise, t, schedule),
            sigmoid_loss(v, clean, noise, t, schedule, SigmoidWeighting()),
            terminal_kl(clean, schedule),
        ]

    tall = terms(*(torch.cat([a, a], dim=2) for a in (prediction, x, eps)))
    for doubled, single in zip(tall, terms(prediction, x, eps), strict=True):
        torch.testing.assert_close(doubled, 2 * single)


def test_one_divisor_serves_both_terms_and_the_prior_weight_only_one() -> None:
    terms = torch.tensor([[1.0, 3.0], [0.5, 0.25], [10.0, 20.0], [16.0, 64.0]])
    loss = UnifiedLatentsLoss(*terms)
    assert torch.equal(loss.latent, torch.tensor([1.5, 3.25]))
    assert loss.total(8.0).item() == pytest.approx((1.5 + 3.25 + 16 + 64) / 2 / 8)
    assert loss.total(8.0, prior_weight=0.5).item() == pytest.approx((0.5 * 4.75 + 80) / 2 / 8)


def test_bits_per_pixel_count_positions_and_not_colours() -> None:
    assert bits_per_pixel_divisor(4, 8) == pytest.approx(32 * math.log(2))
    assert bits_per_pixel_divisor(4, 8, num_frames=3) == pytest.approx(96 * math.log(2))


# ---------------------------------------------------------------- shapes and dtypes


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_batch_as_large_as_channels_and_height_is_weighted_per_sample(prediction_type: PredictionType) -> None:
    torch.manual_seed(0)
    t, schedule, weighting = torch.tensor([0.1, 0.5, 0.8]), LogSNRSchedule(5.0, -5.0, "cosine"), SigmoidWeighting()
    x, eps, prediction = torch.randn(3, 3, 3, 3, 3)
    batch = sigmoid_loss(prediction, x, eps, t, schedule, weighting, prediction_type)
    assert batch.shape == (3,)
    for i in range(3):
        v, clean, noise, time = (a[i : i + 1] for a in (prediction, x, eps, t))
        one = sigmoid_loss(v, clean, noise, time, schedule, weighting, prediction_type)
        torch.testing.assert_close(batch[i : i + 1], one)
        torch.testing.assert_close(diffuse(x, eps, t)[i : i + 1], diffuse(*(a[i : i + 1] for a in (x, eps, t))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_losses_are_computed_in_fp32_whatever_the_networks_run_in(
    dtype: torch.dtype, prediction_type: PredictionType
) -> None:
    torch.manual_seed(0)
    t, schedule = midpoints(2), LogSNRSchedule(5.0, -10.0, "cosine")
    x, eps, prediction = (a.to(dtype) for a in torch.randn(3, 2, 3, 64, 64))
    arguments = [(prediction, x, eps), (prediction.float(), x.float(), eps.float())]
    for loss in (
        lambda v, clean, noise: prior_loss(v, clean, noise, t, schedule, prediction_type),
        lambda v, clean, noise: sigmoid_loss(v, clean, noise, t, schedule, SigmoidWeighting(), prediction_type),
        lambda v, clean, noise: terminal_kl(clean, schedule),
        lambda v, clean, noise: diffuse(clean, noise, schedule.logsnr(t)),
    ):
        half, single = (loss(*tensors) for tensors in arguments)
        assert half.dtype == torch.float32
        assert torch.equal(half, single)


# ---------------------------------------------------------------- times and gradients


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_there_is_one_time_in_every_stratum(batch_size: int) -> None:
    t = stratified_times(batch_size, torch.Generator().manual_seed(0))
    assert (t * batch_size).floor().sort().values.tolist() == list(range(batch_size))


def test_each_time_is_uniform_and_in_no_fixed_order() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.stack([stratified_times(4, generator)[0] for _ in range(2000)])
    shares = torch.histc(first, bins=10, min=0, max=1) / 2000
    assert (shares - 0.1).abs().max().item() < 0.03


def test_times_follow_their_generator() -> None:
    a, b, c = (stratified_times(8, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_scale_gradient_leaves_the_value_and_scales_each_samples_gradient() -> None:
    x = torch.randn(2, 2, 2, requires_grad=True)
    y = scale_gradient(x, torch.tensor([0.5, 3.0]))
    assert torch.equal(y, x)
    (y.square().sum()).backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * x.detach() * torch.tensor([0.5, 3.0])[:, None, None])


def test_the_prior_loss_has_gradients_through_its_target() -> None:
    z = torch.randn(2, 3, requires_grad=True)
    prior_loss(torch.zeros(2, 3), z, torch.randn(2, 3), midpoints(2), LogSNRSchedule(5.0, -10.0)).sum().backward()
    assert z.grad is not None
    assert z.grad.abs().min() > 0
