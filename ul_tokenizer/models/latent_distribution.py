"""q(z_0 | x): the encoder's output with its fixed noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ul_tokenizer.diffusion.objective import diffuse, draw_latent
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


def split_encoding(encoding: Tensor, latent_channels: int) -> tuple[Tensor, Tensor | None]:
    """The encoder's output → z_clean (B, c, …) and the logarithm of its learned variance, or None if it has none."""
    if encoding.shape[1] == latent_channels:
        return encoding, None
    z_clean, logvar = encoding.split(latent_channels, dim=1)
    return z_clean, logvar.clamp(-20.0, 5.0)


class LatentDistribution:
    """q(z_0 | x) with diffusers' names: N(α₀ z_clean, σ₀² I).

    With a learned variance σ_z², z_clean itself is the mean of a Gaussian, and q is N(α₀ z_clean, α₀² σ_z² + σ₀²).

    Args:
        latent: z_clean (B, c, [t,] h, w).
        logsnr: λ_z(0), the same for all samples.
        latent_logvar: ln σ_z², shaped like `latent`; None if the encoder is deterministic, as the paper's is.

    Attributes:
        logsnr: λ_z(0) (0-dimensional).
        mean: α₀ z_clean, shaped like `latent`.
        std: σ₀ (0-dimensional; 0.0818 at λ = 5), or the deviation of each value, shaped like `latent`.
    """

    def __init__(self, latent: Tensor, logsnr: float, latent_logvar: Tensor | None = None) -> None:
        self.latent, self.latent_logvar = latent, latent_logvar
        self.logsnr = torch.full((), logsnr, dtype=torch.float32, device=latent.device)  # does not wait for it
        alpha, sigma = alpha_sigma(self.logsnr)
        self.mean = (alpha * latent.float()).to(latent.dtype)
        self.var = sigma.square()
        if latent_logvar is not None:
            self.var = self.var + alpha.square() * latent_logvar.float().exp()
        self.std = sigma if latent_logvar is None else self.var.sqrt()
        self.logvar = 2 * self.std.log()

    def sample(self, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """z_0 = α₀ z_clean + std ε, the input of decoders, in the shape and dtype of the latent.

        A list has one generator per sample.

        Raises:
            ValueError: a list of another length than the batch.
        """
        noise = draw_noise(tuple(self.latent.shape), generator, self.latent.device)
        if self.latent_logvar is not None:
            return (self.mean.float() + self.std * noise).to(self.latent.dtype)
        return diffuse(self.latent, noise, self.logsnr).to(self.latent.dtype)

    def mode(self) -> Tensor:
        """α₀ z_clean, z_0 without its noise, in the shape and dtype of the latent."""
        return self.mean

    def sample_clean(self, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """What the prior models (B, c, [t,] h, w): z_clean, or a draw from N(z_clean, σ_z²) if σ_z² is learned."""
        if self.latent_logvar is None:
            return self.latent
        noise = draw_noise(tuple(self.latent.shape), generator, self.latent.device)
        return draw_latent(self.latent, self.latent_logvar, noise).to(self.latent.dtype)


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
