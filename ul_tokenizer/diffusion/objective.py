"""The objective of Unified Latents: nats per sample, summed over dimensions.

Symbols (the paper's): x pixels in [−1, 1]; z_clean = E(x); z_0 = α₀ z_clean + σ₀ ε at λ_z(0);
x_t = α x + σ ε; λ log-SNR, falling with t; v = α ε − σ x. `paper.md` says which printed signs are corrected.

No function here takes a mean over dimensions: the balance of the two losses is the ratio of their nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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
class UnifiedLatentsLoss:
    """The terms of L = L_z + L_x, each in nats per sample."""

    prior: Tensor  # (B,)  E_t[½ (−dλ/dt) ‖ε − ε̂‖²] of the latent
    terminal_kl: Tensor  # (B,)  KL[N(α₁ z_clean, σ₁²) ‖ N(0, I)]
    decoder: Tensor  # (B,)  c_lf · E_t[½ (−dλ/dt) sigmoid(b − λ) ‖ε − ε̂‖²] of the pixels
    decoder_boosted: Tensor  # (B,)  the same with the boost: what is minimised, equal to `decoder` without one

    @property
    def latent(self) -> Tensor:
        """L_z (B,): upper bound on the information in z_0, in nats."""
        return self.prior + self.terminal_kl

    def total(self, divisor: float, prior_weight: float | Tensor = 1.0) -> Tensor:
        """Scalar to minimise, (): batch mean of (prior_weight · L_z + L_x) / divisor, one divisor for both."""
        return ((prior_weight * self.latent + self.decoder_boosted) / divisor).mean()


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


def terminal_kl(z_clean: Tensor, schedule: LogSNRSchedule) -> Tensor:
    """KL[N(α₁ z_clean, σ₁² I) ‖ N(0, I)] (B,) in nats: what stops z_clean from growing without limit."""
    e_logsnr = math.exp(schedule.logsnr_min)
    alpha_sq = e_logsnr / (1 + e_logsnr)
    constant = math.log1p(e_logsnr) - alpha_sq  # σ₁² − 1 − ln σ₁², in double: nearly equal numbers
    return 0.5 * (alpha_sq * sum_of_squares(z_clean.float()) + constant * z_clean[0].numel())


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
