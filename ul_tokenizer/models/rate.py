"""The information in a latent, as the stage-1 prior bounds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ul_tokenizer.diffusion.objective import diffuse, nats_to_bits, prior_loss, stratified_times, terminal_kl
from ul_tokenizer.diffusion.schedule import LogSNRSchedule

if TYPE_CHECKING:
    from ul_tokenizer.models.transformer import UnifiedLatentsTransformer


@torch.no_grad()
def latent_bits(
    z_clean: Tensor,
    prior: UnifiedLatentsTransformer,
    schedule: LogSNRSchedule,
    num_levels: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Upper bound on the information in z_0: the prior's ELBO over `num_levels` stratified noise levels.

    Args:
        z_clean: (B, c, [t,] h, w).
        prior: the stage-1 prior.
        schedule: λ_z(t), from the level of z_0.
        num_levels: noise levels, the same for every sample; the estimate's variance falls with it.
        generator: makes levels and noise.

    Returns:
        (B,), fp32, bits.

    Raises:
        ValueError: no levels, or a prior that was trained down to another λ_z(0).
    """
    if num_levels < 1:
        raise ValueError(f"num_levels must be at least 1, got {num_levels}.")
    if prior.config.latent_logsnr != schedule.logsnr_max:
        raise ValueError(
            f"prior must share the autoencoder's latent_logsnr of {schedule.logsnr_max}, "
            f"got {prior.config.latent_logsnr}."
        )
    z_clean = z_clean.float()
    nats = terminal_kl(z_clean, schedule)
    for t_level in stratified_times(num_levels, generator).to(z_clean.device):
        t = t_level.expand(z_clean.shape[0])
        noise = randn_tensor(z_clean.shape, generator=generator, device=z_clean.device)
        prediction = prior(diffuse(z_clean, noise, schedule.logsnr(t)), schedule.logsnr(t)).sample
        nats = nats + prior_loss(prediction, z_clean, noise, t, schedule) / num_levels
    return nats_to_bits(nats)
