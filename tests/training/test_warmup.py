"""The prior's weight over time, and the warning when it killed the latent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ul_tokenizer.training.validation import collapse_warning
from ul_tokenizer.training.warmup import PriorWarmup

HELD = PriorWarmup(hold_weight=0.1, min_hold_steps=100, gap_db=6.0, ramp_steps=10)


@pytest.mark.parametrize(
    ("ramp_start", "step", "progress", "weight"),
    [
        (None, 0, 0.0, 0.1),
        (None, 100_000, 0.0, 0.1),
        (100, 100, 0.0, 0.1),
        (100, 105, 0.5, 0.55),
        (100, 110, 1.0, 1.0),
        (100, 100_000, 1.0, 1.0),
    ],
)
def test_the_weight_is_held_then_rises_linearly_to_1_and_stays(
    ramp_start: int | None, step: int, progress: float, weight: float
) -> None:
    warmup = replace(HELD, ramp_start=ramp_start)
    assert warmup.progress(step) == pytest.approx(progress)
    assert warmup.weight(step) == pytest.approx(weight)


@pytest.mark.parametrize(
    ("step", "gap_db", "ramp_start"), [(99, 60.0, None), (100, 5.9, None), (100, 6.0, 100), (250, 7.0, 250)]
)
def test_the_hold_ends_when_it_was_long_enough_and_the_latent_is_read(
    step: int, gap_db: float, ramp_start: int | None
) -> None:
    warmup = replace(HELD)
    warmup.observe(step, gap_db)
    assert warmup.ramp_start == ramp_start and warmup.holding == (ramp_start is None)


def test_a_hold_ends_once() -> None:
    warmup = replace(HELD, ramp_start=200)
    warmup.observe(300, 60.0)
    warmup.observe(400, -60.0)
    assert warmup.ramp_start == 200


def test_a_hold_ends_at_its_greatest_length_without_the_gap() -> None:
    warmup = replace(HELD, max_hold_steps=150)
    weights = []
    for step in (149, 150, 155, 160):
        warmup.begin(step)
        weights.append(warmup.weight(step))
    assert weights == pytest.approx([0.1, 0.1, 0.55, 1.0])
    assert warmup.ramp_start == 150


def test_a_limit_that_a_resumed_run_is_past_starts_the_ramp_there_and_does_not_jump() -> None:
    warmup = replace(HELD, max_hold_steps=150)
    warmup.begin(4000)
    assert warmup.weight(4000) == pytest.approx(0.1) and warmup.weight(4005) == pytest.approx(0.55)


def test_the_gap_ends_a_hold_before_its_greatest_length() -> None:
    warmup = replace(HELD, max_hold_steps=1000)
    warmup.observe(120, 7.0)
    warmup.begin(1000)
    assert warmup.ramp_start == 120


@pytest.mark.parametrize(("ramp_steps", "first"), [(10, 400), (700, 700)])
def test_a_long_hold_is_warned_of_with_the_gap_that_it_waits_for(ramp_steps: int, first: int) -> None:
    warmup = replace(HELD, ramp_steps=ramp_steps)
    assert warmup.warning(first - 1, 3.21) is None
    warning = warmup.warning(first, 3.21)
    assert warning is not None
    assert all(word in warning for word in (f"step {first}", "6 dB", "3.21 dB", "--prior_max_hold_steps"))
    warmup.observe(first, 6.5)
    assert warmup.warning(first, 6.5) is None


@pytest.mark.parametrize("ramp_steps", [0, 10])
def test_without_a_warm_up_the_weight_is_1_from_the_first_step(ramp_steps: int) -> None:
    off = replace(HELD, ramp_steps=ramp_steps, ramp_start=-ramp_steps)
    assert [off.weight(step) for step in (0, 1, 1000)] == [1.0, 1.0, 1.0]


def test_a_weight_beyond_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hold weight must be from 0 to 1, got 2"):
        replace(HELD, hold_weight=2)


@pytest.mark.parametrize(
    ("gap_db", "bits", "warned"), [(0.1, 0.001, True), (-3.0, 0.0, True), (0.1, 0.5, False), (8.0, 0.001, False)]
)
def test_a_collapse_is_few_bits_that_tell_the_decoder_nothing(gap_db: float, bits: float, warned: bool) -> None:
    warning = collapse_warning(700, {"latent_gap_db": gap_db, "bits_per_pixel": bits})
    assert (warning is not None) == warned
    assert warning is None or ("step 700" in warning and "--prior_min_hold_steps" in warning)
