"""The scale of latents on which a generator works: normalised outside of the autoencoder, as its config says.

The config keys mean the same for every autoencoder, ours included, and for the code of others:

    z' = (z − latents_mean) / latents_std           where both are set and are not zeros and ones,
    z' = (z − shift_factor) · scaling_factor        else.

Training of ours leaves them at the identity, since the prior holds unified latents near unit scale, and the level of
z_0 is relative to that scale. With the identity nothing is computed, so latents keep their bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def normalize_latents(vae: Any, latents: Tensor) -> Tensor:
    """z → z': what an autoencoder encodes → what a generator is trained on.

    Args:
        vae: an autoencoder of ours or of diffusers.
        latents: (B, c, [t,] h, w).

    Returns:
        latents of the same shape and dtype.

    Raises:
        ValueError: `latents_mean` and `latents_std` are for another number of channels.
    """
    shift_and_scale = _shift_and_scale(vae, latents)
    if shift_and_scale is None:
        return latents
    shift, scale = shift_and_scale
    return (latents - shift) * scale


def denormalize_latents(vae: Any, latents: Tensor) -> Tensor:
    """z' → z, the inverse of `normalize_latents`: what a generator makes → what the autoencoder decodes.

    Arguments, result and errors are those of `normalize_latents`; latents (B, c, [t,] h, w) keep their shape.
    """
    shift_and_scale = _shift_and_scale(vae, latents)
    if shift_and_scale is None:
        return latents
    shift, scale = shift_and_scale
    return latents / scale + shift


def is_normalized(vae: Any) -> bool:
    """Whether an autoencoder of ours normalises its latents at all."""
    return _shift_and_scale(vae, torch.zeros(1, vae.config.latent_channels, 1, 1)) is not None


def _shift_and_scale(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor] | None:
    """What is subtracted, then multiplied by; None for the identity."""
    config = vae.config
    mean, std = (_statistic(vae, name) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None and (any(mean) or any(value != 1 for value in std)):
        return _per_channel(mean, latents), 1 / _per_channel(std, latents)
    shift, scale = config.get("shift_factor") or 0.0, config.get("scaling_factor")
    scale = 1.0 if scale is None else scale
    return None if (shift, scale) == (0, 1) else (latents.new_tensor(shift), latents.new_tensor(scale))


def _statistic(vae: Any, name: str) -> Any:
    """A list from the config, or from a tensor of the model's state, as LTX has it; None if there is none."""
    values = vae.config.get(name)
    if values is None and isinstance(vae, nn.Module):
        stored = dict(vae.named_buffers(recurse=False)).get(name)
        return None if stored is None else stored.tolist()
    return values


def _per_channel(values: Any, latents: Tensor) -> Tensor:
    statistic = torch.as_tensor(values, dtype=latents.dtype, device=latents.device).flatten()
    if len(statistic) != latents.shape[1]:
        raise ValueError(
            f"latents must have the {len(statistic)} channels of the autoencoder's latents_mean and latents_std, "
            f"got {latents.shape[1]}."
        )
    return statistic.reshape(1, -1, *[1] * (latents.ndim - 2))
