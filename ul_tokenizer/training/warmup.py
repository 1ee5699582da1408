"""Warm-up of the prior's weight, which keeps the latent alive until the decoder reads it.

With the full weight from the first step an unread latent is only a cost: its bits go to zero and never come back
(posterior collapse). So the weight is held near zero until decoding with the own latent beats decoding with another
image's by some decibels on a fixed batch, and is then raised linearly to 1.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PriorWarmup:
    """The prior's weight as a function of the step and of what was observed."""

    hold_weight: float  # while holding
    min_hold_steps: int  # held at least so long
    gap_db: float  # own-latent PSNR minus other-latent PSNR that ends the hold
    ramp_steps: int  # from hold_weight to 1
    ramp_start: int | None = None  # step at which the hold ended; the only state

    def __post_init__(self) -> None:
        if not 0 <= self.hold_weight <= 1:
            raise ValueError(f"the prior's hold weight must be from 0 to 1, got {self.hold_weight}.")

    @property
    def holding(self) -> bool:
        """Whether the weight still waits for the decoder to read the latent."""
        return self.ramp_start is None

    def observe(self, step: int, gap_db: float) -> None:
        """Ends the hold if it lasted long enough and the decoder reads the latent."""
        if self.holding and step >= self.min_hold_steps and gap_db >= self.gap_db:
            self.ramp_start = step

    def progress(self, step: int) -> float:
        """How far the ramp has come, 0 while holding, 1 at its end."""
        if self.ramp_start is None:
            return 0.0
        return min(1.0, (step - self.ramp_start) / self.ramp_steps) if self.ramp_steps else 1.0

    def weight(self, step: int) -> float:
        """The weight of L_z at a step."""
        return self.hold_weight + (1.0 - self.hold_weight) * self.progress(step)
