"""Distillation of a diffusion decoder into few steps: the teacher, and the losses of both objectives.

Symbols: z_0 the noisy latent; x_1 the noise from which decoding starts; x_t a state at log-SNR λ_t; g the student,
g(x_t, z_0) = x̃; θ the teacher and φ the auxiliary network, which predict x̂ from a state and z_0.

    pairs      w(λ_t) ‖g(x_t, z_0) − x̂_N‖²,  x_t on the teacher's way from x_1 to x̂_N in N deterministic steps
    moments    w(λ_s) x̃ᵀ [φ(x_s, z_0) − θ(x_s, z_0)] for the student, the bracket without gradient,
               w(λ_s) ½ (‖x̃ − φ(x_s, z_0)‖² + ‖θ(x_s, z_0) − φ(x_s, z_0)‖²) for the auxiliary network,
               x_s ~ q(x_s | x_t, x̃)  (Salimans et al., arXiv 2406.04103, Algorithm 2)

Moments match once the auxiliary network, which sees the student's images only, predicts what the teacher predicts. We
train both networks in every step instead of in turns: that needs one pass of the student less, and no network ever
lacks gradients. All squared norms are means over pixels and channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ul_tokenizer.diffusion.objective import SigmoidWeighting, diffuse
from ul_tokenizer.diffusion.parameterization import broadcast_to_rank, to_x
from ul_tokenizer.diffusion.schedule import alpha_sigma
from ul_tokenizer.diffusion.solver import evenly_spaced, levels_at
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.decoder import Decoder
from ul_tokenizer.models.decoding import decoding_steps, denoise

# ---------------------------------------------------------------- networks


def predict_x(decoder: Decoder, x_t: Tensor, logsnr: Tensor, z: Tensor) -> Tensor:
    """x̂ (B, C, H, W), fp32, of a decoder that predicts v; `logsnr` is (B,)."""
    features = decoder.embed_latents(z.unsqueeze(2))
    v = decoder(x_t.unsqueeze(2), logsnr, features).squeeze(2)
    return to_x(v, x_t, logsnr, "v_prediction")


class Trajectory(NamedTuple):
    """What a teacher decodes, and how it gets there."""

    states: Tensor  # (N, B, C, H, W)  x_t before each step; the first is the noise
    sample: Tensor  # (B, C, H, W)  x̂_N


class Teacher:
    """The frozen autoencoder whose decoder is distilled.

    Args:
        autoencoder: of images; it is set to evaluation mode and frozen.
        num_steps: decoding steps N, in the algorithm of its config.
    """

    def __init__(self, autoencoder: UnifiedLatentsAutoencoder, num_steps: int) -> None:
        self.autoencoder, self.num_steps = autoencoder.eval().requires_grad_(False), num_steps
        self.logsnrs = decoding_logsnrs(autoencoder, num_steps)

    @torch.no_grad()
    def encode(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Pixels (B, C, H, W) and ε → z_0 (B, c, h, w), fp32."""
        distribution = self.autoencoder.encode(pixels).latent_dist
        if distribution.latent_logvar is not None:
            return distribution.mean.float() + distribution.std * noise
        level = torch.full((len(pixels),), self.autoencoder.config.latent_logsnr, device=pixels.device)
        return diffuse(distribution.latent, noise, level)

    @torch.no_grad()
    def trajectory(self, z: Tensor, x_1: Tensor) -> Trajectory:
        """Decodes z_0 (B, c, h, w) from the noise x_1 (B, C, H, W), without tiles."""
        decoder, clip = self.autoencoder.decoder, z.unsqueeze(2)
        states: list[Tensor] = []
        steps = decoding_steps(levels_at(self.logsnrs), z.device)
        rotary, algorithm = decoder.rotary_table(clip), self.autoencoder.config.decoder_algorithm
        sample = denoise(decoder, clip, x_1.float().unsqueeze(2), steps, rotary, algorithm, states)
        return Trajectory(torch.stack(states).squeeze(3), sample.squeeze(2))

    @torch.no_grad()
    def predict_x(self, x_t: Tensor, logsnr: Tensor, z: Tensor) -> Tensor:
        """x̂ (B, C, H, W), fp32, of the teacher; arguments as in `predict_x` of this module."""
        return predict_x(self.autoencoder.decoder, x_t, logsnr, z)


def decoding_logsnrs(autoencoder: UnifiedLatentsAutoencoder, num_steps: int) -> list[float]:
    """λ of the `num_steps` + 1 levels of decoding, as `decode` spaces them."""
    return evenly_spaced(autoencoder.config.decoder_logsnr_min, autoencoder.config.decoder_logsnr_max, num_steps)


# ---------------------------------------------------------------- levels and weights


def start_indices(
    count: int, num_levels: int, start_fraction: float, generator: torch.Generator | None = None
) -> Tensor:
    """At which of the levels each of B = `count` samples starts, (B,) int64.

    At least `start_fraction` of them start at level 0, the noisiest one. The others are spread over the later levels.
    """
    order, offset = torch.randperm(count, generator=generator), torch.rand((), generator=generator)
    num_first = count if num_levels == 1 else math.ceil(start_fraction * count)
    place = (order - num_first + offset) / max(count - num_first, 1)  # in [0, 1) for the others
    later = 1 + (place * (num_levels - 1)).long().clamp(0, num_levels - 2)
    return later.where(order >= num_first, 0)


