"""q(z_0 | x): the encoder's output with its fixed noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ul_tokenizer.diffusion.objective import diffuse
from ul_tokenizer.diffusion.schedule import alpha_sigma


def draw_noise(
    shape: tuple[int, ...], generator: torch.Generator | list[torch.Generator] | None, device: torch.device
) -> Tensor:
    """Standard normal noise ε. A generator gives the same noise for latents of every dtype.

    Args:
        shape: (B, …).
        generator: one generator, or a list with one per sample; None takes torch's own.
        device: where the noise is.

    Returns:
        ε of this shape, fp32.

    Raises:
        ValueError: a list of another length than the batch.
    """
    if isinstance(generator, list) and len(generator) != shape[0]:
        raise ValueError(f"generator must be one or a list of {shape[0]}, one per sample, got {len(generator)}.")
    noise: Tensor = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
    return noise


class LatentDistribution:
    """N(α₀ z_clean, σ₀² I), with diffusers' names.

    Args:
        latent: z_clean (B, c, [t,] h, w).
        logsnr: λ_z(0), the same for all samples.

    Attributes:
        logsnr: λ_z(0) (0-dimensional).
        mean: α₀ z_clean, shaped like `latent`.
        std: σ₀ (0-dimensional; 0.0818 at λ = 5).
    """

    def __init__(self, latent: Tensor, logsnr: float) -> None:
        self.latent = latent
        self.logsnr = torch.full((), logsnr, dtype=torch.float32, device=latent.device)  # does not wait for it
        alpha, sigma = alpha_sigma(self.logsnr)
        self.mean = (alpha * latent.float()).to(latent.dtype)
        self.std = sigma
        self.var = sigma.square()
        self.logvar = 2 * sigma.log()

    def sample(self, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """z_0 = α₀ z_clean + σ₀ ε, the input of decoders, in the shape and dtype of the latent.

        A list has one generator per sample.

        Raises:
            ValueError: a list of another length than the batch.
        """
        noise = draw_noise(tuple(self.latent.shape), generator, self.latent.device)
        return diffuse(self.latent, noise, self.logsnr).to(self.latent.dtype)

    def mode(self) -> Tensor:
        """α₀ z_clean, z_0 without its noise, in the shape and dtype of the latent."""
        return self.mean


@dataclass
class UnifiedLatentsEncoderOutput(BaseOutput):
    """Output of `UnifiedLatentsAutoencoder.encode`, with the names that diffusers' various pipelines use.

    Attributes:
        latent_dist: q(z_0 | x); the first field, so that `encode(x)[0]` is the same with and without `return_dict`.
        latent: z_clean (B, c, [t,] h, w), deterministic.
        latents: the same as `latent`.
    """

    latent_dist: LatentDistribution
    latent: Tensor

    @property
    def latents(self) -> Tensor:
        """z_clean (B, c, [t,] h, w), under the name that some pipelines use."""
        return self.latent
