"""The objective of Unified Latents: nats per sample, summed over dimensions.

Symbols (the paper's): x pixels in [−1, 1]; z_clean = E(x); z_0 = α₀ z_clean + σ₀ ε at λ_z(0);
x_t = α x + σ ε; λ log-SNR, falling with t; v = α ε − σ x. `paper.md` says which printed signs are corrected.

No function here takes a mean over dimensions: the balance of the two losses is the ratio of their nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ul_tokenizer.diffusion.parameterization import PREDICTION_TYPES, PredictionType, broadcast_to_rank, velocity
from ul_tokenizer.diffusion.schedule import LogSNRSchedule, alpha_sigma


@dataclass(frozen=True)
class SigmoidWeighting:
    """w(λ) = c_lf · sigmoid(b − λ), a weight of the ε-MSE: the decoder's (Eq. 4, sign corrected) and the base model's.

    `boost_below` = λ_f multiplies w by max(1, e^{λ_f − λ}): at levels noisier than λ_f the x-MSE then keeps the
    weight that it has at λ_f, so that few-step decoding, which starts there, is trained. The factor is undone in
    the gradient that reaches z_0 (`scale_gradient`): each level's optimal decoder and the encoder's trade-off
    between bits and distortion stay those of the plain loss.

    Raises:
        ValueError: a loss factor that is not positive.
    """

    loss_factor: float = 1.5  # c_lf
    bias: float = 2.0  # b, in log-SNR
    boost_below: float | None = None  # λ_f; None: no boost

    def __post_init__(self) -> None:
        if not self.loss_factor > 0:
            raise ValueError(f"loss_factor must be positive, got {self.loss_factor}.")

    def weight(self, logsnr: Tensor) -> Tensor:
        """w(λ), shaped like `logsnr`: tends to c_lf as λ → −∞ and to 0 as λ → +∞."""
        return self.loss_factor * torch.sigmoid(self.bias - logsnr)

    def boost(self, logsnr: Tensor) -> Tensor:
        """max(1, e^{λ_f − λ}), shaped like `logsnr`."""
        if self.boost_below is None:
            return torch.ones_like(logsnr)
        return torch.exp(torch.relu(self.boost_below - logsnr))

    @property
    def crossing(self) -> float:
        """λ* = b + ln(c_lf − 1), where w = 1: levels noisier than this are cheaper in the latent (−inf if c_lf ≤ 1)."""
        return self.bias + math.log(self.loss_factor - 1) if self.loss_factor > 1 else -math.inf


@dataclass(frozen=True)
class RandomLatentLevel:
    """λ_z(0) drawn for each sample from a truncated logistic distribution: single-stage training (Appendix B, b).

    The prior's bound then has the weight P(λ_z(0) > λ), nearly the sigmoid weighting of a base model, so that one
    model can be the prior and the generator. The decoder is conditioned on the level (`latent_logsnr_min`).
    """

    bias: float  # b_z, where the untruncated distribution has its median
    low: float  # the noisiest level
    high: float  # the cleanest, λ_z(0) of the prior

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}.")

    def _cdf(self, logsnr: Tensor) -> Tensor:
        return torch.sigmoid(logsnr - self.bias)

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return self._cdf(torch.full_like(like, self.low)), self._cdf(torch.full_like(like, self.high))

    def level(self, u: Tensor) -> Tensor:
        """λ_z(0) of uniform numbers in [0, 1], any shape: the inverse of the distribution function."""
        first, last = self._ends(u)
        return (self.bias + torch.logit(first + u * (last - first))).clamp(self.low, self.high)

    def weight(self, logsnr: Tensor) -> Tensor:
        """P(λ_z(0) > λ), shaped like `logsnr`: 1 below `low` and 0 at `high`."""
        first, last = self._ends(logsnr)
        return ((last - self._cdf(logsnr)) / (last - first)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class Variant:
    """What stage 1 changes of the paper's objective, for its ablations; the defaults change nothing.

    * `latent_cost="prior"`: the encoder pays the diffusion prior's loss L_z.
    * `latent_cost="normal"`: no gradient of the prior reaches the encoder, which pays
      `kl_weight` · KL[q(z_0 | x) ‖ N(0, I)] instead. A weight of 1 is the paper's "normal prior" (Table 5: 0.39 against
      0.079 bits), a small one its stop-gradient with a weak KL (Table 6 A: gFID 7.80 against 1.54). The diffusion prior
      is trained all the same and measures the bits.
    * `reconstruction="mse"`: the decoder takes a single step, from its noisiest level, under a Gaussian likelihood of
      variance e^{−b} / c_lf (Table 5: rFID 1.1 against 0.86). A diffusion decoder may be trained afterwards, alone.
    """

    latent_cost: Literal["prior", "normal"] = "prior"
    kl_weight: float = 1.0
    reconstruction: Literal["diffusion", "mse"] = "diffusion"
    latent_level: RandomLatentLevel | None = None  # None: always the prior's λ_z(0)

    def __post_init__(self) -> None:
        if not self.kl_weight > 0:
            raise ValueError(f"kl_weight must be positive, got {self.kl_weight}.")


@dataclass(frozen=True)
class UnifiedLatentsLoss:
    """The terms of L = L_z + L_x, each in nats per sample."""

    prior: Tensor  # (B,)  E_t[½ (−dλ/dt) ‖ε − ε̂‖²] of the latent
    terminal_kl: Tensor  # (B,)  KL[N(α₁ z_clean, σ₁²) ‖ N(0, I)]
    decoder: Tensor  # (B,)  c_lf · E_t[½ (−dλ/dt) sigmoid(b − λ) ‖ε − ε̂‖²] of the pixels
    decoder_boosted: Tensor  # (B,)  the same with the boost: what is minimised, equal to `decoder` without one
    variance_gain: Tensor | float = 0.0  # (B,)  ½ Σ ln(σ_z² e^{λ_z(0)} + 1), if the encoder learns its variance σ_z²
    # (B,)  kl_weight · KL[q(z_0 | x) ‖ N(0, I)], if the encoder pays it; L_z then has no gradient for the encoder
    latent_kl: Tensor | None = None

    @property
    def latent(self) -> Tensor:
        """L_z (B,): upper bound on the information in z_0, in nats."""
        return self.prior + self.terminal_kl - self.variance_gain

    def total(self, divisor: float, prior_weight: float | Tensor = 1.0) -> Tensor:
        """Scalar to minimise, (), one divisor for all terms.

        The batch mean of (prior_weight · L_z + L_x) / divisor; if the encoder pays a KL instead of L_z, that of
        (L_z + prior_weight · KL + L_x) / divisor.
        """
        if self.latent_kl is None:
            return ((prior_weight * self.latent + self.decoder_boosted) / divisor).mean()
        return ((self.latent + prior_weight * self.latent_kl + self.decoder_boosted) / divisor).mean()


# ----------------------------------------------------------------------------------------------------------------
# Pieces of the equations
# ----------------------------------------------------------------------------------------------------------------


def stratified_times(batch_size: int, generator: torch.Generator | None = None) -> Tensor:
    """t (B,) fp32 on the generator's device, each uniform on [0, 1]: one in every B-th of it, in random order."""
    device = None if generator is None else generator.device
    offset = torch.rand((), generator=generator, device=device)
    order = torch.randperm(batch_size, generator=generator, device=device)
    return (order + offset) / batch_size


