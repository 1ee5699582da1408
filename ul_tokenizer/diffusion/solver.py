"""One step of a sampler: from the noise level t to the cleaner level s, given x̂, the clean sample predicted at t.

With h = (λ_s − λ_t)/2, half of the gain in log-SNR:

    ODE  (DDIM, 2M)   z_s = (σ_s/σ_t)       z_t + α_s (1 − e^{−h})  D
    SDE  (DDPM)       z_s = (σ_s/σ_t) e^{−h} z_t + α_s (1 − e^{−2h}) D + σ_s √(1 − e^{−2h}) ε

For DDIM and DDPM, D = x̂: the first line is then α_s x̂ + σ_s ε̂, and the second the posterior q(z_s | z_t, x̂).
DPM-Solver++ (2M) extrapolates D from the x̂ of the last two levels.

Levels are plain numbers. They are computed without tensors, so that a compiler sees them as constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Level(NamedTuple):
    """A noise level in double precision."""

    logsnr: float  # λ
    alpha: float  # α
    sigma: float  # σ


def level_at(logsnr: float) -> Level:
    """The level of a log-SNR; α and σ as in `alpha_sigma`."""
    return Level(logsnr, math.exp(0.5 * _log_sigmoid(logsnr)), math.exp(0.5 * _log_sigmoid(-logsnr)))


def levels_at(logsnrs: Sequence[float]) -> list[Level]:
    """The levels of several log-SNR values, each rounded to fp32 first, since networks read λ in fp32."""
    return [level_at(round_to_fp32(logsnr)) for logsnr in logsnrs]


def evenly_spaced(start: float, end: float, num_steps: int) -> list[float]:
    """`num_steps` + 1 values from `start` to `end`."""
    return [(start * (num_steps - i) + end * i) / num_steps for i in range(num_steps + 1)]


def round_to_fp32(value: float) -> float:
    """The nearest number that has the 24 significant bits of fp32; its range of exponents is not applied."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(mantissa, 24)), exponent - 24)


def ode_step(z_t: Tensor, D: Tensor, t: Level, s: Level) -> Tensor:
    """z_s of the ODE.

    Args:
        z_t: the noisy sample, (B, ...).
        D: x̂, or its extrapolation, shaped like `z_t`.
        t: the level of `z_t`.
        s: the cleaner level to go to.

    Returns:
        z_s, a new tensor shaped like `z_t`.
    """
    h = 0.5 * (s.logsnr - t.logsnr)
    return torch.add(s.sigma / t.sigma * z_t, D, alpha=-s.alpha * math.expm1(-h))


def extrapolated(x: Tensor, x_last: Tensor, last: Level, t: Level, s: Level) -> Tensor:
    """D = x̂ + (x̂ − x̂_last)/(2r), r the last step over this one (DPM-Solver++, arXiv 2211.01095, Algorithm 2).

    `x` and `x_last` are x̂ at levels t and `last`, (B, ...); the result has their shape. The first step of a run has no
    last level, and therefore is of first order. The last step is of second order, since its end is finite.
    """
    r = (t.logsnr - last.logsnr) / (s.logsnr - t.logsnr)
    return torch.lerp(x_last, x, 1.0 + 0.5 / r)


def posterior_mean(z_t: Tensor, x: Tensor, t: Level, s: Level) -> Tensor:
    """Mean of q(z_s | z_t, x̂): the SDE's step without its noise.

    Args:
        z_t: the noisy sample, (B, ...).
        x: x̂, shaped like `z_t`.
        t: the level of `z_t`.
        s: the cleaner level to go to.

    Returns:
        the mean, a new tensor shaped like `z_t`.
    """
    h = 0.5 * (s.logsnr - t.logsnr)
    return torch.add(s.sigma / t.sigma * math.exp(-h) * z_t, x, alpha=-s.alpha * math.expm1(-2.0 * h))


def posterior_std(t: Level, s: Level) -> float:
    """Standard deviation of q(z_s | z_t, x̂)."""
    return s.sigma * math.sqrt(-math.expm1(t.logsnr - s.logsnr))


def _log_sigmoid(x: float) -> float:
    return min(0.0, x) - math.log1p(math.exp(-abs(x)))
