"""Moving averages of the weights, which are validated and saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from ul_tokenizer import _compat
from ul_tokenizer.training.engine.saved import read_extra, read_weights
from ul_tokenizer.training.engine.sharding import divided, joined, part_of

POWER = 0.75  # n^−0.75 is the share of the newest weights until the decay is reached, as in diffusers


@dataclass(frozen=True)
class Profile:
    """How an average weighs the weights of the past."""

    name: str  # suffix of its folders
    decay: float | None = None  # of an exponential average
    exponent: float | None = None  # γ of a power-function average, t^γ: EDM2 (Karras et al. 2024), Eq. 124

    def newest(self, n: Tensor) -> Tensor:
        """The share of the newest weights in the average after step n (0-dimensional, n ≥ 1)."""
        if self.decay is not None:
            return (n**-POWER).clamp(min=1 - self.decay)
        assert self.exponent is not None  # one of the two is set
        return -torch.expm1((self.exponent + 1) * torch.log1p(-1 / n))  # 1 − (1 − 1/n)^(γ+1)

    def config(self, n: int) -> dict[str, Any]:
        """What the average's config.json holds beside the model's config; diffusers' `EMAModel` reads it."""
        if self.decay is None:
            return {"optimization_step": n}
        return {
            "decay": self.decay,
            "min_decay": 0.0,
            "optimization_step": n,
            "update_after_step": 0,
            "use_ema_warmup": True,
            "inv_gamma": 1.0,
            "power": POWER,
        }


def profiles(decays: Sequence[float], stds: Sequence[float] = ()) -> list[Profile]:
    """The profiles of `--ema_decay` and `--ema_std`; the first one is the result of the training."""
    exponential = [Profile(f"ema_{decay:g}" if i else "ema", decay=decay) for i, decay in enumerate(decays)]
    return exponential + [Profile(f"ema_std{std:g}", exponent=exponent_of(std)) for std in stds]


def exponent_of(std: float) -> float:
    """γ of the power function whose standard deviation is `std` times the training's length."""
    # std² = (γ + 1) / ((γ + 2)² (γ + 3)), whose largest root is meant.
    roots = np.roots([1.0, 7.0, 16.0 - std**-2, 12.0 - std**-2])
    return float(roots.real.max())


class Averages:
    """Moving averages of the trained weights of several models. Frozen weights are their own average.

    With FSDP, each process averages its parts of the weights.

    Args:
        models: name → model, on its final device.
        profiles: the averages to keep; none of them if this is empty.
    """

    def __init__(self, models: Mapping[str, ModelMixin], profiles: Sequence[Profile]) -> None:
        self.models, self.profiles = models, list(profiles)
        self._weights = {name: _trained(model) for name, model in models.items()} if profiles else {}
        parts = self._parts()
        self._averages = [[part.clone() for part in parts] for _ in profiles]
        self._steps = torch.zeros((), device=parts[0].device if parts else None)  # a float for its powers

    def _parts(self) -> list[Tensor]:
        """This process's parts of all averaged weights."""
        return [part_of(weight).detach() for weights in self._weights.values() for weight in weights.values()]

    def step(self, is_finite: Tensor | None = None) -> None:
        """Updates the averages after an optimiser step, without waiting for the device.

        Args:
            is_finite: 1.0 or 0.0, (), on the device of the weights; at 0 the step was skipped.
        """
        parts = self._parts()
        if not parts:
            return
        made = torch.ones_like(self._steps) if is_finite is None else is_finite
        self._steps += made
        n = self._steps.clamp(min=1)
        for profile, average in zip(self.profiles, self._averages, strict=True):
            _compat.move_towards(average, parts, profile.newest(n) * made)

    @contextmanager
    def applied(self, number: int = 0) -> Iterator[None]:
        """Replaces the weights of the models by an average within a `with` block; the first one by default."""
        self._swap(number)
        try:
            yield
        finally:
            self._swap(number)

    @torch.no_grad()
    def _swap(self, number: int) -> None:
        for part, average in zip(self._parts(), self._averages[number] if self._averages else [], strict=True):
            kept = part.clone()  # of one tensor at a time, so that no second copy of the networks is needed
            part.copy_(average)
            average.copy_(kept)

    # ------------------------------------------------------------------------------------------------------------
    # Files
    # ------------------------------------------------------------------------------------------------------------

    def weights(self, name: str, number: int = 0) -> dict[str, Tensor]:
        """The weights of a model with an average in place of the trained ones; divided as its own are."""
        weights: dict[str, Tensor] = self.models[name].state_dict()
        if not self.profiles:
            return weights
        remaining = iter(self._averages[number])
        for model, trained in self._weights.items():
            averages = {key: joined(next(remaining), weight) for key, weight in trained.items()}
            weights |= averages if model == name else {}
        return weights

    def saved(self) -> dict[str, tuple[str, int, dict[str, Any]]]:
        """Folder in a checkpoint → name of the model, number of the average, and what its config holds in addition."""
        steps = int(self._steps)
        return {
            f"{name}_{profile.name}": (name, number, profile.config(steps))
            for number, profile in enumerate(self.profiles)
            for name in self.models
        }

    def load(self, folder: Path) -> None:
        """Reads the folders that a checkpoint has for the averages.

        An exponential average that is new goes on from the first one.

        Raises:
            ValueError: the checkpoint contains no averages, or not the power-function averages of this run.
        """
        for profile, average in zip(self.profiles, self._averages, strict=True):
            if profile.decay is not None and not self._is_saved(profile, folder):
                profile = self.profiles[0]
            if not self._is_saved(profile, folder):
                remedy = "resume with --no-use_ema" if profile.decay else "such averages must start with the training"
                raise ValueError(f"{folder} has no averaged weights {profile.name}; {remedy}.")
            remaining = iter(average)
            for name, weights in self._weights.items():
                if not weights:  # the averages of frozen models count no steps, and there is nothing to read
                    continue
                path = folder / f"{name}_{profile.name}"
                tensors = read_weights(path)
                # In place, and so in the same memory layout: the next steps then round as without a stop.
                parts = [part_of(divided(tensors[key], weight)) for key, weight in weights.items()]
                _compat.copy_all([next(remaining) for _ in parts], parts)
                self._steps.fill_(read_extra(path, "optimization_step"))

    def _is_saved(self, profile: Profile, folder: Path) -> bool:
        return all((folder / f"{name}_{profile.name}").is_dir() for name in self._weights)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
