"""Bits of a latent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.models.rate import latent_bits

SCHEDULE = LogSNRSchedule(5.0, -10.0, "linear")


class UnitGaussianPrior:
    """Knows N(0, I) perfectly: ε̂ = σ z_t and x̂ = α z_t, so v̂ = αε̂ − σx̂ = 0."""

    config = SimpleNamespace(latent_logsnr=5.0)

    def __call__(self, z_t: Tensor, logsnr: Tensor) -> Any:
        assert logsnr.shape == z_t.shape[:1]
        return SimpleNamespace(sample=torch.zeros_like(z_t))


PRIOR = cast(Any, UnitGaussianPrior())


@pytest.mark.parametrize("shape", [(4, 4, 32, 32), (2, 4, 3, 32, 32)])
def test_a_perfect_prior_of_a_unit_gaussian_gives_3_61_bits_per_dimension(shape: tuple[int, ...]) -> None:
    z_clean = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    bits = latent_bits(z_clean, PRIOR, SCHEDULE, 64, torch.Generator().manual_seed(1))
    assert bits.shape == shape[:1]
    assert bits.mean().item() / z_clean[0].numel() == pytest.approx(3.61, rel=0.02)


def test_bits_of_half_precision_latents_are_estimated_in_fp32() -> None:
    z_clean = torch.randn(2, 4, 8, 8).bfloat16()
    half, single = (
        latent_bits(z, PRIOR, SCHEDULE, 4, torch.Generator().manual_seed(1)) for z in (z_clean, z_clean.float())
    )
    assert half.dtype == torch.float32
    assert torch.equal(half, single)


def test_no_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="num_levels must be at least 1, got 0"):
        latent_bits(torch.zeros(1, 4, 8, 8), PRIOR, SCHEDULE, 0)


def levels_of(generator: Any, batch_size: int, num_levels: int) -> Tensor:
    """λ (num_levels, B) that the prior was asked for, one call per level."""
    seen: list[Tensor] = []

    class Listener(UnitGaussianPrior):
        def __call__(self, z_t: Tensor, logsnr: Tensor) -> Any:
            seen.append(logsnr)
            return super().__call__(z_t, logsnr)

    latent_bits(torch.zeros(batch_size, 4, 2, 2), cast(Any, Listener()), SCHEDULE, num_levels, generator)
    return torch.stack(seen)


@pytest.mark.parametrize("kind", ["one", "list", "none"])
def test_every_sample_has_its_own_levels_stratified_and_one_prior_call_serves_the_batch(kind: str) -> None:
    several = [torch.Generator().manual_seed(n) for n in range(3)]
    logsnr = levels_of({"one": several[0], "list": several, "none": None}[kind], batch_size=3, num_levels=8)
    assert logsnr.shape == (8, 3)
    strata = ((5.0 - logsnr) / 15.0 * 8).floor()  # the schedule is linear
    assert torch.equal(strata.sort(0).values, torch.arange(8.0)[:, None].expand(8, 3))
    assert not torch.equal(logsnr[:, 0].sort().values, logsnr[:, 1].sort().values)


def test_a_list_of_another_length_or_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="generator must be one or a list of 2, one per sample, got 1"):
        latent_bits(torch.zeros(2, 4, 8, 8), PRIOR, SCHEDULE, 4, [torch.Generator()])
    with pytest.raises(ValueError, match=r"z_clean must hold at least one sample, got \(0, 4, 8, 8\)"):
        latent_bits(torch.zeros(0, 4, 8, 8), PRIOR, SCHEDULE, 4)