def diffuse(clean: Tensor, noise: Tensor, logsnr: Tensor) -> Tensor:
    """x_t = α x + σ ε in fp32.

    Args:
        clean: x, (B, …), any float dtype.
        noise: ε, shaped like `clean`.
        logsnr: λ, (B,), or () for all samples.

    Returns:
        x_t, shaped like `clean`, fp32.

    Raises:
        ValueError: a `logsnr` that does not fit the batch.
    """
    alpha, sigma = alpha_sigma(broadcast_to_rank(logsnr, clean))
    return alpha * clean.float() + sigma * noise.float()


def sum_of_squares(x: Tensor) -> Tensor:
    """‖x‖² per sample: (B, …) → (B,)."""
    return x.square().flatten(1).sum(1)


def eps_squared_error(
    prediction: Tensor, clean: Tensor, noise: Tensor, logsnr: Tensor, prediction_type: PredictionType
) -> Tensor:
    """‖ε − ε̂‖² from any prediction without dividing by α or σ: e^λ ‖x − x̂‖² = ‖ε − ε̂‖² = α² ‖v − v̂‖².

    Args:
        prediction: the network's output (B, …), any float dtype.
        clean: x, shaped like `prediction`.
        noise: ε, shaped like `prediction`.
        logsnr: λ, (B,).
        prediction_type: what `prediction` is.

    Returns:
        (B,), fp32, summed over dimensions.

    Raises:
        ValueError: an unknown `prediction_type`.
    """
    prediction, clean, noise = prediction.float(), clean.float(), noise.float()
    if prediction_type == "epsilon":
        return sum_of_squares(noise - prediction)
    if prediction_type == "sample":
        return logsnr.exp() * sum_of_squares(clean - prediction)
    if prediction_type == "v_prediction":
        return torch.sigmoid(logsnr) * sum_of_squares(velocity(clean, noise, logsnr) - prediction)
    raise ValueError(f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}.")


# ----------------------------------------------------------------------------------------------------------------
# The terms
# ----------------------------------------------------------------------------------------------------------------


