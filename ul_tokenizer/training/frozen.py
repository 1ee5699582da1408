"""The frozen autoencoder of stage 2: one of ours or any of diffusers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoModel
from torch import Tensor, nn

from ul_tokenizer.diffusion.objective import draw_latent
from ul_tokenizer.media.pixels import to_float
from ul_tokenizer.models.any_autoencoder import (
    decode_any,
    encode_clean,
    frames_of,
    is_ours,
    is_random,
    latent_channels,
    spatial_ratio,
)
from ul_tokenizer.models.latent_normalization import denormalize_latents, normalize_latents
from ul_tokenizer.models.repository import MissingPriorError, load_autoencoder, load_prior
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer


class FrozenAutoencoder:
    """Encodes the latents on which a base model is trained.

    Args:
        vae: the autoencoder, which is set to evaluation mode and frozen.
        prior: the stage-1 prior of one of our autoencoders, to be saved with it.
    """

    def __init__(self, vae: Any, prior: UnifiedLatentsTransformer | None = None) -> None:
        self.vae, self.prior = vae.eval().requires_grad_(False), prior
        self.ratio = spatial_ratio(vae)
        self.is_ours, self.is_random = is_ours(vae), is_random(vae)
        channels = latent_channels(vae)
        assert channels is not None  # `load_other` refuses such models
        self.latent_channels = channels
        self.passes = 0  # number of images encoded so far

    def to(self, device: torch.device) -> None:
        """Moves the autoencoder to a device, with its convolutions in channels-last memory."""
        self.vae.to(device)
        for module in self.vae.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            elif isinstance(module, nn.Conv3d) and device.type == "cuda":  # on CPUs it gains nothing
                module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encodes a batch to what a base model is trained on.

        Args:
            pixels: (B, 3, [T,] H, W), as `encode_clean` takes them.
            noise: ε (B, c, [t,] h, w) of encoders that learned a variance (`is_random`); others ignore it.

        Returns:
            normalised z_clean (B, c, [t,] h, w) in fp32, or a draw around it.
        """
        if not self.is_random or noise is None:
            return normalize_latents(self.vae, self.encode_clean(pixels))
        self.passes += len(pixels)
        with torch.no_grad():
            encoded = self.vae.encode(to_float(pixels) if pixels.dtype == torch.uint8 else pixels).latent_dist
            return normalize_latents(self.vae, draw_latent(encoded.latent, encoded.latent_logvar, noise))

    @torch.no_grad()
    def encode_clean(self, pixels: Tensor, num_rows: int | None = None) -> Tensor:
        """Encodes a batch to latents as a latent data set stores them.

        Args:
            pixels: (B, 3, [T,] H, W), floats in [−1, 1] or uint8.
            num_rows: rows that the network gets; copies of the last one fill them up. With the same number, no latent
                depends on how many others are in its batch, not even by a rounding error.

        Returns:
            z_clean (B, c, [t,] h, w) in fp32, not normalised; for others' autoencoders the mode.
        """
        count = len(pixels)
        self.passes += count
        if num_rows is not None and count < num_rows:
            pixels = torch.cat([pixels, pixels[-1:].expand(num_rows - count, *pixels.shape[1:])])
        return encode_clean(self.vae, to_float(pixels) if pixels.dtype == torch.uint8 else pixels)[:count]

    @torch.no_grad()
    def decode(self, z: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Normalised z_0 (B, c, [t,] h, w) → pixels (B, 3, [T,] H, W), about [−1, 1], fp32; one generator per sample.

        Ours decodes in its own number of steps, as in the pipeline; others need no generator.
        """
        options = {"generator": generators} if self.is_ours else {}
        return decode_any(self.vae, denormalize_latents(self.vae, z), **options).float()

    def frames_of(self, latent_frames: int) -> int:
        """How many frames are decoded from latents of `latent_frames` frames; of none, none."""
        return frames_of(self.vae, latent_frames) if latent_frames else 0


def load_ours(name: str, revision: str | None = None) -> FrozenAutoencoder:
    """Loads one of our autoencoders, and its prior if there is one; arguments and errors as in `load_autoencoder`."""
    try:
        prior = load_prior(name, revision=revision)
    except MissingPriorError:
        prior = None
    return FrozenAutoencoder(load_autoencoder(name, revision=revision), prior)


def load_other(name: str, subfolder: str | None = None, revision: str | None = None) -> FrozenAutoencoder:
    """Loads any autoencoder of diffusers; its config names the class.

    Raises:
        ValueError: there is no model, or it is not an autoencoder.
    """
    try:
        vae = AutoModel.from_pretrained(name, subfolder=subfolder, revision=revision, use_safetensors=True)
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"--pretrained_vae {name} can't be loaded: {reason}.") from error
    if not hasattr(vae, "encode") or not hasattr(vae, "decode") or latent_channels(vae) is None:
        raise ValueError(f"--pretrained_vae must be an autoencoder, got a {type(vae).__name__}.")
    return FrozenAutoencoder(vae)
