"""Latents as a generator is trained on them: normalised outside of the autoencoder, as its config says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder


def normalize_latents(vae: Any, latents: Tensor) -> Tensor:
    """What an autoencoder encodes → what a generator is trained on; same shape and dtype.

    Ours stay as they are: their prior has held them near unit scale, and the level of z_0 is relative to that. For
    diffusers' autoencoders it is (z − mean) / std per channel where the config has `latents_mean` and `latents_std`,
    else (z − shift_factor) · scaling_factor.
    """
    if isinstance(vae, UnifiedLatentsAutoencoder):
        return latents
    shift, scale = _shift_and_scale(vae, latents)
    return (latents - shift) * scale


def denormalize_latents(vae: Any, latents: Tensor) -> Tensor:
    """The inverse of `normalize_latents`: what the autoencoder decodes."""
    if isinstance(vae, UnifiedLatentsAutoencoder):
        return latents
    shift, scale = _shift_and_scale(vae, latents)
    return latents / scale + shift


def _shift_and_scale(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        return _per_channel(mean, latents), 1 / _per_channel(std, latents)
    shift, scale = config.get("shift_factor"), config.get("scaling_factor")
    return latents.new_tensor(shift or 0.0), latents.new_tensor(1.0 if scale is None else scale)


def _per_channel(values: Any, latents: Tensor) -> Tensor:
    statistic = torch.as_tensor(values, dtype=latents.dtype, device=latents.device).flatten()
    if len(statistic) != latents.shape[1]:
        raise ValueError(
            f"latents must have the {len(statistic)} channels of the autoencoder's latents_mean and latents_std, "
            f"got {latents.shape[1]}."
        )
    return statistic.reshape(1, -1, *[1] * (latents.ndim - 2))
