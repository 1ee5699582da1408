"""Warm-up of the prior's weight, which prevents posterior collapse.

As long as the decoder does not use the latent, its bits are only a cost. With the full weight from the first step, the
bits go to zero and never come back. So the weight is first held near zero. Once an image's own latent decodes better
than another image's by some decibels on a fixed batch, the weight rises linearly to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

LONG_HOLD = 4  # times the shortest hold


@dataclass
class PriorWarmup:
    """The weight of the prior loss as a function of the step and of the validations so far.

    Raises:
        ValueError: a weight outside [0, 1].
    """

    hold_weight: float  # weight during the hold
    min_hold_steps: int  # shortest hold
    gap_db: float  # the hold ends once PSNR with the own latent exceeds that with another by this
    ramp_steps: int  # steps from hold_weight to 1
    max_hold_steps: int | None = None  # longest hold, which ends without this gap; None waits forever
    ramp_start: int | None = None  # step at which the hold ended; the only state

    def __post_init__(self) -> None:
        if not 0 <= self.hold_weight <= 1:
            raise ValueError(f"the prior's hold weight must be from 0 to 1, got {self.hold_weight}.")

    @property
    def holding(self) -> bool:
        """Whether the weight is still held, until the decoder uses the latent."""
        return self.ramp_start is None

    def begin(self, step: int) -> None:
        """Runs before each step; ends the hold if it has its greatest length."""
        if self.holding and self.max_hold_steps is not None and step >= self.max_hold_steps:
            self.ramp_start = step  # not max_hold_steps: a resumed run may have a new limit, and must not jump

    def observe(self, step: int, gap_db: float) -> None:
        """Takes the gap of a validation; ends the hold if it lasted long enough and the decoder uses the latent."""
        if self.holding and step >= self.min_hold_steps and gap_db >= self.gap_db:
            self.ramp_start = step

    def warning(self, step: int, gap_db: float) -> str | None:
        """A warning if the hold still lasts, much longer than its shortest time and than the ramp; otherwise None."""
        if not self.holding or step < max(LONG_HOLD * self.min_hold_steps, self.ramp_steps, 1):
            return None
        end = f" at step {self.max_hold_steps}" if self.max_hold_steps is not None else ""
        return (
            f"the prior's weight is still held at step {step}: the hold waits for a latent gap of {self.gap_db:g} dB, "
            f"and the gap is {gap_db:.2f} dB; raise --loss_factor or --decoder_bias, lower --prior_hold_gap_db, or let "
            f"--prior_max_hold_steps end the hold{end}."
        )

    def progress(self, step: int) -> float:
        """Progress of the ramp: 0 during the hold, 1 at its end."""
        if self.ramp_start is None:
            return 0.0
        return min(1.0, (step - self.ramp_start) / self.ramp_steps) if self.ramp_steps else 1.0

    def weight(self, step: int) -> float:
        """Weight of L_z at a step."""
        return self.hold_weight + (1.0 - self.hold_weight) * self.progress(step)
