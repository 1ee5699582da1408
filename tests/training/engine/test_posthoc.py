"""Averages of any length from those that a run kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.engine.saving import save_averages
from ul_tokenizer import UnifiedLatentsTransformer
from ul_tokenizer.models.presets import build_prior
from ul_tokenizer.training.engine.averages import Averages, exponent_of, profiles
from ul_tokenizer.training.engine.posthoc import PowerProfile, average_of, coefficients, inner_product

KEPT, WANTED, STEPS = (0.05, 0.1), 0.075, 64


def test_the_inner_product_is_the_integral_of_two_profiles() -> None:
    a, b = PowerProfile(3.5, 40), PowerProfile(6.0, 100)
    tau = (np.arange(400_000) + 0.5) / 10_000  # up to 40, where both are above zero
    values = [(p.exponent + 1) * tau**p.exponent / p.step ** (p.exponent + 1) for p in (a, b)]
    assert inner_product(a, b) == inner_product(b, a) == pytest.approx((values[0] * values[1]).sum() / 10_000, rel=1e-4)


def test_an_average_that_was_kept_is_found_again() -> None:
    kept = [PowerProfile(exponent_of(std), step) for std in KEPT for step in (50, 100)]
    for number, profile in enumerate(kept):
        if profile.step == 100:
            expected = [float(n == number) for n in range(len(kept))]
            assert coefficients(kept, profile).tolist() == pytest.approx(expected, abs=1e-6)


def run(folder: Path) -> dict[str, Tensor]:
    """Checkpoints of a run whose weights move in a curve; returns the average that is wanted, kept all along."""
    model = build_prior("ul-tiny-f8")
    models: Any = {"prior": model}
    kept, wanted = Averages(models, profiles((0.9,), KEPT)), Averages(models, profiles((0.9,), (WANTED,)))
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_((step / STEPS) ** 2)
        kept.step()
        wanted.step()
        if step % 8 == 0:
            save_averages(kept, folder / f"checkpoint-{step}")
    with wanted.applied(1):
        return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def test_an_average_of_another_length_comes_close_to_one_that_was_kept_all_along(tmp_path: Path) -> None:
    wanted = run(tmp_path)
    checkpoint = tmp_path / f"checkpoint-{STEPS}"
    found = average_of(checkpoint, "prior", WANTED)
    neighbours = [UnifiedLatentsTransformer.from_pretrained(checkpoint / f"prior_ema_std{std}") for std in KEPT]
    for name, weight in wanted.items():
        error = (found[name] - weight).abs().max()
        assert error < 0.005
        assert all((model.get_parameter(name) - weight).abs().min() > 5 * error for model in neighbours)


def test_later_checkpoints_do_not_count(tmp_path: Path) -> None:
    run(tmp_path)
    before = average_of(tmp_path / "checkpoint-32", "prior", WANTED)
    for later in ("checkpoint-40", "checkpoint-48"):
        (tmp_path / later).rename(tmp_path / f"old-{later}")
    after = average_of(tmp_path / "checkpoint-32", "prior", WANTED)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_without_such_averages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match=r"no power-function averages of its prior; train with --ema_std"):
        average_of(tmp_path / "checkpoint-3", "prior", 0.1)
