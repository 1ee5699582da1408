"""Conversions between a network's prediction and (x̂, ε̂), for z_t = αx + σε at log-SNR λ.

All in fp32 whatever comes in (float64 if an input is), since 1/α and 1/σ magnify rounding at the ends.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ul_tokenizer.diffusion.schedule import alpha_sigma

PredictionType = Literal["v_prediction", "epsilon", "sample"]
PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)


def broadcast_to_rank(logsnr_B: Tensor, like: Tensor) -> Tensor:
    """Append axes to a per-sample value so that it meets the batch axis of `like`, whatever the other sizes.

    Args:
        logsnr_B: one value per sample (B,), or one for all, (1,) or ().
        like: tensor (B, ...) of any rank.

    Returns:
        (B, 1, ..., 1) or (1, 1, ..., 1) on the device of `like`, fp32 (float64 if an input is).

    Raises:
        ValueError: if there is neither one value nor one per sample.
    """
    batch = like.shape[0] if like.ndim else 1
    if logsnr_B.ndim > 1 or logsnr_B.numel() not in (1, batch):
        raise ValueError(
            f"logsnr must hold one value or one per sample of a {tuple(like.shape)} tensor, "
            f"got shape {tuple(logsnr_B.shape)}."
        )
    values = logsnr_B.to(like.device, _wide(logsnr_B, like))
    return values.reshape(-1, *[1] * (like.ndim - 1)) if like.ndim else values.reshape(())


def velocity(x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """v = αε − σx.

    Args:
        x: clean samples, (B, ...).
        eps: noise, shaped like `x`.
        logsnr: λ, (B,), or () for all samples.

    Returns:
        v, shaped like `x`.

    Raises:
        ValueError: a `logsnr` that does not fit the batch.
    """
    alpha, sigma = alpha_sigma(broadcast_to_rank(logsnr, x))
    return alpha * eps - sigma * x


def x_of_v(v: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x̂ = αx_t − σv, shaped like `v` and `x_t` (B, ...); α and σ broadcast to them."""
    return alpha * x_t - sigma * v


def to_x(prediction: Tensor, z_t: Tensor, logsnr: Tensor, prediction_type: PredictionType) -> Tensor:
    """The clean sample x̂ alone; arguments, dtype and errors as in `to_x_and_eps`."""
    prediction, z_t = _widened(prediction, z_t)
    alpha, sigma = alpha_sigma(broadcast_to_rank(logsnr, z_t))
    if prediction_type == "v_prediction":
        return x_of_v(prediction, z_t, alpha, sigma)
    if prediction_type == "epsilon":
        return (z_t - sigma * prediction) / alpha
    if prediction_type == "sample":
        return prediction
    raise ValueError(f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}.")


def to_eps(prediction: Tensor, z_t: Tensor, logsnr: Tensor, prediction_type: PredictionType) -> Tensor:
    """The noise ε̂ alone; arguments, dtype and errors as in `to_x_and_eps`."""
    prediction, z_t = _widened(prediction, z_t)
    alpha, sigma = alpha_sigma(broadcast_to_rank(logsnr, z_t))
    if prediction_type == "v_prediction":
        return sigma * z_t + alpha * prediction
    if prediction_type == "epsilon":
        return prediction
    if prediction_type == "sample":
        return (z_t - alpha * prediction) / sigma
    raise ValueError(f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}.")


def to_x_and_eps(
    prediction: Tensor, z_t: Tensor, logsnr: Tensor, prediction_type: PredictionType
) -> tuple[Tensor, Tensor]:
    """Clean sample and noise that a prediction means: αx̂ + σε̂ = z_t.

    Args:
        prediction: network output (B, ...), any float dtype.
        z_t: noisy sample, shaped like `prediction`.
        logsnr: λ of each sample, (B,), or one for all, ().
        prediction_type: what the network predicts, in diffusers' words; v = αε − σx.

    Returns:
        (x̂, ε̂), each shaped like `prediction`, fp32 (float64 if an input is).

    Raises:
        ValueError: for an unknown `prediction_type`, or a `logsnr` that does not fit the batch.
    """
    prediction, z_t = _widened(prediction, z_t)
    return to_x(prediction, z_t, logsnr, prediction_type), to_eps(prediction, z_t, logsnr, prediction_type)


def _wide(a: Tensor, b: Tensor) -> torch.dtype:
    return torch.promote_types(torch.float32, torch.promote_types(a.dtype, b.dtype))


def _widened(prediction: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
    dtype = _wide(prediction, z_t)
    return prediction.to(dtype), z_t.to(dtype)
