"""The decoding loop: pixels of one tile are denoised from noise, step by step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ul_tokenizer.diffusion.parameterization import x_of_v
from ul_tokenizer.diffusion.schedule import alpha_sigma
from ul_tokenizer.diffusion.solver import Level, extrapolated, ode_step
from ul_tokenizer.models.attention import Rotary

if TYPE_CHECKING:
    from ul_tokenizer.models.decoder import Decoder


class DecodingStep(NamedTuple):
    """A step from one level to a cleaner one; all tiles and windows of a call share its tensors."""

    t: Level  # where it starts
    s: Level  # where it ends
    logsnr: Tensor  # λ_t, (), fp32
    alpha: Tensor  # α_t, (1, 1, 1, 1, 1), fp32
    sigma: Tensor  # σ_t, (1, 1, 1, 1, 1), fp32


class DecodingSteps(NamedTuple):
    """All steps of a call."""

    steps: list[DecodingStep]
    latent_logsnr: Tensor | None = None  # λ of z_0, (), fp32, for decoders that take several; None: the cleanest


def decoding_steps(levels: Sequence[Level], device: torch.device, latent_logsnr: float | None = None) -> DecodingSteps:
    """The steps between neighbouring levels, with their tensors on a device."""
    steps = []
    for t, s in itertools.pairwise(levels):
        logsnr = torch.full((), t.logsnr, dtype=torch.float32, device=device)  # does not wait for the device
        steps.append(DecodingStep(t, s, logsnr, *alpha_sigma(logsnr.reshape(1, 1, 1, 1, 1))))
    level = None if latent_logsnr is None else torch.full((), latent_logsnr, dtype=torch.float32, device=device)
    return DecodingSteps(steps, level)


def denoise(
    decoder: Decoder,
    z: Tensor,
    x_1: Tensor,
    steps: DecodingSteps,
    rotary: Rotary,
    algorithm: str,
    states: list[Tensor] | None = None,
) -> Tensor:
    """Decodes a tile.

    Args:
        decoder: predicts v.
        z: z_0, (B, c, t, h, w).
        x_1: the noise, (B, C, T, H, W), fp32.
        steps: at least one.
        rotary: the decoder's `rotary_table` for this tile.
        algorithm: "ddim" or "dpmsolver++".
        states: a list that gets x_t of each step, for callers that need the whole trajectory.

    Returns:
        x̂ of the last step, (B, C, T, H, W), fp32.
    """
    batch_size, level = z.shape[0], steps.latent_logsnr
    latent_features = decoder.embed_latents(z, None if level is None else level.expand(batch_size))
    x_t = x_1
    x_last: Tensor | None = None
    for number, (t, s, logsnr, alpha, sigma) in enumerate(steps.steps):
        if states is not None:
            states.append(x_t)
        v = decoder(x_t.to(z.dtype), logsnr.expand(batch_size), latent_features, rotary)
        x = x_of_v(v, x_t, alpha, sigma)
        if number + 1 == len(steps.steps):
            break
        is_first_order = algorithm == "ddim"
        D = x if is_first_order or x_last is None else extrapolated(x, x_last, steps.steps[number - 1].t, t, s)
        x_t, x_last = ode_step(x_t, D, t, s), x
    return x
