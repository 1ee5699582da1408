"""An upper bound on the information in a latent, from the stage-1 prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ul_tokenizer.diffusion.objective import diffuse, nats_to_bits, prior_loss, stratified_times, terminal_kl
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.models.latent_distribution import draw_noise
from ul_tokenizer.schedulers.log_snr import Generators

if TYPE_CHECKING:
    from ul_tokenizer.models.transformer import UnifiedLatentsTransformer


@torch.no_grad()
def latent_bits(
    z_clean: Tensor,
    prior: UnifiedLatentsTransformer,
    schedule: LogSNRSchedule,
    num_levels: int,
    generator: Generators = None,
) -> Tensor:
    """Upper bound on the information in z_0: the prior's ELBO over `num_levels` stratified noise levels.

    Args:
        z_clean: (B, c, [t,] h, w).
        prior: the stage-1 prior.
        schedule: λ_z(t), from the level of z_0.
        num_levels: noise levels per sample; the estimate's variance falls with their number.
        generator: generator of levels and noise. With a list of one per sample, no sample depends on its neighbours.

    Returns:
        (B,), fp32, bits.

    Raises:
        ValueError: no levels, an empty batch, a list of another length, or a prior with another λ_z(0).
    """
    if num_levels < 1:
        raise ValueError(f"num_levels must be at least 1, got {num_levels}.")
    if prior.config.latent_logsnr != schedule.logsnr_max:
        raise ValueError(
            f"prior must share the autoencoder's latent_logsnr of {schedule.logsnr_max}, "
            f"got {prior.config.latent_logsnr}."
        )
    if z_clean.shape[0] == 0:
        raise ValueError(f"z_clean must hold at least one sample, got {tuple(z_clean.shape)}.")
    z_clean = z_clean.float()
    nats = terminal_kl(z_clean, schedule)
    for t in _sample_times(z_clean.shape[0], num_levels, generator).to(z_clean.device).unbind(1):
        noise = draw_noise(tuple(z_clean.shape), generator, z_clean.device)
        prediction = prior(diffuse(z_clean, noise, schedule.logsnr(t)), schedule.logsnr(t)).sample
        nats = nats + prior_loss(prediction, z_clean, noise, t, schedule) / num_levels
    return nats_to_bits(nats)


def _sample_times(batch_size: int, num_levels: int, generator: Generators) -> Tensor:
    """t (B, num_levels), stratified for each sample; with a list, each sample uses its own generator."""
    if not isinstance(generator, list):
        return torch.stack([stratified_times(num_levels, generator) for _ in range(batch_size)])
    if len(generator) != batch_size:
        raise ValueError(f"generator must be one or a list of {batch_size}, one per sample, got {len(generator)}.")
    return torch.stack([stratified_times(num_levels, one).cpu() for one in generator])
