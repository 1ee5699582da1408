"""Classifier-free guidance (arXiv 2207.12598), on an interval of noise levels (arXiv 2404.07724)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """v = v_∅ + s (v_c − v_∅) where λ lies in the interval, v_c elsewhere.

    The same formula holds for predictions of v, ε and x, which are affine in one another.

    Args:
        scale: s; 1 is the conditional model itself, 0 the unconditional one.
        interval: (lowest, highest) log-SNR at which to guide; None for all.

    Raises:
        ValueError: a scale that is negative or not finite, or an interval that is no rising pair of numbers.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or self.scale < 0:
            raise ValueError(f"guidance_scale must be a finite number of at least 0, got {self.scale}.")
        if self.interval is None:
            return
        if len(self.interval) != 2 or any(math.isnan(end) for end in self.interval):
            raise ValueError(f"guidance_interval must be (lowest, highest) log-SNR, got {self.interval}.")
        if not self.interval[0] < self.interval[1]:
            raise ValueError(f"guidance_interval must be (lowest, highest) log-SNR, rising, got {self.interval}.")

    def applies(self, logsnr: float) -> bool:
        """Whether the unconditional prediction is needed at λ."""
        inside = self.interval is None or self.interval[0] <= logsnr <= self.interval[1]
        return self.scale != 1 and inside

    def combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """The guided prediction; all shapes are the same."""
        return unconditional + self.scale * (conditional - unconditional)
