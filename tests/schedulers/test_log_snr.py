"""The log-SNR scheduler.

Convergence is measured on Gaussian data N(0, s²), whose optimal denoiser is linear and whose noisy marginal has
the variance α²s² + σ². A linear sampler's variance follows from its gains, so nothing here waits for an average.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from ul_tokenizer.diffusion.parameterization import to_x_and_eps
from ul_tokenizer.diffusion.schedule import alpha_sigma
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler, LogSNRSchedulerOutput

ALGORITHMS = ["ddim", "ddpm", "dpmsolver++"]
PREDICTIONS = ["v_prediction", "epsilon", "sample"]
S = 0.5  # standard deviation of the Gaussian data
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
each_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make(n: int | None = None, **config: Any) -> LogSNRScheduler:
    scheduler = LogSNRScheduler(**config)
    if n is not None:
        scheduler.set_timesteps(n)
    return scheduler


def advance(scheduler: LogSNRScheduler, output: Tensor, t: Any, z: Tensor, **kwargs: Any) -> LogSNRSchedulerOutput:
    return scheduler.step(output, t, z, **kwargs)


def sample_with(
    scheduler: LogSNRScheduler, model: Callable[[Tensor, Tensor], Tensor], z: Tensor, **kwargs: Any
) -> Tensor:
    for t in scheduler.timesteps:
        z = advance(scheduler, model(z, t), t, z, **kwargs).prev_sample
    return z


def optimal_x(z: Tensor, logsnr: Tensor) -> Tensor:
    """E[x | z] for data N(0, S²)."""
    alpha, sigma = alpha_sigma(logsnr.to(z.dtype))
    return alpha * S**2 / (alpha**2 * S**2 + sigma**2) * z


def optimal_prediction(z: Tensor, logsnr: Tensor, prediction: str) -> Tensor:
    alpha, sigma = alpha_sigma(logsnr.to(z.dtype))
    x = optimal_x(z, logsnr)
    eps = (z - alpha * x) / sigma
    return {"sample": x, "epsilon": eps, "v_prediction": alpha * eps - sigma * x}[prediction]


def marginal_variance(logsnr: float) -> float:
    alpha, sigma = alpha_sigma(torch.tensor(logsnr, dtype=torch.float64))
    return float(alpha**2 * S**2 + sigma**2)


def end_variance(n: int, algorithm: str, spacing: str = "logsnr", low: float = -10.0, high: float = 5.0) -> float:
    """Variance after n steps, exactly: V → a²V + b², with a and b a step's gains for the sample and for the noise."""
    scheduler = make(
        n, algorithm_type=algorithm, timestep_spacing=spacing, prediction_type="sample", logsnr_min=low, logsnr_max=high
    )
    unit, noise = torch.eye(2, dtype=torch.float64)
    variance, z = marginal_variance(low), unit
    for t in scheduler.timesteps:
        z = advance(scheduler, optimal_x(z, t), t, z, variance_noise=noise).prev_sample
        if algorithm == "ddpm":
            variance = float(z[0] ** 2 * variance + z[1] ** 2)
            z = unit
    return variance if algorithm == "ddpm" else float(z[0] ** 2) * variance


# ---------------------------------------------------------------- theory


@each_algorithm
@pytest.mark.parametrize("spacing", ["logsnr", "t"])
def test_many_steps_end_with_the_noise_level_of_logsnr_max(algorithm: str, spacing: str) -> None:
    exact = marginal_variance(5.0)
    assert exact - S**2 == pytest.approx(0.75 * 0.0818**2, rel=1e-2)  # the noise of λ = 5 is in it
    tolerance = {"ddim": 4e-3, "ddpm": 8e-3, "dpmsolver++": 2e-5}[algorithm]
    assert end_variance(1000, algorithm, spacing) == pytest.approx(exact, rel=tolerance)


