"""LogSNRScheduler: DDIM, DDPM ancestral sampling and DPM-Solver++ (2M) in log-SNR, for diffusers' pipelines.

`diffusion/solver.py` has the equations of a step. This file lays out the levels and keeps the state of a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args, overload

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ul_tokenizer.decorators import register_to_config
from ul_tokenizer.diffusion.parameterization import PredictionType, broadcast_to_rank, to_x, velocity
from ul_tokenizer.diffusion.schedule import LogSNRSchedule, ScheduleKind, alpha_sigma
from ul_tokenizer.diffusion.solver import (
    Level,
    evenly_spaced,
    extrapolated,
    level_at,
    ode_step,
    posterior_mean,
    posterior_std,
)
from ul_tokenizer.publish.facts import ModelFacts
from ul_tokenizer.publish.mixin import PushToHubMixin

AlgorithmType = Literal["ddim", "ddpm", "dpmsolver++"]
TimestepSpacing = Literal["logsnr", "t"]
Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class LogSNRSchedulerOutput(BaseOutput):
    """Output of a step; both tensors have the shape and dtype of the sample that went in."""

    prev_sample: Tensor  # noisy sample of the next, cleaner level
    pred_original_sample: Tensor  # x̂


class LogSNRScheduler(PushToHubMixin, SchedulerMixin, ConfigMixin):
    """Scheduler whose timesteps are log-SNR values, from pure noise up to `logsnr_max`.

    The last step returns the noisy sample at `logsnr_max`, not x̂: this is the noise level of a unified latent.

    Args:
        logsnr_max: λ of the sample that the last step returns.
        logsnr_min: λ of the first timestep.
        schedule: λ(t), used where `timestep_spacing` is "t".
        shift_clean: added to λ at the clean end of that schedule, see `LogSNRSchedule`.
        shift_noisy: added to λ at its noisy end.
        algorithm_type: "ddim" (first order), "dpmsolver++" (second order, 2M) or "ddpm" (ancestral).
        timestep_spacing: "logsnr" spaces levels evenly in log-SNR, "t" evenly in t of the schedule.
        prediction_type: what the network predicts, in diffusers' words.

    Raises:
        ValueError: an unknown word, or log-SNR values that do not form a schedule.
    """

    _compatibles: list[str] = []  # noqa: RUF012 (as diffusers declares it)
    order = 1
    card_facts: ClassVar[ModelFacts] = ModelFacts(
        role="A scheduler in log-SNR",
        usage='scheduler = LogSNRScheduler.from_pretrained("{repo_id}")',
        has_weights=False,
    )

    @register_to_config
    def __init__(
        self,
        logsnr_max: float = 5.0,
        logsnr_min: float = -10.0,
        schedule: ScheduleKind = "cosine",
        shift_clean: float = 0.0,
        shift_noisy: float = 0.0,
        algorithm_type: AlgorithmType = "ddim",
        timestep_spacing: TimestepSpacing = "logsnr",
        prediction_type: PredictionType = "v_prediction",
    ) -> None:
        _require_word("algorithm_type", algorithm_type, get_args(AlgorithmType))
        _require_word("timestep_spacing", timestep_spacing, get_args(TimestepSpacing))
        _require_word("prediction_type", prediction_type, get_args(PredictionType))
        self.noise_schedule = LogSNRSchedule(logsnr_max, logsnr_min, schedule, shift_clean, shift_noisy)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0)
        self._levels: list[Level] = []  # of the n timesteps and of the end
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._last_x: Tensor | None = None  # x̂ of the level before, for 2M

    @property
    def step_index(self) -> int | None:
        """Index of the timestep that the next `step` starts from; None before the first step."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first timestep of a run, if it was set with `set_begin_index`."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Starts the next run at `timesteps[begin_index]`, as image-to-image does; ends a run in progress.

        Raises:
            ValueError: `begin_index` is not an index of `timesteps`.
        """
        if not 0 <= begin_index < len(self.timesteps):
            raise ValueError(f"begin_index must index the {len(self.timesteps)} timesteps, got {begin_index}.")
        self._restart(begin_index)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Lays out the levels of a run: `timesteps`, n rising log-SNR values (fp32), and the end, `logsnr_max`.

        Args:
            num_inference_steps: n, at least 1; optional if `timesteps` are given.
            device: device of `timesteps`.
            timesteps: custom log-SNR values, (n,), rising and below `logsnr_max`.

        Raises:
            ValueError: a number of steps below 1 or different from `len(timesteps)`, or illegal `timesteps`.
        """
        if timesteps is None:
            levels = self._spaced(num_inference_steps)
        else:
            levels = self._ending_at_max(timesteps, num_inference_steps)
        levels = levels.float()  # networks read λ in fp32: α and σ must belong to the rounded λ
        if not levels.isfinite().all() or not (levels.diff() > 0).all():
            raise ValueError(
                f"timesteps must be finite log-SNR values that rise and stay below logsnr_max = "
                f"{self.noise_schedule.logsnr_max}, got {levels[:-1].tolist()}."
            )
        self._levels = [level_at(logsnr) for logsnr in levels.tolist()]
        self.timesteps = levels[:-1].to(device)
        self.num_inference_steps = len(self.timesteps)
        self._restart(None)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """Returns the sample (B, …) unchanged, since the process is variance preserving."""
        return sample

    @overload
    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = ...,
        variance_noise: Tensor | None = ...,
        return_dict: Literal[True] = ...,
    ) -> LogSNRSchedulerOutput: ...

    @overload
    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = ...,
        variance_noise: Tensor | None = ...,
        *,
        return_dict: Literal[False],
    ) -> tuple[Tensor, Tensor]: ...

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> LogSNRSchedulerOutput | tuple[Tensor, Tensor]:
        """Goes from one level to the next cleaner one; the last step goes to `logsnr_max`.

        Args:
            model_output: prediction (B, ...) of the kind given by `prediction_type`.
            timestep: log-SNR of `sample`, one of `timesteps`; only the first step of a run reads it.
            sample: noisy sample, shaped like `model_output`, any float dtype; the arithmetic is fp32 or wider.
            generator: generator of DDPM's noise, one for the batch or a list with one per sample.
            variance_noise: DDPM's noise itself, instead of `generator`.
            return_dict: whether to return a `LogSNRSchedulerOutput` or the tuple (prev_sample, pred_original_sample).

        Raises:
            ValueError: called before `set_timesteps` or past the last timestep, or an unknown first `timestep`.
        """
        index = self._next_index(timestep)
        x = to_x(model_output, sample, self.timesteps[index], self.config["prediction_type"])
        z_s = self._next_sample(x, sample.to(x.dtype), index, generator, variance_noise)
        self._step_index = index + 1
        prev_sample, pred_original_sample = z_s.to(sample.dtype), x.to(sample.dtype)
        if not return_dict:
            return prev_sample, pred_original_sample
        return LogSNRSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original_sample)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """αx + σε at log-SNR `timesteps`, (B,) or (); same shape and dtype as `original_samples`."""
        alpha, sigma = alpha_sigma(broadcast_to_rank(timesteps, original_samples))
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """αε − σx, the target of "v_prediction"; arguments as in `add_noise`."""
        return velocity(sample, noise, timesteps).to(sample.dtype)

    def _restart(self, begin_index: int | None) -> None:
        self._begin_index, self._step_index, self._last_x = begin_index, None, None

    def _spaced(self, num_inference_steps: int | None) -> Tensor:
        """All n + 1 levels in float64, which the inner levels of a cosine at ±20 need."""
        if num_inference_steps is None or num_inference_steps < 1 or num_inference_steps != int(num_inference_steps):
            raise ValueError(f"num_inference_steps must be an integer of at least 1, got {num_inference_steps}.")
        top, bottom = self.noise_schedule.logsnr_max, self.noise_schedule.logsnr_min
        if self.config["timestep_spacing"] == "logsnr":
            return torch.tensor(evenly_spaced(bottom, top, int(num_inference_steps)), dtype=torch.float64)
        levels = self.noise_schedule.logsnr(torch.linspace(1, 0, int(num_inference_steps) + 1, dtype=torch.float64))
        levels[0], levels[-1] = bottom, top
        return levels

    def _ending_at_max(self, timesteps: Sequence[float] | Tensor, num_inference_steps: int | None) -> Tensor:
        values = torch.as_tensor(timesteps, dtype=torch.float64).cpu()
        if values.ndim != 1 or len(values) == 0:
            raise ValueError(f"timesteps must be a non-empty list of log-SNR values, got shape {tuple(values.shape)}.")
        if num_inference_steps not in (None, len(values)):
            raise ValueError(
                f"num_inference_steps must be left out or equal the {len(values)} timesteps, got {num_inference_steps}."
            )
        return torch.cat([values, values.new_tensor([self.noise_schedule.logsnr_max])])

    def _next_index(self, timestep: float | Tensor) -> int:
        if self.num_inference_steps is None:
            raise ValueError("step needs timesteps, call set_timesteps before it.")
        index = self._step_index
        if index is None:
            index = self._index_of(timestep) if self._begin_index is None else self._begin_index
        if index >= self.num_inference_steps:
            raise ValueError(
                f"step was called past the last of {self.num_inference_steps} timesteps, call set_timesteps again."
            )
        return index

    def _index_of(self, timestep: float | Tensor) -> int:
        value = float(timestep)  # waits for the device: once a run, not once a step
        for index, level in enumerate(self._levels[:-1]):
            if math.isclose(value, level.logsnr, rel_tol=1e-6, abs_tol=1e-6):
                return index
        raise ValueError(f"timestep must be one of the scheduler's timesteps (log-SNR values), got {value}.")

    def _next_sample(
        self, x: Tensor, z_t: Tensor, index: int, generator: Generators, variance_noise: Tensor | None
    ) -> Tensor:
        """z_s, a new tensor."""
        t, s = self._levels[index : index + 2]
        if self.config["algorithm_type"] == "ddpm":
            noise = _noise_like(x, generator) if variance_noise is None else _unless_both(variance_noise, generator)
            return posterior_mean(z_t, x, t, s).add_(noise, alpha=posterior_std(t, s))
        if self.config["algorithm_type"] == "ddim":
            return ode_step(z_t, x, t, s)
        x_last, self._last_x = self._last_x, x
        D = x if x_last is None else extrapolated(x, x_last, self._levels[index - 1], t, s)
        return ode_step(z_t, D, t, s)


def _require_word(name: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise ValueError(f"{name} must be one of {legal}, got {value!r}.")


def _noise_like(x: Tensor, generator: Generators) -> Tensor:
    # fp32 draws even for half-precision samples: the same generator gives the same noise in every dtype.
    if isinstance(generator, list) and len(generator) != len(x):
        raise ValueError(f"generator must be one or a list of {len(x)}, one per sample, got {len(generator)}.")
    return cast(Tensor, randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype))


def _unless_both(variance_noise: Tensor, generator: Generators) -> Tensor:
    if generator is not None:
        raise ValueError("only one of generator and variance_noise can be given, got both.")
    return variance_noise