def prior_loss(
    prediction: Tensor,
    z_clean: Tensor,
    noise: Tensor,
    t: Tensor,
    schedule: LogSNRSchedule,
    prediction_type: PredictionType = "v_prediction",
) -> Tensor:
    """One-sample estimate of the prior's ELBO (Eq. 3): ½ (−dλ_z/dt) ‖ε − ε̂‖², nats per sample.

    Args:
        prediction: the prior's output at z_t, (B, …).
        z_clean: E(x), (B, …); gradient flows into it.
        noise: the ε that made z_t from z_clean, (B, …).
        t: (B,).
        schedule: λ_z(t).
        prediction_type: what `prediction` is.

    Returns:
        (B,), fp32.
    """
    t = t.float()
    error = eps_squared_error(prediction, z_clean, noise, schedule.logsnr(t), prediction_type)
    return 0.5 * -schedule.dlogsnr_dt(t) * error


def normal_kl(z_clean: Tensor, logsnr: float) -> Tensor:
    """KL[N(α z_clean, σ² I) ‖ N(0, I)] (B,) in nats, α and σ those of `logsnr`."""
    e_logsnr = math.exp(logsnr)
    alpha_sq = e_logsnr / (1 + e_logsnr)
    constant = math.log1p(e_logsnr) - alpha_sq  # σ² − 1 − ln σ², in double: nearly equal numbers at noisy levels
    return 0.5 * (alpha_sq * sum_of_squares(z_clean.float()) + constant * z_clean[0].numel())


def terminal_kl(z_clean: Tensor, schedule: LogSNRSchedule) -> Tensor:
    """KL[N(α₁ z_clean, σ₁² I) ‖ N(0, I)] (B,) in nats: what stops z_clean from growing without limit."""
    return normal_kl(z_clean, schedule.logsnr_min)


def draw_latent(z_clean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """z = z_clean + σ_z ε in fp32, the latent of an encoder that learns its variance σ_z²; all (B, …)."""
    return z_clean.float() + (0.5 * logvar.float()).exp() * noise.float()


def variance_gain(logvar: Tensor, logsnr: float) -> Tensor:
    """½ Σ ln(σ_z² e^{λ_z(0)} + 1) (B,) in nats: what a learned variance adds to the entropy of z_0 (Table 6 D).

    The prior's bound for z = z_clean + σ_z ε exceeds the information in z_0 by this amount.
    """
    return 0.5 * torch.nn.functional.softplus(logvar.float() + logsnr).flatten(1).sum(1)


def gaussian_loss(
    prediction: Tensor,
    x: Tensor,
    noise: Tensor,
    logsnr: Tensor,
    weighting: SigmoidWeighting,
    prediction_type: PredictionType = "v_prediction",
) -> Tensor:
    """½ c_lf e^b ‖x − x̂‖² (B,): the likelihood of `Variant.reconstruction` "mse", without its constant.

    The paper's decoder loss gives ‖x − x̂‖² this same weight at levels much cleaner than b. Arguments as in
    `eps_squared_error`.
    """
    error = torch.exp(weighting.bias - logsnr) * eps_squared_error(prediction, x, noise, logsnr, prediction_type)
    return 0.5 * weighting.loss_factor * error


def sigmoid_loss(
    prediction: Tensor,
    x: Tensor,
    noise: Tensor,
    t: Tensor,
    schedule: LogSNRSchedule,
    weighting: SigmoidWeighting,
    prediction_type: PredictionType = "v_prediction",
) -> Tensor:
    """One-sample estimate of c_lf · ½ (−dλ/dt) sigmoid(b − λ) ‖ε − ε̂‖², nats per sample.

    The decoder's loss on pixels (Eq. 4), and at c_lf = 1 that of the base model on z_clean. The paper prints +dλ/dt,
    which would be negative: λ falls with t. Arguments as in `prior_loss`.
    """
    t = t.float()
    logsnr = schedule.logsnr(t)
    error = eps_squared_error(prediction, x, noise, logsnr, prediction_type)
    return 0.5 * -schedule.dlogsnr_dt(t) * weighting.weight(logsnr) * error


# ----------------------------------------------------------------------------------------------------------------
# Gradients and units
# ----------------------------------------------------------------------------------------------------------------


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        """x itself."""
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient times the factor; none for the factor."""
        (factor,) = ctx.saved_tensors
        return grad * factor.to(grad.dtype), None


def scale_gradient(x: Tensor, factor: Tensor) -> Tensor:
    """x unchanged, its gradient multiplied by `factor` (B,) per sample."""
    scaled: Tensor = _ScaleGradient.apply(x, broadcast_to_rank(factor, x))  # type: ignore[no-untyped-call]
    return scaled


def nats_to_bits(nats: Tensor) -> Tensor:
    """Nats → bits, same shape."""
    return nats / math.log(2)


def bits_per_pixel_divisor(height: int, width: int, num_frames: int = 1) -> float:
    """What nats per sample are divided by to give bits per pixel: T·H·W·ln 2; colour channels don't count.

    Args:
        height: H, in pixels.
        width: W, in pixels.
        num_frames: T; 1 for images.
    """
    return num_frames * height * width * math.log(2)
