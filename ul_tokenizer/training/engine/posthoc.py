"""Averages of any length, made after a training from the power-function averages in its checkpoints.

The average of step τ in a training of t steps has the profile p(τ) = (γ + 1) τ^γ / t^(γ+1). A linear combination of the
profiles that were kept comes close to the one that is wanted, and so does the same combination of the averages (EDM2,
arXiv 2312.02696, section 3.2).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from diffusers.utils import CONFIG_NAME
from torch import Tensor

from ul_tokenizer.training.engine.averages import exponent_of
from ul_tokenizer.training.engine.saved import read_weights

Matrix = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class PowerProfile(NamedTuple):
    """A power-function average at a step of the training."""

    exponent: float  # γ
    step: int  # t


def average_of(checkpoint: Path, name: str, std: float) -> dict[str, Tensor]:
    """The average of a model's weights with any relative standard deviation, at the step of a checkpoint.

    Args:
        checkpoint: a checkpoint of a run with `--ema_std`; earlier ones of the run make the average more exact.
        name: the model's name in the checkpoint.
        std: standard deviation of the average, as a fraction of the training's length.

    Returns:
        name → weight, fp32.

    Raises:
        ValueError: the checkpoint has no power-function averages.
    """
    last = _step_of(checkpoint)
    folders = [
        folder
        for sibling in sorted(checkpoint.parent.glob("checkpoint-*"))
        if (sibling == checkpoint or re.fullmatch(r"checkpoint-\d+", sibling.name)) and _step_of(sibling) <= last
        for folder in sorted(sibling.glob(f"{name}_ema_std*"))
    ]
    if not any(folder.parent == checkpoint for folder in folders):
        raise ValueError(f"{checkpoint} has no power-function averages of its {name}; train with --ema_std.")
    profiles = [_profile_of(folder) for folder in folders]
    target = PowerProfile(exponent_of(std), max(profile.step for profile in profiles))
    average: dict[str, Tensor] = {}
    for folder, factor in zip(folders, coefficients(profiles, target), strict=True):
        for key, weight in read_weights(folder).items():
            average[key] = average.get(key, 0) + float(factor) * weight.float()
    return average


def coefficients(profiles: Sequence[PowerProfile], target: PowerProfile) -> Matrix:
    """(N,), the combination of profiles that is closest to the target in L2; its sum is 1."""
    count = len(profiles)
    products = np.array([[inner_product(a, b) for b in profiles] for a in profiles])
    wanted = np.array([inner_product(profile, target) for profile in profiles])
    # With a Lagrange multiplier for the sum, so that weights that never change are their own average.
    system = np.ones((count + 1, count + 1))
    system[:count, :count], system[count, count] = products, 0.0
    solution, *_ = np.linalg.lstsq(system, np.append(wanted, 1.0))
    return np.asarray(solution[:count])


def inner_product(a: PowerProfile, b: PowerProfile) -> float:
    """∫ p_a(τ) p_b(τ) dτ."""
    if a.step > b.step:
        a, b = b, a
    factor = (a.exponent + 1) * (b.exponent + 1) / (a.exponent + b.exponent + 1)
    return float(factor * (a.step / b.step) ** b.exponent / b.step)


def _profile_of(folder: Path) -> PowerProfile:
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    return PowerProfile(exponent_of(float(folder.name.rpartition("_ema_std")[2])), config["optimization_step"])


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
