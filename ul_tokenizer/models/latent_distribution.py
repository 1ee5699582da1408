"""q(z_0 | x): the latent that the encoder's output becomes when it gets its fixed noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ul_tokenizer.diffusion.schedule import alpha_sigma


class LatentDistribution:
    """N(α₀ z_clean, σ₀² I), with diffusers' names.

    Args:
        latent: z_clean (B, c, [t,] h, w).
        logsnr: λ_z(0), one for all.

    Attributes:
        mean: α₀ z_clean, shaped like `latent`.
        std: σ₀ (0-dimensional; 0.0818 at λ = 5).
    """

    def __init__(self, latent: Tensor, logsnr: float) -> None:
        self.latent = latent
        alpha, sigma = alpha_sigma(torch.tensor(logsnr, device=latent.device))
        self.mean = (alpha * latent.float()).to(latent.dtype)
        self.std = sigma
        self.var = sigma.square()
        self.logvar = 2 * sigma.log()

    def sample(self, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """z_0 = α₀ z_clean + σ₀ ε, the latent that decoders read; a list of generators has one per sample."""
        noise = randn_tensor(self.latent.shape, generator=generator, device=self.latent.device, dtype=self.latent.dtype)
        return self.mean + self.std.to(noise.dtype) * noise

    def mode(self) -> Tensor:
        """α₀ z_clean: z_0 without its noise."""
        return self.mean


@dataclass
class UnifiedLatentsEncoderOutput(BaseOutput):
    """What `UnifiedLatentsAutoencoder.encode` returns, in all dialects of diffusers.

    Attributes:
        latent: z_clean (B, c, [t,] h, w), deterministic.
        latent_dist: q(z_0 | x).
        latents: the same as `latent`.
    """

    latent: Tensor
    latent_dist: LatentDistribution

    @property
    def latents(self) -> Tensor:
        """z_clean, under the name that some pipelines read."""
        return self.latent