@pytest.mark.parametrize(("algorithm", "order"), [("ddim", 1), ("ddpm", 1), ("dpmsolver++", 2)])
@pytest.mark.parametrize("spacing", ["logsnr", "t"])
def test_the_error_falls_with_the_order_of_the_algorithm(algorithm: str, order: int, spacing: str) -> None:
    exact = marginal_variance(5.0)
    coarse, fine = (abs(end_variance(n, algorithm, spacing) - exact) for n in (200, 400))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 20])
def test_the_second_order_last_step_is_stable_at_few_steps(n: int) -> None:
    exact = marginal_variance(5.0)
    errors = {a: abs(end_variance(n, a) - exact) for a in ("ddim", "dpmsolver++")}
    assert errors["dpmsolver++"] < errors["ddim"]
    assert end_variance(n, "dpmsolver++", "t") < 1.2 * exact


def test_ddpm_on_gaussian_data_leaves_the_right_variance_by_sampling() -> None:
    generator = torch.Generator().manual_seed(0)
    scheduler = make(100, algorithm_type="ddpm", prediction_type="v_prediction")
    start = torch.randn(20000, generator=generator)
    end = sample_with(scheduler, lambda z, t: optimal_prediction(z, t, "v_prediction"), start, generator=generator)
    # A relative standard error of √(2/20000) = 1 %.
    assert end.var().item() == pytest.approx(end_variance(100, "ddpm"), rel=0.04)
    assert end.mean().item() == pytest.approx(0.0, abs=0.02)


def test_a_ddpm_step_with_the_true_x_draws_from_the_next_marginal() -> None:
    # q(z_s | z_t, x) averaged over q(z_t | x) is q(z_s | x), whatever the size of the step.
    scheduler = make(algorithm_type="ddpm", prediction_type="sample")
    scheduler.set_timesteps(timesteps=[-2.0])
    x, zero, one = (torch.tensor([value], dtype=torch.float64) for value in (0.7, 0.0, 1.0))
    alpha_t, sigma_t = alpha_sigma(torch.tensor(-2.0, dtype=torch.float64))
    alpha_s, sigma_s = alpha_sigma(torch.tensor(5.0, dtype=torch.float64))

    def go(z: Tensor, x: Tensor, noise: Tensor) -> float:
        scheduler.set_begin_index(0)
        return advance(scheduler, x, -2.0, z, variance_noise=noise).prev_sample.item()

    keep, std = go(one, zero, zero), go(zero, zero, one)
    assert go(alpha_t * x, x, zero) == pytest.approx(float(alpha_s * x), rel=1e-9)
    assert keep**2 * sigma_t.item() ** 2 + std**2 == pytest.approx(sigma_s.item() ** 2, rel=1e-9)
    assert std**2 == pytest.approx(sigma_s.item() ** 2 * (1.0 - math.exp(-7.0)), rel=1e-9)


def test_one_ddim_step_is_alpha_x_plus_sigma_eps_of_logsnr_max() -> None:
    scheduler = make(1)
    z, v = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    x, eps = to_x_and_eps(v, z, scheduler.timesteps[0], "v_prediction")
    alpha, sigma = alpha_sigma(torch.tensor(5.0))
    out = advance(scheduler, v, scheduler.timesteps[0], z)
    torch.testing.assert_close(out.prev_sample, alpha * x + sigma * eps)
    torch.testing.assert_close(out.pred_original_sample, x)


# ---------------------------------------------------------------- against diffusers


