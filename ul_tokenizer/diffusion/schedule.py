"""Log-SNR noise schedules: λ(t), its exact derivative, and α, σ.

Symbols (the paper's): t ∈ [0, 1] with t = 0 the cleanest level; λ = ln(α²/σ²), falling with t;
variance preserving, α² = sigmoid(λ), σ² = sigmoid(−λ).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

ScheduleKind = Literal["linear", "cosine"]


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ of a variance-preserving process, stable for any λ.

    Args:
        logsnr: λ, any shape, float.

    Returns:
        (α, σ), shaped like `logsnr`; exp(½ logsigmoid(±λ)), which neither cancels nor overflows at the ends.
    """
    log_sigmoid = torch.nn.functional.logsigmoid
    return torch.exp(0.5 * log_sigmoid(logsnr)), torch.exp(0.5 * log_sigmoid(-logsnr))


def resolution_shift(resolution: int, reference: int) -> float:
    """Shift of λ that gives images of `resolution` the noise that `reference` sees: 2 ln(reference/resolution).

    Hoogeboom et al., simple diffusion (arXiv 2301.11093), Eq. 4.

    Raises:
        ValueError: a resolution that is not positive.
    """
    if resolution <= 0 or reference <= 0:
        raise ValueError(f"resolution and reference must be positive, got {resolution} and {reference}.")
    return 2.0 * math.log(reference / resolution)


@dataclass(frozen=True)
class LogSNRSchedule:
    """λ(t) from `logsnr_max` (t = 0) to `logsnr_min` (t = 1), both met exactly whatever the shifts.

    λ(t) = base(t) + (1 − t)·s₀ + t·s₁ with base linear, or cosine: −2 ln tan(a t + b).
    s₀ = s₁ shifts a schedule; s₀ ≠ s₁ interpolates between two shifts (simple diffusion, Eq. 5).

    Raises:
        ValueError: an unknown `kind`, values that are not finite, ends in the wrong order, or shifts with which λ(t)
            rises.
    """

    logsnr_max: float  # λ(0), the cleanest level
    logsnr_min: float  # λ(1), the noisiest
    kind: ScheduleKind = "cosine"
    shift_clean: float = 0.0  # s₀: added to λ at t = 0
    shift_noisy: float = 0.0  # s₁: added to λ at t = 1

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "cosine"):
            raise ValueError(f"schedule kind must be 'linear' or 'cosine', got {self.kind!r}.")
        if not all(map(math.isfinite, (self.logsnr_max, self.logsnr_min, self.shift_clean, self.shift_noisy))):
            raise ValueError(f"a schedule's log-SNR values must be finite, got {asdict(self)}.")
        if self.logsnr_min >= self.logsnr_max:
            raise ValueError(f"logsnr_min must be below logsnr_max, got {self.logsnr_min} and {self.logsnr_max}.")
        t = torch.linspace(0, 1, 101, dtype=torch.float64, device="cpu")
        if self._base_ends[0] <= self._base_ends[1] or not bool((self.dlogsnr_dt(t) < 0).all()):
            raise ValueError(
                "shift_clean and shift_noisy must leave λ(t) falling with t, "
                f"got {self.shift_clean} and {self.shift_noisy}."
            )

    @classmethod
    def interpolated(cls, resolution: int, low: int, high: int, logsnr_max: float, logsnr_min: float) -> LogSNRSchedule:
        """Cosine schedule interpolated between two noise resolutions.

        Args:
            resolution: side of the images, in pixels.
            low: noise resolution at the noisy end.
            high: noise resolution at the clean end.
            logsnr_max: λ(0).
            logsnr_min: λ(1).

        Raises:
            ValueError: a resolution that is not positive, or values that do not form a schedule.
        """
        return cls(
            logsnr_max,
            logsnr_min,
            "cosine",
            shift_clean=resolution_shift(resolution, high),
            shift_noisy=resolution_shift(resolution, low),
        )

    @property
    def _base_ends(self) -> tuple[float, float]:
        return self.logsnr_max - self.shift_clean, self.logsnr_min - self.shift_noisy

    @property
    def _angles(self) -> tuple[float, float, float]:
        """(a, b, c) of the cosine λ = −2 ln tan(a t + b), tan b = e^{−λ(0)/2} and c = π/2 − a − b, tan c = e^{λ(1)/2}.

        Near t = 1 the tangent's argument is near π/2, where it has no digits left; π/2 − (a t + b) = a (1 − t) + c has.
        """
        start, end = self._base_ends
        b, c = math.atan(math.exp(-0.5 * start)), math.atan(math.exp(0.5 * end))
        return 0.5 * math.pi - b - c, b, c

    def logsnr(self, t: Tensor) -> Tensor:
        """λ(t); `t` in [0, 1], any shape, same dtype out (pass fp32 or wider)."""
        start, end = self._base_ends
        if self.kind == "linear":
            base = start + (end - start) * t
        else:
            a, b, c = self._angles
            base = 2.0 * (torch.log(torch.sin(a * (1.0 - t) + c)) - torch.log(torch.sin(a * t + b)))
        return base + (1.0 - t) * self.shift_clean + t * self.shift_noisy

    def dlogsnr_dt(self, t: Tensor) -> Tensor:
        """dλ/dt, shaped like `t`, exact and negative; of the cosine −2a / (sin(a t + b) cos(a t + b))."""
        drift = self.shift_noisy - self.shift_clean
        if self.kind == "linear":
            start, end = self._base_ends
            return torch.full_like(t, end - start + drift)
        a, b, c = self._angles
        return -2.0 * a / (torch.sin(a * (1.0 - t) + c) * torch.sin(a * t + b)) + drift

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for configs."""
        return asdict(self)
