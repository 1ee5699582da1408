"""What a generator needs of an autoencoder, ours or any of diffusers', of images or of videos.

Autoencoders of videos in diffusers take clips only, (B, 3, T, H, W), and a picture is a clip of one frame. Most are
causal: the first frame has a latent frame of its own, and each further one stands for R frames, so T = 1 + R·(t − 1).
Ours pads in front instead, so T = R·t. Latents of pictures have no time here, (B, c, h, w), whatever encodes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder


def is_ours(vae: Any) -> bool:
    """Whether it is a `UnifiedLatentsAutoencoder`."""
    return isinstance(vae, UnifiedLatentsAutoencoder)


# ---------------------------------------------------------------- sizes


def latent_channels(vae: Any) -> int | None:
    """Channels c of the latents; None if the config doesn't say."""
    channels = vae.config.get("latent_channels", vae.config.get("z_dim"))
    return None if channels is None else int(channels)


def spatial_ratio(vae: Any) -> int:
    """Pixels per latent, a side."""
    ratio = getattr(vae, "spatial_compression_ratio", None) or vae.config.get("spatial_compression_ratio")
    if ratio is not None:
        return int(ratio)
    return int(2 ** (len(vae.config["block_out_channels"]) - 1))


def temporal_ratio(vae: Any) -> int:
    """Frames per latent frame, R; 1 for autoencoders of images."""
    stated = (vae.config.get(name) for name in ("temporal_compression_ratio", "scale_factor_temporal"))
    return int(getattr(vae, "temporal_compression_ratio", None) or next(filter(None, stated), 1))


def takes_clips_only(vae: Any) -> bool:
    """Whether pixels and latents must have a time axis, which ours need not."""
    encoder = getattr(vae, "encoder", None)
    if is_ours(vae) or not isinstance(encoder, nn.Module):
        return False
    return any(isinstance(module, nn.Conv3d) for module in encoder.modules())


def frames_of(vae: Any, latent_frames: int) -> int:
    """How many frames are decoded from latents of `latent_frames` frames."""
    ratio = temporal_ratio(vae)
    return latent_frames * ratio if is_ours(vae) else 1 + ratio * (latent_frames - 1)


def latent_frames_of(vae: Any, frames: int) -> int:
    """The least number of latent frames from which `frames` frames are decoded."""
    ratio = temporal_ratio(vae)
    return -(-frames // ratio) if is_ours(vae) else 1 + -(-(frames - 1) // ratio)


# ---------------------------------------------------------------- tensors


def is_random(vae: Any) -> bool:
    """Whether its clean latents are draws: it is one of ours that learned a variance."""
    return is_ours(vae) and bool(vae.config.learned_variance)


def check_deterministic(vae: Any) -> None:
    """Raises a ValueError for an autoencoder with a learned variance, whose latent is another one in each draw."""
    if is_random(vae):
        raise ValueError("latents are stored and given only of encoders without learned_variance, got one with it.")


def encode_clean(vae: Any, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, [T,] H, W) in [−1, 1] → z_clean (B, c, [t,] h, w), fp32, not normalised: of others the mode.

    Raises:
        ValueError: an autoencoder with a learned variance, whose latent is another one in each draw.
    """
    check_deterministic(vae)
    is_picture = pixels.ndim == 4 and takes_clips_only(vae)
    encoded = vae.encode((pixels.unsqueeze(2) if is_picture else pixels).to(vae.dtype))
    # The mode of ours is the latent scaled by α₀, so it must not be taken here.
    direct = getattr(encoded, "latent", getattr(encoded, "latents", None))
    latents: Tensor = encoded.latent_dist.mode() if direct is None else direct
    return (latents.squeeze(2) if is_picture else latents).float()


def decode_any(vae: Any, latents: Tensor, **options: Any) -> Tensor:
    """Latents as the autoencoder's own (B, c, [t,] h, w) → pixels (B, 3, [T,] H, W), about [−1, 1].

    Args:
        vae: the autoencoder.
        latents: not normalised.
        **options: further arguments of its `decode`.
    """
    is_picture = latents.ndim == 4 and takes_clips_only(vae)
    if vae.config.get("timestep_conditioning"):  # such decoders of LTX remove noise as well; here there is none
        options["temb"] = torch.zeros(len(latents), device=latents.device, dtype=latents.dtype)
    z = (latents.unsqueeze(2) if is_picture else latents).to(vae.dtype)
    pixels: Tensor = vae.decode(z, return_dict=False, **options)[0]
    return pixels[:, :, 0] if is_picture else pixels
