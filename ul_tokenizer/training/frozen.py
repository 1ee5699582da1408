"""The frozen autoencoder of stage 2: one of ours or any of diffusers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoModel
from torch import Tensor

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.latent_normalization import denormalize_latents, normalize_latents
from ul_tokenizer.models.repository import MissingPriorError, load_autoencoder, load_prior
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.pipelines.generation import spatial_ratio


class FrozenAutoencoder:
    """Encodes the latents on which a base model is trained.

    Args:
        vae: the autoencoder, which is set to evaluation mode and frozen.
        prior: the stage-1 prior of one of our autoencoders, to be saved with it.
    """

    def __init__(self, vae: Any, prior: UnifiedLatentsTransformer | None = None) -> None:
        self.vae, self.prior = vae.eval().requires_grad_(False), prior
        self.ratio = spatial_ratio(vae)
        self.is_ours = isinstance(vae, UnifiedLatentsAutoencoder)
        self.latent_channels = int(vae.config["latent_channels"])
        self.passes = 0  # number of images encoded so far

    def to(self, device: torch.device) -> None:
        """Moves the autoencoder to a device, with its convolutions in channels-last memory."""
        self.vae.to(device, memory_format=torch.channels_last)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [−1, 1] → z_clean (B, c, h, w) in fp32; for others' VAEs the normalised mode."""
        self.passes += len(pixels)
        encoded = self.vae.encode(pixels.to(self.vae.dtype))
        # The mode of ours is the latent scaled by α₀, so it must not be taken here.
        latents = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
        return normalize_latents(self.vae, latents.float())

    @torch.no_grad()
    def decode(self, z: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Normalised z_0 (B, c, [t,] h, w) → pixels (B, 3, [T,] H, W), about [−1, 1], fp32; one generator per sample.

        Ours decodes in its own number of steps, as in the pipeline; others need no generator.
        """
        latents = denormalize_latents(self.vae, z).to(self.vae.dtype)
        options = {"generator": generators} if self.is_ours else {}
        pixels: Tensor = self.vae.decode(latents, return_dict=False, **options)[0]
        return pixels.float()


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
        ValueError: there is no model, or it is no autoencoder.
    """
    try:
        vae = AutoModel.from_pretrained(name, subfolder=subfolder, revision=revision, use_safetensors=True)
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"--pretrained_vae {name} can't be loaded: {reason}.") from error
    if not hasattr(vae, "encode") or not hasattr(vae, "decode") or "latent_channels" not in vae.config:
        raise ValueError(f"--pretrained_vae must be an autoencoder, got a {type(vae).__name__}.")
    return FrozenAutoencoder(vae)
