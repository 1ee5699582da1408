"""Samplers in log-SNR for diffusers pipelines: DDIM, DDPM ancestral, DPM-Solver++(2M).

One step goes from level t to the cleaner level s. With h = (λ_s − λ_t)/2, half the gain in log-SNR:

    ODE  (DDIM, 2M)   z_s = (σ_s/σ_t)       z_t + α_s (1 − e^{−h})  D
    SDE  (DDPM)       z_s = (σ_s/σ_t) e^{−h} z_t + α_s (1 − e^{−2h}) D + σ_s √(1 − e^{−2h}) ε

D is x̂ for DDIM and DDPM, so that the first line is α_s x̂ + σ_s ε̂ and the second the posterior q(z_s | z_t, x̂);
2M extrapolates x̂ from the last two levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args, overload

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ul_tokenizer.diffusion.parameterization import PredictionType, broadcast_to_rank, to_x, velocity
from ul_tokenizer.diffusion.schedule import LogSNRSchedule, ScheduleKind, alpha_sigma
from ul_tokenizer.publish.facts import ModelFacts
from ul_tokenizer.publish.mixin import PushToHubMixin

AlgorithmType = Literal["ddim", "ddpm", "dpmsolver++"]
TimestepSpacing = Literal["logsnr", "t"]
Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class LogSNRSchedulerOutput(BaseOutput):
    """What one step gives; both tensors have the shape and dtype of the sample that went in."""

    prev_sample: Tensor  # noisy sample of the next, cleaner level
    pred_original_sample: Tensor  # x̂


class LogSNRScheduler(PushToHubMixin, SchedulerMixin, ConfigMixin):
    """Scheduler whose timesteps are log-SNR values, from pure noise up to `logsnr_max`, where it stops.

    The last step returns the noisy sample OF `logsnr_max`, as a unified latent wants it, and not x̂.

    Args:
        logsnr_max: λ of the sample that the last step returns.
        logsnr_min: λ of the first timestep.
        schedule: λ(t) that `timestep_spacing="t"` follows.
        shift_clean: added to λ at the clean end of that schedule, see `LogSNRSchedule`.
        shift_noisy: the same at the noisy end.
        algorithm_type: "ddim" first order, "dpmsolver++" second order (2M), "ddpm" ancestral.
        timestep_spacing: levels evenly spaced in log-SNR, or in t of the schedule.
        prediction_type: what the network predicts, in diffusers' words.

    Raises:
        ValueError: for a word that is not listed, or log-SNR values that make no schedule.
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
        self._levels: list[tuple[float, float, float]] = []  # (λ, α, σ) of the n timesteps and of the end
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._last_x: Tensor | None = None  # x̂ of the level before, for 2M

    @property
    def step_index(self) -> int | None:
        """Index of the timestep that the next `step` starts from; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index that a run starts from, if `set_begin_index` gave one."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the next run at `timesteps[begin_index]`, as image-to-image does; forgets a run in progress."""
        if not 0 <= begin_index < len(self.timesteps):
            raise ValueError(f"begin_index must index the {len(self.timesteps)} timesteps, got {begin_index}.")
        self._restart(begin_index)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Lay out the levels of a run: `timesteps`, n log-SNR values (fp32, rising); the end is `logsnr_max`.

        Args:
            num_inference_steps: n, at least 1; may be left out beside `timesteps`.
            device: where `timesteps` shall lie.
            timesteps: own log-SNR values, rising and below `logsnr_max`.

        Raises:
            ValueError: for a number of steps below 1, one that differs from `len(timesteps)`, or bad `timesteps`.
        """
        if timesteps is None:
            levels = self._spaced(num_inference_steps)
        else:
            levels = self._ending_at_max(timesteps, num_inference_steps)
        levels = levels.float()  # α and σ must be those of the rounded λ that the network is told
        if not levels.isfinite().all() or not (levels.diff() > 0).all():
            raise ValueError(
                f"timesteps must be finite log-SNR values that rise and stay below logsnr_max = "
                f"{self.noise_schedule.logsnr_max}, got {levels[:-1].tolist()}."
            )
        alphas, sigmas = alpha_sigma(levels.double())
        self._levels = list(zip(levels.tolist(), alphas.tolist(), sigmas.tolist(), strict=True))
        self.timesteps = levels[:-1].to(device)
        self.num_inference_steps = len(self.timesteps)
        self._restart(None)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample itself: the process is variance preserving."""
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
        """Go from one level to the next cleaner one; from the last timestep, to `logsnr_max`.

        Args:
            model_output: prediction (B, ...), of the kind that `prediction_type` names.
            timestep: log-SNR of `sample`, one of `timesteps`; read on the first step of a run only.
            sample: noisy sample, shaped like `model_output`, any float dtype; the arithmetic is fp32 or wider.
            generator: source of DDPM's noise, one or a list with one per sample.
            variance_noise: DDPM's noise itself, instead of `generator`.
            return_dict: False returns the tuple (prev_sample, pred_original_sample).

        Raises:
            ValueError: before `set_timesteps`, past the last timestep, or for an unknown first `timestep`.
        """
        index = self._next_index(timestep)
        x = to_x(model_output, sample, self.timesteps[index], self.config["prediction_type"])
        z_s = self._solve(x, sample.to(x.dtype), index)
        if self.config["algorithm_type"] == "ddpm":
            noise = _noise_like(x, generator) if variance_noise is None else _unless_both(variance_noise, generator)
            z_s.add_(noise, alpha=self._posterior_std(index))
        self._step_index = index + 1
        prev_sample, pred_original_sample = z_s.to(sample.dtype), x.to(sample.dtype)
        if not return_dict:
            return prev_sample, pred_original_sample
        return LogSNRSchedulerOutput(prev_sample=prev_sample, pred_original_sample=pred_original_sample)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """αx + σε at log-SNR `timesteps`, (B,) or one for all; shaped and typed like `original_samples`."""
        alpha, sigma = alpha_sigma(broadcast_to_rank(timesteps, original_samples))
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """αε − σx, the target of "v_prediction"; arguments as in `add_noise`."""
        return velocity(sample, noise, timesteps).to(sample.dtype)

    def _restart(self, begin_index: int | None) -> None:
        self._begin_index, self._step_index, self._last_x = begin_index, None, None

    def _spaced(self, num_inference_steps: int | None) -> Tensor:
        """All n + 1 levels, float64: the inner ones of a cosine at ±20 need it."""
        if num_inference_steps is None or num_inference_steps < 1 or num_inference_steps != int(num_inference_steps):
            raise ValueError(f"num_inference_steps must be an integer of at least 1, got {num_inference_steps}.")
        top, bottom = self.noise_schedule.logsnr_max, self.noise_schedule.logsnr_min
        if self.config["timestep_spacing"] == "logsnr":
            return torch.linspace(bottom, top, int(num_inference_steps) + 1, dtype=torch.float64)
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
        for index, (logsnr, _, _) in enumerate(self._levels[:-1]):
            if math.isclose(value, logsnr, rel_tol=1e-6, abs_tol=1e-6):
                return index
        raise ValueError(f"timestep must be one of the scheduler's timesteps (log-SNR values), got {value}.")

    def _solve(self, x: Tensor, z_t: Tensor, index: int) -> Tensor:
        """z_s without its noise; the two lines at the top of this file, with a new tensor for the result."""
        (logsnr_t, _, sigma_t), (logsnr_s, alpha_s, sigma_s) = self._levels[index : index + 2]
        h = 0.5 * (logsnr_s - logsnr_t)
        if self.config["algorithm_type"] == "ddpm":
            return torch.add(sigma_s / sigma_t * math.exp(-h) * z_t, x, alpha=-alpha_s * math.expm1(-2.0 * h))
        D = self._extrapolated(x, index) if self.config["algorithm_type"] == "dpmsolver++" else x
        return torch.add(sigma_s / sigma_t * z_t, D, alpha=-alpha_s * math.expm1(-h))

    def _posterior_std(self, index: int) -> float:
        (logsnr_t, _, _), (logsnr_s, _, sigma_s) = self._levels[index : index + 2]
        return sigma_s * math.sqrt(-math.expm1(logsnr_t - logsnr_s))

    def _extrapolated(self, x: Tensor, index: int) -> Tensor:
        """D = x̂ + (x̂ − x̂_last)/(2r), r the last step over this one (DPM-Solver++, arXiv 2211.01095, Algorithm 2).

        The end is finite, so that even the last step is of second order; the first of a run can't be.
        """
        last, self._last_x = self._last_x, x
        if last is None:
            return x
        (logsnr_r, _, _), (logsnr_t, _, _), (logsnr_s, _, _) = self._levels[index - 1 : index + 2]
        r = (logsnr_t - logsnr_r) / (logsnr_s - logsnr_t)
        return torch.lerp(last, x, 1.0 + 0.5 / r)


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