@dataclass(frozen=True)
class ErrorWeighting:
    """w(λ), the weight of the squared error of x̂."""

    kind: Literal["x", "sigmoid"] = "x"
    bias: float = 4.5  # b

    def __call__(self, logsnr: Tensor) -> Tensor:
        """1, or sigmoid(b − λ) max(e^λ, 1); shaped like `logsnr`."""
        if self.kind == "x":
            return torch.ones_like(logsnr)
        weighting = SigmoidWeighting(1.0, self.bias, boost_below=0.0)
        return weighting.weight(logsnr) * weighting.boost(logsnr) * logsnr.exp()


def posterior_sample(x_t: Tensor, x: Tensor, noise: Tensor, logsnr_t: Tensor, logsnr_s: Tensor) -> Tensor:
    """x_s ~ q(x_s | x_t, x) in fp32, at levels (B,) with λ_s ≥ λ_t; the SDE's step of `diffusion.solver`."""
    _, sigma_t = alpha_sigma(broadcast_to_rank(logsnr_t, x_t))
    alpha_s, sigma_s = alpha_sigma(broadcast_to_rank(logsnr_s, x_t))
    gain = broadcast_to_rank(logsnr_t - logsnr_s, x_t)  # −2h
    fresh = -torch.expm1(gain)
    return sigma_s / sigma_t * torch.exp(0.5 * gain) * x_t + alpha_s * fresh * x + sigma_s * fresh.sqrt() * noise


def _mean_square(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


# ---------------------------------------------------------------- objectives


class PairsModel(nn.Module):
    """The student and the loss of pairs in a single module.

    Args:
        student: its decoder is trained.
        weighting: w(λ).
    """

    def __init__(self, student: UnifiedLatentsAutoencoder, weighting: ErrorWeighting) -> None:
        super().__init__()
        self.encoder, self.decoder, self.weighting = student.encoder.requires_grad_(False), student.decoder, weighting

    def forward(self, x_t: Tensor, logsnr: Tensor, z: Tensor, target: Tensor) -> Tensor:
        """w(λ_t) ‖g(x_t, z_0) − x̂_N‖² (B,).

        Args:
            x_t: states (B, C, H, W) of the teacher's trajectory.
            logsnr: their levels (B,).
            z: z_0 (B, c, h, w).
            target: x̂_N, the end of the trajectory.
        """
        return self.weighting(logsnr) * _mean_square(predict_x(self.decoder, x_t, logsnr, z) - target)


class MomentsLoss(NamedTuple):
    """The losses of a batch, (B,) each."""

    student: Tensor  # its gradient is that of w x̃ᵀ[φ − θ]; its value is ½ w ‖φ − θ‖²
    auxiliary: Tensor
    gap: Tensor  # ‖φ − θ‖², which vanishes if all moments match

    @property
    def total(self) -> Tensor:
        """The scalar to minimise, ()."""
        return (self.student + self.auxiliary).mean()


class MomentsModel(nn.Module):
    """The student, the auxiliary network and the losses of moment matching in a single module.

    Args:
        student: its decoder is trained.
        auxiliary: a copy of the teacher; its decoder is trained to predict the student's images.
        teacher: the teacher, which is no part of this module.
        weighting: w(λ).
    """

    def __init__(
        self,
        student: UnifiedLatentsAutoencoder,
        auxiliary: UnifiedLatentsAutoencoder,
        teacher: Teacher,
        weighting: ErrorWeighting,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = student.encoder.requires_grad_(False), student.decoder
        auxiliary.encoder.requires_grad_(False)
        self.auxiliary, self.teacher, self.weighting = auxiliary.decoder, teacher, weighting

    def forward(self, x_t: Tensor, logsnr_t: Tensor, z: Tensor, noise: Tensor, logsnr_s: Tensor) -> MomentsLoss:
        """The losses of both networks.

        Args:
            x_t: where the student starts, (B, C, H, W).
            logsnr_t: its levels (B,).
            z: z_0 (B, c, h, w).
            noise: ε of x_s.
            logsnr_s: the levels (B,) at which the student's images are judged; not below `logsnr_t`.
        """
        x = predict_x(self.decoder, x_t, logsnr_t, z)
        x_s = posterior_sample(x_t, x.detach(), noise, logsnr_t, logsnr_s)
        teacher = self.teacher.predict_x(x_s, logsnr_s, z)
        auxiliary = predict_x(self.auxiliary, x_s, logsnr_s, z)
        weight, difference = self.weighting(logsnr_s), (auxiliary - teacher).detach()
        own = _mean_square(x.detach() - auxiliary) + _mean_square(teacher - auxiliary)
        return MomentsLoss(
            student=0.5 * weight * _mean_square(x - (x - difference).detach()),
            auxiliary=0.5 * weight * own,
            gap=_mean_square(difference),
        )