def ddim_of_diffusers(levels: Tensor, prediction: str) -> DDIMScheduler:
    """DDIMScheduler on λ `levels`, noisiest first: n + 1 training steps, of which the cleanest is the end."""
    alphas_cumprod = torch.sigmoid(levels.double()).flip(0)
    betas = 1.0 - alphas_cumprod / torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    scheduler = DDIMScheduler(
        num_train_timesteps=len(levels),
        trained_betas=betas.tolist(),
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction,
    )
    scheduler.set_timesteps(len(levels) - 1)
    return scheduler


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value: at λ = −10, x̂ = (z − σε)/α is 148 times a small difference."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@each_prediction
@pytest.mark.parametrize("spacing", ["logsnr", "t"])
def test_ddim_equals_that_of_diffusers_on_the_same_grid(prediction: str, spacing: str) -> None:
    ours = make(20, prediction_type=prediction, timestep_spacing=spacing)
    theirs = ddim_of_diffusers(torch.cat([ours.timesteps, torch.tensor([5.0])]), prediction)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 3, 8, 8, generator=generator)
    z_theirs = z.clone()
    # Steps with a given ε multiply any rounding of z by α_s/α_t, in all by 148.
    tolerance = 148e-6 if prediction == "epsilon" else 5e-6
    for logsnr, t in zip(ours.timesteps, theirs.timesteps, strict=True):
        # Nearly optimal, with an error of its own in each step, so that no two steps cancel.
        output = optimal_prediction(z, logsnr, prediction) + 0.1 * torch.randn(z.shape, generator=generator)
        out, expected = advance(ours, output, logsnr, z), cast(Any, theirs.step(output, int(t), z_theirs))
        assert relative_difference(out.pred_original_sample, expected.pred_original_sample) < tolerance
        assert relative_difference(out.prev_sample, expected.prev_sample) < tolerance
        z, z_theirs = out.prev_sample, expected.prev_sample


def test_dpmsolver_equals_that_of_diffusers_on_an_uneven_grid() -> None:
    levels = [-9.0, -7.5, -3.0, -2.0, 0.5, 1.0, 4.0]
    ours = make(algorithm_type="dpmsolver++", prediction_type="epsilon")
    ours.set_timesteps(timesteps=levels)
    theirs = DPMSolverMultistepScheduler(
        prediction_type="epsilon", lower_order_final=False, final_sigmas_type="sigma_min"
    )
    theirs.set_timesteps(len(levels))
    theirs.sigmas = torch.exp(-0.5 * torch.tensor([*levels, 5.0], dtype=torch.float64))
    z = z_theirs = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for logsnr, t in zip(ours.timesteps, theirs.timesteps, strict=True):
        output = optimal_prediction(z, logsnr, "epsilon") + 0.1 * torch.randn_like(z)
        z, z_theirs = advance(ours, output, logsnr, z).prev_sample, theirs.step(output, t, z_theirs).prev_sample
        # They solve in fp32.
        torch.testing.assert_close(z, z_theirs.to(z.dtype), rtol=3e-5, atol=3e-5)


@each_algorithm
def test_all_prediction_types_of_one_network_give_the_same_samples(algorithm: str) -> None:
    ends = []
    for prediction in PREDICTIONS:
        scheduler = make(12, algorithm_type=algorithm, prediction_type=prediction)
        z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        model = lambda z, t, prediction=prediction: optimal_prediction(z, t, prediction)  # noqa: E731
        ends.append(sample_with(scheduler, model, z, generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- timesteps and state


def test_timesteps_rise_in_log_snr_from_logsnr_min_and_stop_a_step_before_logsnr_max() -> None:
    scheduler = make(5)
    assert scheduler.timesteps.tolist() == [-10.0, -7.0, -4.0, -1.0, 2.0]
    assert (scheduler.timesteps.dtype, scheduler.num_inference_steps) == (torch.float32, 5)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_timesteps_even_in_t_follow_the_shifted_schedule(kind: str) -> None:
    scheduler = make(4, timestep_spacing="t", schedule=kind, shift_clean=-3.0, shift_noisy=1.0)
    expected = scheduler.noise_schedule.logsnr(torch.tensor([1.0, 0.75, 0.5, 0.25]))
    assert scheduler.timesteps[0].item() == -10.0
    torch.testing.assert_close(scheduler.timesteps, expected, rtol=1e-4, atol=1e-4)


def test_own_timesteps_are_taken_as_they_are() -> None:
    scheduler = make()
    scheduler.set_timesteps(timesteps=[-4.5, 0.0, 3.25])
    assert scheduler.timesteps.tolist() == [-4.5, 0.0, 3.25]
    assert scheduler.num_inference_steps == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "num_inference_steps must be an integer of at least 1, got None"),
        ({"num_inference_steps": 0}, "num_inference_steps .* got 0"),
        ({"num_inference_steps": -3}, "num_inference_steps .* got -3"),
        ({"num_inference_steps": 2.5}, r"num_inference_steps .* got 2\.5"),
        ({"num_inference_steps": 3, "timesteps": [-1.0, 0.0]}, "num_inference_steps .* the 2 timesteps, got 3"),
        ({"timesteps": []}, "timesteps must be a non-empty list"),
        ({"timesteps": [[-1.0]]}, "timesteps must be a non-empty list"),
        ({"timesteps": [0.0, -1.0]}, r"timesteps must .* rise .*\[0\.0, -1\.0\]"),
        ({"timesteps": [0.0, 0.0]}, "timesteps must .* rise"),
        ({"timesteps": [0.0, 5.0]}, r"below logsnr_max = 5\.0"),
        ({"timesteps": [-math.inf, 0.0]}, "timesteps must be finite"),
    ],
)
def test_bad_timesteps_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make().set_timesteps(**arguments)


