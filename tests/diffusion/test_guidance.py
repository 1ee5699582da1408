"""Guidance on Gaussians, where the exact denoisers are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ul_tokenizer.diffusion.guidance import Guidance
from ul_tokenizer.diffusion.parameterization import velocity
from ul_tokenizer.diffusion.schedule import alpha_sigma
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler

MEAN, STD, WIDE = 1.5, 0.5, 1.5  # of the class, and of all data around 0
N = 4096


def optimal_v(z: Tensor, logsnr: float, mean: float, std: float) -> Tensor:
    """v of the exact posterior mean for data N(mean, std²)."""
    level = torch.tensor(logsnr)
    alpha, sigma = alpha_sigma(level)
    x = mean + (alpha * std**2 / (alpha**2 * std**2 + sigma**2)) * (z - alpha * mean)
    eps = (z - alpha * x) / sigma
    return velocity(x[:, None], eps[:, None], level.expand(len(z))).squeeze(1)


def sample(guidance: Guidance, steps: int = 64) -> tuple[Tensor, int]:
    """Guided samples of the class, and how often the unconditional denoiser ran."""
    scheduler = LogSNRScheduler(logsnr_max=5.0, logsnr_min=-10.0, algorithm_type="dpmsolver++")
    scheduler.set_timesteps(steps)
    z = torch.randn(N, generator=torch.Generator().manual_seed(0))
    calls = 0
    for logsnr in scheduler.timesteps.tolist():
        v = optimal_v(z, logsnr, MEAN, STD)
        if guidance.applies(logsnr):
            calls += 1
            v = guidance.combine(v, optimal_v(z, logsnr, 0.0, WIDE))
        z = scheduler.step(v, logsnr, z, return_dict=False)[0]
    return z, calls


def test_scale_1_is_the_conditional_marginal_and_asks_nothing_else() -> None:
    z, calls = sample(Guidance(1.0))
    alpha = math.sqrt(1 / (1 + math.exp(-5)))
    assert calls == 0
    assert float(z.mean()) == pytest.approx(alpha * MEAN, abs=0.03)
    assert float(z.std()) == pytest.approx(math.sqrt(alpha**2 * STD**2 + 1 - alpha**2), rel=0.03)


def test_scale_0_is_the_unconditional_marginal() -> None:
    z, _ = sample(Guidance(0.0))
    assert float(z.mean()) == pytest.approx(0.0, abs=0.06)
    assert float(z.std()) == pytest.approx(WIDE, rel=0.04)


def test_a_higher_scale_moves_the_mean_further_from_other_data_and_narrows_the_class() -> None:
    means, stds = zip(
        *((float(z.mean()), float(z.std())) for z, _ in map(sample, map(Guidance, (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)))),
        strict=True,
    )
    assert list(means) == sorted(means)
    assert list(stds) == sorted(stds, reverse=True)


def test_an_interval_guides_less_the_narrower_it_is_and_asks_less() -> None:
    results = [sample(Guidance(3.0, interval)) for interval in ((9.0, 10.0), (-1.0, 1.0), (-4.0, 3.0), (-20.0, 20.0))]
    calls = [count for _, count in results]
    means = [float(z.mean()) for z, _ in results]
    assert calls == sorted(calls)
    assert (calls[0], calls[-1]) == (0, 64)
    assert means == sorted(means)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scale": -1.0}, "guidance_scale must be a finite number of at least 0, got -1.0"),
        ({"scale": math.nan}, "guidance_scale must be a finite number of at least 0, got nan"),
        ({"interval": (1.0, -1.0)}, r"guidance_interval must be \(lowest, highest\) log-SNR, rising, got"),
        ({"interval": (1.0, 1.0)}, r"guidance_interval must be \(lowest, highest\) log-SNR, rising, got"),
        ({"interval": (1.0,)}, r"guidance_interval must be \(lowest, highest\) log-SNR, got \(1.0,\)"),
        ({"interval": (math.nan, 1.0)}, r"guidance_interval must be \(lowest, highest\) log-SNR, got \(nan, 1.0\)"),
    ],
)
def test_senseless_guidance_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Guidance(**arguments)
