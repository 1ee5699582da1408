"""Stage 1: encoder, prior and decoder trained together (Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ul_tokenizer.diffusion.objective import (
    SigmoidWeighting,
    UnifiedLatentsLoss,
    Variant,
    diffuse,
    draw_latent,
    gaussian_loss,
    normal_kl,
    prior_loss,
    scale_gradient,
    sigmoid_loss,
    terminal_kl,
    variance_gain,
)
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.latent_distribution import split_encoding
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

HOLD_LEVELS = 0.3  # fraction of the decoder's levels, the noisiest ones, that are trained during the hold


@dataclass
class Stage1Noise:
    """All random numbers in one evaluation of the objective, which is a deterministic function of them."""

    t_prior: Tensor  # (B,)  in [0, 1)
    t_decoder: Tensor  # (B,)
    prior: Tensor  # (B, c, h, w)  ε of z_t
    latent: Tensor  # (B, c, h, w)  ε of z_0
    decoder: Tensor  # (B, C, H, W)  ε of x_t
    t_latent: Tensor | None = None  # (B,)  of λ_z(0), if it is drawn
    variance: Tensor | None = None  # (B, c, h, w)  ε of z, for encoders that learn a variance


class Stage1Model(nn.Module):
    """The three networks and Algorithm 1 in a single module, so that DDP reduces every gradient.

    Args:
        autoencoder: contributes its encoder, its decoder and the decoder's schedule.
        prior: the prior over z_t.
        prior_schedule: λ_z(t).
        weighting: of the decoder loss.
        variant: what differs from the paper's objective.
    """

    def __init__(
        self,
        autoencoder: UnifiedLatentsAutoencoder,
        prior: UnifiedLatentsTransformer,
        prior_schedule: LogSNRSchedule,
        weighting: SigmoidWeighting,
        variant: Variant | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior = autoencoder.encoder, autoencoder.decoder, prior
        self.prior_schedule, self.weighting, self.variant = prior_schedule, weighting, variant or Variant()
        self.decoder_schedule = autoencoder.decoder_noise_schedule
        self.latent_channels = int(autoencoder.config.latent_channels)

    def forward(self, x: Tensor, noise: Stage1Noise, progress: float = 1.0) -> UnifiedLatentsLoss:
        """Evaluates the objective of Algorithm 1.

        Args:
            x: pixels (B, C, [T,] H, W), [−1, 1].
            noise: the random numbers.
            progress: progress of the warm-up, 0 to 1. Below 1 the decoder loss covers only its noisiest levels, where
                the decoder can learn nothing from x_t and must use the latent; and the boost of those levels reaches
                the encoder as well.

        Returns:
            the terms of L in nats per sample; at `progress` 1 they are the paper's objective.
        """
        is_image = x.ndim == 4
        encoding, _ = self.encoder(x.unsqueeze(2) if is_image else x)
        encoding = encoding.squeeze(2) if is_image else encoding
        z_clean, logvar = split_encoding(encoding, self.latent_channels)
        gain: Tensor | float = 0.0
        if logvar is not None:  # from here on, z_clean is the z that an encoder with a variance draws
            assert noise.variance is not None
            z_clean = draw_latent(z_clean, logvar, noise.variance)
            gain = variance_gain(logvar, self.prior_schedule.logsnr_max)

        # Prior: z_t from z_clean with fresh noise; gradient reaches the encoder through input and target.
        encoder_pays_prior = self.variant.latent_cost == "prior"
        z_prior = z_clean if encoder_pays_prior else z_clean.detach()
        logsnr_z = self.prior_schedule.logsnr(noise.t_prior)
        z_t = diffuse(z_prior, noise.prior, logsnr_z)
        v_z = self.prior(z_t, logsnr_z).sample
        loss_z = prior_loss(v_z, z_prior, noise.prior, noise.t_prior, self.prior_schedule)
        if self.variant.latent_level is not None:
            loss_z = self.variant.latent_level.weight(logsnr_z) * loss_z

        loss_x, boost = self._decoder_loss(x, z_clean, noise, progress)
        kl = None if encoder_pays_prior else self.variant.kl_weight * normal_kl(z_clean, self.prior_schedule.logsnr_max)
        return UnifiedLatentsLoss(
            prior=loss_z,
            terminal_kl=terminal_kl(z_prior, self.prior_schedule),
            decoder=loss_x.detach(),
            decoder_boosted=boost * loss_x,
            variance_gain=gain,
            latent_kl=kl,
        )

    def _decoder_loss(self, x: Tensor, z_clean: Tensor, noise: Stage1Noise, progress: float) -> tuple[Tensor, Tensor]:
        """L_x (B,) and its boost (B,); the decoder is conditioned on z_0, the latent with its fixed noise."""
        is_image, one_step = x.ndim == 4, self.variant.reconstruction == "mse"
        logsnr_0 = self._latent_levels(noise)
        fraction = HOLD_LEVELS + (1 - HOLD_LEVELS) * progress
        t_x = torch.ones_like(noise.t_decoder) if one_step else 1 - fraction * (1 - noise.t_decoder)
        logsnr_x = self.decoder_schedule.logsnr(t_x)
        boost = torch.ones_like(logsnr_x) if one_step else self.weighting.boost(logsnr_x)
        z_0 = scale_gradient(diffuse(z_clean, noise.latent, logsnr_0), boost**-progress)
        x_t = diffuse(x, noise.decoder, logsnr_x)
        clip, latents = (x_t.unsqueeze(2), z_0.unsqueeze(2)) if is_image else (x_t, z_0)
        v_x = self.decoder(clip, logsnr_x, self.decoder.embed_latents(latents, logsnr_0))
        v_x = v_x.squeeze(2) if is_image else v_x
        if one_step:
            return gaussian_loss(v_x, x, noise.decoder, logsnr_x, self.weighting), boost
        loss_x = fraction * sigmoid_loss(v_x, x, noise.decoder, t_x, self.decoder_schedule, self.weighting)
        return loss_x, boost

    def _latent_levels(self, noise: Stage1Noise) -> Tensor:
        """λ_z(0) (B,): one level for all, or one drawn for each sample."""
        if self.variant.latent_level is None:
            return torch.full_like(noise.t_prior, self.prior_schedule.logsnr_max)
        assert noise.t_latent is not None
        return self.variant.latent_level.level(noise.t_latent)
