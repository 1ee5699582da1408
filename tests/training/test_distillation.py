"""The mathematics of the distillation: trajectories, levels, weights and the gradients of both objectives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ul_tokenizer.diffusion.objective import SigmoidWeighting, eps_squared_error
from ul_tokenizer.diffusion.solver import level_at, posterior_mean, posterior_std
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.decoder import Decoder
from ul_tokenizer.models.presets import build_autoencoder
from ul_tokenizer.training.distillation import (
    ErrorWeighting,
    MomentsModel,
    PairsModel,
    Teacher,
    posterior_sample,
    predict_x,
    start_indices,
)


def make_autoencoder(seed: int = 0, **config: object) -> UnifiedLatentsAutoencoder:
    """A tiny autoencoder whose decoder changes with noise and latents."""
    torch.manual_seed(seed)
    network = build_autoencoder("ul-tiny-f8", {"dropout": 0.0, **config})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def copy_of(network: UnifiedLatentsAutoencoder) -> UnifiedLatentsAutoencoder:
    copy = UnifiedLatentsAutoencoder.from_config(network.config)
    copy.load_state_dict(network.state_dict())
    return copy


def bias_of(decoder: Decoder) -> Tensor:
    """The last bias, which decides on brightness."""
    assert decoder.conv_out.bias is not None
    return decoder.conv_out.bias


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the teacher


@pytest.mark.parametrize("algorithm", ["ddim", "dpmsolver++"])
def test_a_trajectory_ends_at_what_decode_gives_for_the_same_noise_and_steps(algorithm: str) -> None:
    autoencoder = make_autoencoder(decoder_algorithm=algorithm)
    z, x_1 = noise(2, 4, 2, 3), noise(2, 3, 16, 24, seed=1)
    trajectory = Teacher(autoencoder, 5).trajectory(z, x_1)
    with torch.no_grad():
        assert torch.equal(trajectory.sample, autoencoder.decode(z, noise=x_1, num_inference_steps=5).sample)
    assert trajectory.states.shape == (5, 2, 3, 16, 24) and torch.equal(trajectory.states[0], x_1)


def test_the_last_state_of_a_trajectory_leads_to_its_end_in_one_step() -> None:
    teacher = Teacher(make_autoencoder(), 4)
    z, x_1 = noise(2, 4, 2, 2), noise(2, 3, 16, 16, seed=1)
    trajectory = teacher.trajectory(z, x_1)
    last = teacher.predict_x(trajectory.states[-1], torch.full((2,), teacher.logsnrs[3]), z)
    torch.testing.assert_close(last, trajectory.sample)
    first = teacher.predict_x(trajectory.states[0], torch.full((2,), teacher.logsnrs[0]), z)
    assert not torch.allclose(first, trajectory.sample, atol=0.05)


def test_a_teacher_encodes_with_the_fixed_noise_of_the_latents() -> None:
    autoencoder, epsilon = make_autoencoder(), noise(2, 4, 2, 2)
    pixels = noise(2, 3, 16, 16, seed=1).clamp(-1, 1)
    with torch.no_grad():
        distribution = autoencoder.encode(pixels).latent_dist
    z = Teacher(autoencoder, 2).encode(pixels, epsilon)
    torch.testing.assert_close(z, distribution.mean + distribution.std * epsilon)


# ---------------------------------------------------------------- levels and weights


@pytest.mark.parametrize(("count", "fraction", "expected"), [(8, 0.5, 4), (7, 0.5, 4), (8, 1.0, 8), (10, 0.7, 7)])
def test_at_least_the_fraction_of_samples_starts_from_noise(count: int, fraction: float, expected: int) -> None:
    for seed in range(20):
        start = start_indices(count, 8, fraction, torch.Generator().manual_seed(seed))
        assert int((start == 0).sum()) == expected
        assert int(start.min()) >= 0 and int(start.max()) <= 7


def test_later_starts_are_spread_over_all_levels_and_a_single_level_is_the_only_start() -> None:
    start = start_indices(28, 8, 0.5, torch.Generator().manual_seed(0))
    assert sorted(start[start > 0].tolist()) == [level for level in range(1, 8) for _ in range(2)]
    assert start_indices(5, 1, 0.5).tolist() == [0] * 5
    places = {tuple(start_indices(4, 2, 0.5, torch.Generator().manual_seed(seed)).tolist()) for seed in range(20)}
    assert len(places) > 3  # not always the same samples


def test_the_sigmoid_weight_is_what_stage_1_gives_to_the_image_and_the_other_one_is_1() -> None:
    logsnr = torch.linspace(-6, 9, 7)
    x, epsilon, error = noise(7, 3, 4, 4), noise(7, 3, 4, 4, seed=1), noise(7, 3, 4, 4, seed=2)
    weighting = SigmoidWeighting(1.0, 4.5, boost_below=0.0)
    in_epsilon = eps_squared_error(x + error, x, epsilon, logsnr, "sample")
    expected = weighting.weight(logsnr) * weighting.boost(logsnr) * in_epsilon
    weight = ErrorWeighting("sigmoid", 4.5)(logsnr)
    torch.testing.assert_close(weight * error.square().flatten(1).sum(1), expected)
    assert ErrorWeighting("x")(logsnr).tolist() == [1.0] * 7


def test_samples_of_the_posterior_are_those_of_the_solver() -> None:
    x_t, x, epsilon = noise(2, 3, 4, 4), noise(2, 3, 4, 4, seed=1), noise(2, 3, 4, 4, seed=2)
    for t, s in ((-5.0, 2.5), (0.5, 0.75)):
        sample = posterior_sample(x_t, x, epsilon, torch.full((2,), t), torch.full((2,), s))
        level_t, level_s = level_at(t), level_at(s)
        expected = posterior_mean(x_t, x, level_t, level_s) + posterior_std(level_t, level_s) * epsilon
        torch.testing.assert_close(sample, expected)
    level = torch.tensor([-5.0, 3.0])
    torch.testing.assert_close(posterior_sample(x_t, x, epsilon, level, level), x_t)


# ---------------------------------------------------------------- objectives


def test_the_loss_of_pairs_vanishes_where_the_student_gives_the_target_and_leaves_the_encoder_alone() -> None:
    student = make_autoencoder()
    model = PairsModel(student, ErrorWeighting())
    x_t, z, logsnr = noise(2, 3, 16, 16), noise(2, 4, 2, 2), torch.tensor([-5.0, 1.0])
    target = predict_x(student.decoder, x_t, logsnr, z).detach()
    assert model(x_t, logsnr, z, target).tolist() == [0.0, 0.0]
    torch.testing.assert_close(model(x_t, logsnr, z, target + 0.5), torch.tensor([0.25, 0.25]))
    model(x_t, logsnr, z, target + 0.5).sum().backward()
    assert all(parameter.grad is None for parameter in student.encoder.parameters())
    assert all(parameter.grad is not None for parameter in student.decoder.parameters())


def moments_model(student_seed: int = 0) -> tuple[MomentsModel, UnifiedLatentsAutoencoder, Teacher]:
    original = make_autoencoder()
    teacher = Teacher(copy_of(original), 4)
    student = original if student_seed == 0 else make_autoencoder(student_seed)
    return MomentsModel(student, copy_of(original), teacher, ErrorWeighting("sigmoid")), student, teacher


def inputs() -> tuple[Tensor, ...]:
    return noise(2, 3, 16, 16), torch.tensor([-5.0, -5.0]), noise(2, 4, 2, 2), noise(2, 3, 16, 16, seed=3)


def test_a_student_does_not_move_while_the_auxiliary_network_is_the_teacher() -> None:
    model, student, _ = moments_model(student_seed=1)
    losses = model(*inputs(), torch.tensor([0.0, 2.0]))
    losses.student.sum().backward()
    assert losses.gap.tolist() == [0.0, 0.0]
    assert all(p.grad is None or not p.grad.any() for p in student.decoder.parameters())
    assert float(losses.auxiliary.detach().min()) > 0  # for it has yet to learn what the student's images are


def test_the_gradient_of_the_student_is_the_weighted_difference_of_auxiliary_and_teacher() -> None:
    model, student, teacher = moments_model(student_seed=1)
    with torch.no_grad():
        for parameter in model.auxiliary.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    x_t, logsnr_t, z, epsilon = inputs()
    logsnr_s = torch.tensor([0.0, 2.0])
    model(x_t, logsnr_t, z, epsilon, logsnr_s).student.sum().backward()
    found = student.decoder.conv_out.weight.grad
    student.decoder.zero_grad()
    x = predict_x(student.decoder, x_t, logsnr_t, z)
    x_s = posterior_sample(x_t, x.detach(), epsilon, logsnr_t, logsnr_s)
    with torch.no_grad():
        difference = predict_x(model.auxiliary, x_s, logsnr_s, z) - teacher.predict_x(x_s, logsnr_s, z)
    weight = ErrorWeighting("sigmoid")(logsnr_s)
    (weight * (x * difference).flatten(1).mean(1)).sum().backward()
    assert found is not None and found.any()
    torch.testing.assert_close(found, student.decoder.conv_out.weight.grad)


def test_the_losses_of_moments_train_each_its_own_network_only() -> None:
    for name in ("student", "auxiliary"):
        model, _, teacher = moments_model(student_seed=1)
        with torch.no_grad():
            bias_of(model.auxiliary).add_(0.1)
        getattr(model(*inputs(), torch.tensor([0.0, 2.0])), name).sum().backward()
        parts = {"student": model.decoder, "auxiliary": model.auxiliary, "teacher": teacher.autoencoder}
        moved = {part for part, network in parts.items() if any(p.grad is not None for p in network.parameters())}
        assert moved == {name}
        assert set(dict(model.named_children())) == {"encoder", "decoder", "auxiliary"}  # no checkpoint of the teacher


def test_matching_moments_brings_the_brightness_of_a_student_to_that_of_its_teacher() -> None:
    original = make_autoencoder()
    teacher, student = Teacher(copy_of(original), 4), copy_of(original)
    with torch.no_grad():  # v = α ε − σ x: the student's images become lighter
        bias_of(student.decoder).sub_(0.5)
    model = MomentsModel(student, copy_of(original), teacher, ErrorWeighting())
    optimizer = torch.optim.Adam(
        [{"params": bias_of(model.decoder), "lr": 0.01}, {"params": bias_of(model.auxiliary), "lr": 0.05}]
    )
    z, level = noise(8, 4, 2, 2, seed=9), torch.full((8,), -5.0)

    def brightness() -> float:
        with torch.no_grad():
            x_1 = noise(8, 3, 16, 16, seed=8)
            light = predict_x(student.decoder, x_1, level, z) - teacher.predict_x(x_1, level, z)
        return float(light.mean())

    before = brightness()
    for step in range(80):
        x_1, epsilon = noise(8, 3, 16, 16, seed=100 + step), noise(8, 3, 16, 16, seed=500 + step)
        share = torch.rand(8, generator=torch.Generator().manual_seed(step))
        loss = model(x_1, level, z, epsilon, torch.lerp(level, torch.full((8,), 5.0), share)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before > 0.4
    assert abs(brightness()) < 0.5 * before