def test_a_step_before_set_timesteps_or_past_the_end_is_refused() -> None:
    z, scheduler = torch.zeros(1, 2), make()
    with pytest.raises(ValueError, match="call set_timesteps"):
        scheduler.step(z, -10.0, z)
    scheduler.set_timesteps(2)
    sample_with(scheduler, optimal_x, z)
    assert scheduler.step_index == 2
    with pytest.raises(ValueError, match="past the last of 2 timesteps"):
        scheduler.step(z, scheduler.timesteps[-1], z)


def test_a_first_timestep_that_is_no_level_of_the_run_is_refused() -> None:
    z, scheduler = torch.zeros(1, 2), make(5)
    with pytest.raises(ValueError, match=r"timestep must be one of .* got -9\.5"):
        scheduler.step(z, -9.5, z)


@each_algorithm
def test_a_run_can_start_in_the_middle(algorithm: str) -> None:
    """Image-to-image: by begin index, or by the value of the first timestep."""
    z, ends = torch.randn(2, 3, generator=torch.Generator().manual_seed(4)), []
    whole, by_index = make(6, algorithm_type=algorithm), make(6, algorithm_type=algorithm)
    by_index.set_begin_index(4)
    assert (by_index.begin_index, by_index.step_index) == (4, None)
    for scheduler in (whole, by_index):
        generator, noisy = torch.Generator().manual_seed(5), z
        for t in scheduler.timesteps[4:]:
            noisy = advance(
                scheduler, optimal_prediction(noisy, t, "v_prediction"), t, noisy, generator=generator
            ).prev_sample
        assert scheduler.step_index == 6
        ends.append(noisy)
    short = make(algorithm_type=algorithm)
    short.set_timesteps(timesteps=whole.timesteps[4:])
    model = lambda z, t: optimal_prediction(z, t, "v_prediction")  # noqa: E731
    ends.append(sample_with(short, model, z, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("begin_index", [-1, 4])
def test_a_begin_index_outside_the_run_is_refused(begin_index: int) -> None:
    with pytest.raises(ValueError, match=f"begin_index .* 4 timesteps, got {begin_index}"):
        make(4).set_begin_index(begin_index)


@each_algorithm
def test_nothing_of_an_unfinished_run_is_left_after_set_timesteps(algorithm: str) -> None:
    model = lambda z, t: optimal_prediction(z, t, "v_prediction")  # noqa: E731
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(6))
    fresh, used = make(6, algorithm_type=algorithm), make(3, algorithm_type=algorithm)
    for t in used.timesteps[:2]:
        used.step(torch.full_like(z, 9.0), t, z)
    used.set_timesteps(6)
    ends = [sample_with(s, model, z, generator=torch.Generator().manual_seed(7)) for s in (fresh, used)]
    assert torch.equal(ends[0], ends[1])


# ---------------------------------------------------------------- noise


def test_a_sample_does_not_depend_on_its_neighbours_with_one_generator_each() -> None:
    model = lambda z, t: optimal_prediction(z, t, "v_prediction")  # noqa: E731

    def draw(seeds: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        start = torch.cat([torch.randn(1, 3, 4, 4, generator=generator) for generator in generators])
        return sample_with(make(4, algorithm_type="ddpm"), model, start, generator=generators)

    batch = draw([1, 2, 3])
    assert torch.equal(batch[1:2], draw([2]))
    assert torch.equal(batch[1:], draw([2, 3]))
    assert not torch.equal(batch[0], batch[1])


def test_a_list_of_generators_that_does_not_fit_the_batch_is_refused() -> None:
    z, scheduler = torch.zeros(3, 2), make(2, algorithm_type="ddpm")
    with pytest.raises(ValueError, match="generator must be one or a list of 3, one per sample, got 2"):
        scheduler.step(z, -10.0, z, generator=[torch.Generator(), torch.Generator()])
    with pytest.raises(ValueError, match="only one of generator and variance_noise"):
        scheduler.step(z, -10.0, z, generator=torch.Generator(), variance_noise=z)
    assert scheduler.step_index is None  # a refused step is no step


@pytest.mark.parametrize(("algorithm", "draws"), [("ddim", False), ("dpmsolver++", False), ("ddpm", True)])
def test_only_ddpm_draws_noise_and_it_does_on_the_last_step_too(algorithm: str, draws: bool) -> None:
    scheduler, generator = make(1, algorithm_type=algorithm), torch.Generator().manual_seed(8)
    before, z = generator.get_state(), torch.zeros(1, 4000)
    end = advance(scheduler, z, -10.0, z, generator=generator).prev_sample
    assert torch.equal(before, generator.get_state()) is not draws
    assert end.std().item() == pytest.approx(0.0818 if draws else 0.0, rel=0.05)


@each_algorithm
def test_step_leaves_its_inputs_alone(algorithm: str) -> None:
    scheduler = make(3, algorithm_type=algorithm, prediction_type="sample")
    z, x = torch.randn(2, 3), torch.randn(2, 3)
    copies = z.clone(), x.clone()
    for t in scheduler.timesteps:
        scheduler.step(x, t, z)
    assert torch.equal(z, copies[0])
    assert torch.equal(x, copies[1])


def test_add_noise_and_get_velocity_meet_the_batch_axis_when_all_sizes_are_equal() -> None:
    x, noise, logsnr = torch.randn(3, 3, 3), torch.randn(3, 3, 3), torch.tensor([-4.0, 0.0, 4.0])
    noisy, v = make().add_noise(x, noise, logsnr), make().get_velocity(x, noise, logsnr)
    for i in range(3):
        alpha, sigma = alpha_sigma(logsnr[i])
        torch.testing.assert_close(noisy[i], alpha * x[i] + sigma * noise[i])
        torch.testing.assert_close(v[i], alpha * noise[i] - sigma * x[i])


@pytest.mark.parametrize("shape", [(2,), (2, 5), (2, 3, 4), (2, 3, 4, 4), (2, 3, 2, 4, 4)])
def test_add_noise_takes_any_rank_and_one_level_for_all(shape: tuple[int, ...]) -> None:
    x, noise = torch.randn(shape), torch.randn(shape)
    each = make().add_noise(x, noise, torch.tensor([1.0, 1.0]))
    assert each.shape == shape
    assert torch.equal(each, make().add_noise(x, noise, torch.tensor([1.0])))
    assert torch.equal(each, make().add_noise(x, noise, torch.tensor(1.0)))


def test_levels_that_do_not_fit_the_batch_are_refused() -> None:
    for logsnr in (torch.zeros(3), torch.zeros(2, 1)):
        with pytest.raises(ValueError, match="logsnr must hold one value or one per sample"):
            make().add_noise(torch.zeros(2, 3), torch.zeros(2, 3), logsnr)


# ---------------------------------------------------------------- dtypes and files


@each_algorithm
@each_prediction
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_kept_and_nothing_is_nan_from_minus_20_to_20(
    algorithm: str, prediction: str, dtype: torch.dtype
) -> None:
    scheduler = make(8, algorithm_type=algorithm, prediction_type=prediction, logsnr_min=-20.0, logsnr_max=20.0)
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(9)).to(dtype)
    for t in scheduler.timesteps:
        output = optimal_prediction(z.double(), t, prediction).to(dtype)
        out = advance(scheduler, output, t, z)
        z = out.prev_sample
        assert (z.dtype, out.pred_original_sample.dtype) == (dtype, dtype)
        assert z.isfinite().all()
        assert out.pred_original_sample.isfinite().all()
    noisy = scheduler.add_noise(z, z, torch.tensor([-20.0, 20.0]))
    v = scheduler.get_velocity(z, z, torch.tensor([-20.0, 20.0]))
    assert (noisy.dtype, v.dtype) == (dtype, dtype)
    assert noisy.isfinite().all()
    assert v.isfinite().all()


@each_algorithm
def test_half_precision_is_solved_in_fp32_and_rounded_once(algorithm: str) -> None:
    z, v, noise = (torch.randn(2, 3, 4, 4).bfloat16() for _ in range(3))
    half, single = make(4, algorithm_type=algorithm), make(4, algorithm_type=algorithm)
    for t in half.timesteps[:2]:
        ours = advance(half, v, t, z, variance_noise=noise)
        exact = advance(single, v.float(), t, z.float(), variance_noise=noise.float())
        assert torch.equal(ours.prev_sample, exact.prev_sample.bfloat16())
        assert torch.equal(ours.pred_original_sample, exact.pred_original_sample.bfloat16())


def test_a_tuple_comes_back_on_request() -> None:
    z, v = torch.randn(2, 3), torch.randn(2, 3)
    out = advance(make(2), v, -10.0, z)
    prev_sample, x = make(2).step(v, -10.0, z, return_dict=False)
    assert torch.equal(prev_sample, out.prev_sample)
    assert torch.equal(x, out.pred_original_sample)


def test_the_model_input_and_the_initial_noise_keep_their_scale() -> None:
    z = torch.randn(2, 3)
    assert make(2).scale_model_input(z, -10.0) is z
    assert make().init_noise_sigma == 1.0


def test_saving_and_loading_keeps_the_config(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "logsnr_max": 7.5,
        "logsnr_min": -12.0,
        "schedule": "linear",
        "shift_clean": -1.0,
        "shift_noisy": 0.5,
        "algorithm_type": "dpmsolver++",
        "timestep_spacing": "t",
        "prediction_type": "epsilon",
    }
    make(**config).save_pretrained(tmp_path)
    loaded = LogSNRScheduler.from_pretrained(tmp_path)
    assert {key: loaded.config[key] for key in config} == config
    loaded.set_timesteps(7)
    assert torch.equal(loaded.timesteps, make(7, **config).timesteps)
    assert LogSNRScheduler.from_pretrained(tmp_path, algorithm_type="ddpm").config["algorithm_type"] == "ddpm"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"algorithm_type": "euler"}, "algorithm_type must be one of .*'ddim'.*, got 'euler'"),
        ({"timestep_spacing": "leading"}, "timestep_spacing must be one of .*'logsnr'.*, got 'leading'"),
        ({"prediction_type": "flow"}, "prediction_type must be one of .*'v_prediction'.*, got 'flow'"),
        ({"schedule": "sigmoid"}, "schedule .*'cosine', got 'sigmoid'"),
        ({"logsnr_max": -10.0, "logsnr_min": 5.0}, "logsnr_min must be below logsnr_max"),
    ],
)
def test_an_unknown_word_is_refused_in_one_sentence(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make(**config)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
