"""Algorithm 1: what each network is given, and which gradients it gets.

The networks' neighbours are spies: they record what they are called with and answer something simple.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ul_tokenizer.diffusion.objective import (
    RandomLatentLevel,
    SigmoidWeighting,
    UnifiedLatentsLoss,
    Variant,
    diffuse,
    draw_latent,
    gaussian_loss,
    normal_kl,
    stratified_times,
    terminal_kl,
    variance_gain,
)
from ul_tokenizer.diffusion.parameterization import to_x
from ul_tokenizer.diffusion.schedule import LogSNRSchedule, alpha_sigma
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.training.algorithm1 import HOLD_LEVELS, Stage1Model, Stage1Noise

LATENT, PIXELS = (4, 4, 4), (3, 32, 32)


class FixedEncoder(nn.Module):
    """Answers one latent, whatever the image."""

    def __init__(self, z_clean: Tensor) -> None:
        super().__init__()
        self.z_clean = z_clean

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[()]]:
        return self.z_clean.unsqueeze(2), ()


class DetachedEncoder(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        latent, cache = self.encoder(x)
        return latent.detach(), cache


class DecoderSpy(nn.Module):
    """Keeps z_0, x_t and λ_x; predicts v = 0."""

    z_0: Tensor
    latent_logsnr: Tensor | None
    x_t: Tensor
    logsnr: Tensor

    def embed_latents(self, z: Tensor, logsnr: Tensor | None = None) -> Tensor:
        self.z_0, self.latent_logsnr = z.squeeze(2), logsnr
        return z

    def forward(self, x: Tensor, logsnr: Tensor, latent_features: Tensor) -> Tensor:
        self.x_t, self.logsnr = x.squeeze(2), logsnr
        return torch.zeros_like(x)


class PriorSpy(nn.Module):
    """Keeps z_t and λ_z; predicts v = ½ z_t, so that its input matters."""

    z_t: Tensor
    logsnr: Tensor

    def forward(self, z: Tensor, logsnr: Tensor) -> SimpleNamespace:
        self.z_t, self.logsnr = z, logsnr
        return SimpleNamespace(sample=0.5 * z)


def make_model(latent_logsnr: float = 5.0, boost_below: float | None = None, **autoencoder: Any) -> Stage1Model:
    torch.manual_seed(0)
    networks = build_autoencoder("ul-tiny-f8", autoencoder), build_prior("ul-tiny-f8")
    for network in networks:
        for parameter in network.parameters():  # some start at 0 and would hide gradients
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return Stage1Model(
        *networks, LogSNRSchedule(latent_logsnr, -10.0, "linear"), SigmoidWeighting(1.5, 4.5, boost_below)
    )


def make_spied(z_clean: Tensor, latent_logsnr: float = 5.0) -> tuple[Stage1Model, PriorSpy, DecoderSpy]:
    model, prior, decoder = make_model(latent_logsnr), PriorSpy(), DecoderSpy()
    model.encoder, model.prior, model.decoder = FixedEncoder(z_clean), prior, decoder  # type: ignore[assignment]
    return model, prior, decoder


def make_noise(batch: int, seed: int = 0) -> Stage1Noise:
    generator = torch.Generator().manual_seed(seed)
    prior, latent = torch.randn(2, batch, *LATENT, generator=generator)
    decoder = torch.randn(batch, *PIXELS, generator=generator)
    return Stage1Noise(stratified_times(batch, generator), stratified_times(batch, generator), prior, latent, decoder)


def make_pixels(batch: int) -> Tensor:
    return torch.rand(batch, *PIXELS, generator=torch.Generator().manual_seed(1)) * 2 - 1


def gradients(module: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters()), retain_graph=True))


# ---------------------------------------------------------------- the prior


def test_the_priors_gradient_reaches_the_encoder() -> None:
    model = make_model()
    loss = model(make_pixels(2), make_noise(2))
    assert all(gradient.abs().sum() > 0 for gradient in gradients(model.encoder, loss.prior.sum()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients(model.encoder, loss.terminal_kl.sum()))


def test_with_the_stop_gradient_ablation_it_does_not() -> None:
    model = make_model()
    encoder = model.encoder
    model.encoder = DetachedEncoder(encoder)  # type: ignore[assignment]
    loss = model(make_pixels(2), make_noise(2))
    loss.total(1.0).backward()
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_prior_loss_and_its_gradient_are_those_of_the_equation_through_input_and_target() -> None:
    """Eq. 3 as paper.md prints it: ½ (−dλ/dt) e^λ ‖z_clean − ẑ(z_t)‖²."""
    z_clean = torch.randn(3, *LATENT, requires_grad=True)
    model, _, _ = make_spied(z_clean)
    noise = make_noise(3)
    loss = model(make_pixels(3), noise)

    logsnr = 5.0 - 15.0 * noise.t_prior
    alpha, sigma = (a[:, None, None, None] for a in alpha_sigma(logsnr))
    z_t = alpha * z_clean + sigma * noise.prior
    z_hat = to_x(0.5 * z_t, z_t, logsnr, "v_prediction")
    expected = 0.5 * 15.0 * logsnr.exp() * (z_clean - z_hat).square().flatten(1).sum(1)

    torch.testing.assert_close(loss.prior, expected, rtol=1e-4, atol=1e-3)
    ours, theirs = (torch.autograd.grad(value.sum(), z_clean, retain_graph=True)[0] for value in (loss.prior, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(loss.terminal_kl, terminal_kl(z_clean, model.prior_schedule))


def test_z_t_is_drawn_from_z_clean_with_noise_of_its_own_and_not_through_z_0() -> None:
    z_clean = torch.randn(3, *LATENT)
    model, prior, _ = make_spied(z_clean)
    noise = make_noise(3)
    model(make_pixels(3), noise)
    alpha, sigma = (a[:, None, None, None] for a in alpha_sigma(5.0 - 15.0 * noise.t_prior))
    torch.testing.assert_close(prior.z_t, alpha * z_clean + sigma * noise.prior)
    torch.testing.assert_close(prior.logsnr, 5.0 - 15.0 * noise.t_prior)
    seen = prior.z_t
    model(make_pixels(3), dataclasses.replace(noise, latent=torch.randn_like(noise.latent)))
    assert torch.equal(prior.z_t, seen)


# ---------------------------------------------------------------- the decoder


@pytest.mark.parametrize(("latent_logsnr", "std"), [(5.0, 0.08181), (10.0, 0.00674)])
def test_the_decoder_is_conditioned_on_z_0_whose_noise_has_the_standard_deviation_sigma_0(
    latent_logsnr: float, std: float
) -> None:
    z_clean = torch.randn(64, *LATENT)
    model, _, decoder = make_spied(z_clean, latent_logsnr)
    model(make_pixels(64), make_noise(64))
    alpha, _ = alpha_sigma(torch.tensor(latent_logsnr))
    residual = decoder.z_0 - alpha * z_clean
    assert residual.std().item() == pytest.approx(std, rel=0.05)
    assert residual.mean().item() == pytest.approx(0, abs=std / 10)


def test_the_noise_of_z_0_is_fixed_whatever_the_other_levels() -> None:
    z_clean, noise = torch.randn(3, *LATENT), make_noise(3)
    model, _, decoder = make_spied(z_clean)
    model(make_pixels(3), noise)
    seen = decoder.z_0
    model(make_pixels(3), dataclasses.replace(make_noise(3, seed=5), latent=noise.latent))
    assert torch.equal(decoder.z_0, seen)


def test_the_decoder_sees_the_noisy_pixels_of_its_level() -> None:
    model, _, decoder = make_spied(torch.randn(3, *LATENT))
    noise, x = make_noise(3), make_pixels(3)
    loss = model(x, noise)
    expected = model.decoder_schedule.logsnr(noise.t_decoder)
    torch.testing.assert_close(decoder.logsnr, expected)
    alpha, sigma = (a[:, None, None, None] for a in alpha_sigma(expected))
    torch.testing.assert_close(decoder.x_t, alpha * x + sigma * noise.decoder)
    # Eq. 4 with the corrected sign, for v̂ = 0: ε̂ = σ x_t.
    squares = (noise.decoder - sigma * decoder.x_t).square().flatten(1).sum(1)
    nats = 1.5 * 0.5 * 14.0 * torch.sigmoid(4.5 - expected) * squares
    torch.testing.assert_close(loss.decoder, nats, rtol=1e-3, atol=1e-3)


def test_the_decoders_own_term_carries_no_gradient_twice() -> None:
    model = make_model(boost_below=0.0)
    loss = model(make_pixels(2), make_noise(2))
    assert not loss.decoder.requires_grad
    assert loss.decoder_boosted.requires_grad


# ---------------------------------------------------------------- the boost


def single_level_losses(boost_below: float | None) -> tuple[Stage1Model, UnifiedLatentsLoss, Tensor]:
    """One sample at a noisy level of the decoder; λ_x is the third."""
    model = make_model(boost_below=boost_below)
    noise = dataclasses.replace(make_noise(1), t_decoder=torch.tensor([0.9]))
    return model, model(make_pixels(1), noise), model.decoder_schedule.logsnr(torch.tensor(0.9))


def test_the_boost_leaves_the_encoders_gradient_alone_and_multiplies_the_decoders() -> None:
    plain_model, plain, logsnr = single_level_losses(None)
    model, boosted, _ = single_level_losses(0.0)
    factor = (-logsnr).exp().item()
    assert factor > 10
    torch.testing.assert_close(boosted.decoder, plain.decoder)
    torch.testing.assert_close(boosted.decoder_boosted, factor * plain.decoder_boosted)
    for module, scale in (("encoder", 1.0), ("decoder", factor)):
        ours = gradients(getattr(model, module), boosted.decoder_boosted.sum())
        theirs = gradients(getattr(plain_model, module), plain.decoder_boosted.sum())
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, scale * b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


def test_while_the_prior_is_held_the_encoder_feels_the_boost() -> None:
    model, plain_model = make_model(boost_below=0.0), make_model(boost_below=None)
    noise = dataclasses.replace(make_noise(1), t_decoder=torch.tensor([0.9]))
    boosted, plain = (m(make_pixels(1), noise, progress=0.0).decoder_boosted.sum() for m in (model, plain_model))
    factor = float(boosted.detach() / plain.detach())
    assert factor > 2
    for a, b in zip(gradients(model.encoder, boosted), gradients(plain_model.encoder, plain), strict=True):
        torch.testing.assert_close(a, factor * b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


# ---------------------------------------------------------------- the warm-up


def test_at_progress_0_only_the_noisy_part_of_the_levels_is_trained() -> None:
    model, _, decoder = make_spied(torch.randn(16, *LATENT))
    noise = make_noise(16)
    model(make_pixels(16), noise, progress=0.0)
    cleanest, noisiest = model.decoder_schedule.logsnr(torch.tensor([1 - HOLD_LEVELS, 1.0]))
    assert HOLD_LEVELS == 0.3
    assert noisiest <= decoder.logsnr.min() < noisiest + 0.5
    assert cleanest - 0.5 < decoder.logsnr.max() <= cleanest + 1e-5
    model(make_pixels(16), noise, progress=1.0)
    assert decoder.logsnr.max() > cleanest + 5


def test_the_loss_of_the_levels_that_are_trained_is_their_share_of_the_whole() -> None:
    """An integral over [0.7, 1], so the same level counts 0.3 times as much as in one over [0, 1]."""
    model, _, _ = make_spied(torch.randn(1, *LATENT))
    noise = make_noise(1)
    held = model(make_pixels(1), dataclasses.replace(noise, t_decoder=torch.tensor([0.5])), progress=0.0)
    whole = model(make_pixels(1), dataclasses.replace(noise, t_decoder=torch.tensor([0.85])), progress=1.0)
    torch.testing.assert_close(held.decoder, 0.3 * whole.decoder, rtol=1e-4, atol=1e-3)


def test_every_term_is_one_value_per_sample_in_fp32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = make_model()(make_pixels(3), make_noise(3))
    for field in dataclasses.fields(loss):
        value = getattr(loss, field.name)
        if field.name in ("latent_kl", "variance_gain"):  # of variants
            assert not value
            continue
        assert (value.shape, value.dtype) == ((3,), torch.float32)
        assert value.isfinite().all()


# ---------------------------------------------------------------- variants of the objective


def make_variant(**options: Any) -> Stage1Model:
    model = make_model()
    model.variant = Variant(**options)
    return model


def test_with_a_normal_prior_the_encoder_pays_the_divergence_and_the_prior_only_measures() -> None:
    model, plain = make_variant(latent_cost="normal", kl_weight=0.01), make_model()
    x, noise = make_pixels(2), make_noise(2)
    loss, reference = model(x, noise), plain(x, noise)
    assert torch.equal(loss.prior, reference.prior)
    assert torch.equal(loss.decoder_boosted, reference.decoder_boosted)

    z_clean = model.encoder(x.unsqueeze(2))[0].squeeze(2)
    assert loss.latent_kl is not None
    torch.testing.assert_close(loss.latent_kl, 0.01 * normal_kl(z_clean, 5.0))
    assert all(gradient.abs().sum() > 0 for gradient in gradients(model.prior, loss.prior.sum()))
    encoder = list(model.encoder.parameters())
    assert all(g is None for g in torch.autograd.grad(loss.prior.sum(), encoder, allow_unused=True, retain_graph=True))
    assert all(gradient.abs().sum() > 0 for gradient in gradients(model.encoder, loss.latent_kl.sum()))


def test_the_warm_up_holds_the_divergence_and_never_the_prior_that_measures() -> None:
    loss = make_variant(latent_cost="normal", kl_weight=0.5)(make_pixels(2), make_noise(2))
    assert loss.latent_kl is not None
    expected = (loss.latent + 0.1 * loss.latent_kl + loss.decoder_boosted).mean() / 7
    torch.testing.assert_close(loss.total(7.0, prior_weight=0.1), expected)


def test_a_decoder_of_the_squared_error_is_trained_at_its_noisiest_level_only() -> None:
    model, _, decoder = make_spied(torch.randn(3, *LATENT))
    model.variant = Variant(reconstruction="mse")
    x, noise = make_pixels(3), make_noise(3)
    for progress in (0.0, 1.0):
        loss = model(x, noise, progress)
        assert torch.equal(decoder.logsnr, torch.full((3,), model.decoder_schedule.logsnr_min))
        prediction = torch.zeros_like(x)
        expected = gaussian_loss(prediction, x, noise.decoder, decoder.logsnr, model.weighting)
        torch.testing.assert_close(loss.decoder_boosted, expected)


def test_the_squared_error_reaches_the_encoder_with_its_whole_gradient() -> None:
    model = make_variant(reconstruction="mse")
    model.weighting = SigmoidWeighting(1.5, 4.5, boost_below=0.0)  # would be undone in the encoder's gradient
    boosted = gradients(model.encoder, model(make_pixels(2), make_noise(2)).decoder_boosted.sum())
    model.weighting = SigmoidWeighting(1.5, 4.5)
    plain = gradients(model.encoder, model(make_pixels(2), make_noise(2)).decoder_boosted.sum())
    for one, other in zip(boosted, plain, strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().sum() > 0


def test_an_encoder_with_a_variance_draws_the_latent_that_prior_and_decoder_see() -> None:
    z_clean, logvar = torch.randn(3, *LATENT), torch.full((3, *LATENT), -1.0)
    model, prior, decoder = make_spied(torch.cat([z_clean, logvar], dim=1))
    noise = make_noise(3)
    noise.variance = torch.randn(3, *LATENT)
    loss = model(make_pixels(3), noise)
    z = draw_latent(z_clean, logvar, noise.variance)
    torch.testing.assert_close(decoder.z_0, diffuse(z, noise.latent, torch.full((3,), 5.0)))
    torch.testing.assert_close(prior.z_t, diffuse(z, noise.prior, prior.logsnr))
    torch.testing.assert_close(loss.latent, loss.prior + terminal_kl(z, model.prior_schedule) - loss.variance_gain)
    torch.testing.assert_close(loss.variance_gain, variance_gain(logvar, 5.0))


def test_the_gradient_reaches_both_halves_of_such_an_encoder() -> None:
    model = make_model(learned_variance=True)
    noise = make_noise(2)
    noise.variance = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(2))
    model(make_pixels(2), noise).total(1.0).backward()
    gradient = model.encoder.conv_out.weight.grad
    assert gradient is not None
    assert all(half.abs().sum() > 0 for half in gradient.split(LATENT[0]))


def test_a_single_stage_draws_the_level_of_the_latent_and_weighs_the_prior_by_it() -> None:
    z_clean = torch.randn(3, *LATENT)
    model, prior, decoder = make_spied(z_clean)
    plain, _, _ = make_spied(z_clean)
    level = RandomLatentLevel(bias=1.0, low=-3.0, high=5.0)
    model.variant = Variant(latent_level=level)
    noise = make_noise(3)
    noise.t_latent = torch.tensor([0.1, 0.5, 0.9])
    loss, reference = model(make_pixels(3), noise), plain(make_pixels(3), noise)
    levels = level.level(noise.t_latent)
    assert levels.diff().min() > 0.5
    assert decoder.latent_logsnr is not None
    torch.testing.assert_close(decoder.latent_logsnr, levels)
    torch.testing.assert_close(decoder.z_0, diffuse(z_clean, noise.latent, levels))
    torch.testing.assert_close(loss.prior, level.weight(prior.logsnr) * reference.prior)
    assert torch.equal(loss.terminal_kl, reference.terminal_kl)
