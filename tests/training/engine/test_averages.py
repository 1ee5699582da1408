"""Averages of the weights: what they are the average of, and where they are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from tests.training.engine.saving import save_averages
from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsTransformer
from ul_tokenizer.models.presets import build_prior
from ul_tokenizer.training.engine.averages import Averages, exponent_of, profiles

Train = Callable[..., int]
Weights = Callable[[Path], dict[str, Tensor]]


class Numbers(nn.Module):
    """A model of two numbers, the second of them frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.full((1,), 7.0), requires_grad=False)


def averages_of(model: nn.Module, decays: tuple[float, ...], stds: tuple[float, ...] = ()) -> Averages:
    models: Any = {"model": model}
    return Averages(models, profiles(decays, stds))


def average(averages: Averages, model: Numbers, number: int = 0) -> float:
    with averages.applied(number):
        return float(model.a.detach())


def set_to(model: Numbers, value: float) -> None:
    with torch.no_grad():
        model.a.fill_(value)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_an_average_is_that_of_diffusers(decay: float) -> None:
    model = build_prior("ul-tiny-f8")
    theirs = EMAModel(model.parameters(), decay=decay, use_ema_warmup=True, power=0.75, foreach=True)
    mine = averages_of(model, (decay,))
    for _ in range(20):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        mine.step()
        theirs.step(model.parameters())
    with mine.applied():
        for weight, shadow in zip(model.parameters(), theirs.shadow_params, strict=True):
            torch.testing.assert_close(weight.detach(), shadow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_a_power_function_average_weighs_step_k_of_n_as_k_to_the_exponent(std: float) -> None:
    model, exponent, n = Numbers(), exponent_of(std), 40
    averages = averages_of(model, (0.9,), (std,))
    expected = 0.0
    for k in range(1, n + 1):
        set_to(model, k**0.5)
        averages.step()
        expected += k**0.5 * (k ** (exponent + 1) - (k - 1) ** (exponent + 1)) / n ** (exponent + 1)
    assert average(averages, model, 1) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("std", "exponent"), [(0.05, 16.97), (0.1, 6.94)])
def test_exponents_are_those_of_edm2(std: float, exponent: float) -> None:
    found = exponent_of(std)
    assert found == pytest.approx(exponent, abs=0.005)
    assert ((found + 1) / (found + 2) ** 2 / (found + 3)) ** 0.5 == pytest.approx(std)


def test_a_skipped_step_changes_no_average_and_is_not_counted() -> None:
    model, other = Numbers(), Numbers()
    mine, theirs = averages_of(model, (0.9,), (0.1,)), averages_of(other, (0.9,), (0.1,))
    for value in (1.0, 2.0, 5.0):
        for numbers in (model, other):
            set_to(numbers, value)
        mine.step(torch.tensor(1.0))
        mine.step(torch.tensor(0.0))
        theirs.step()
    assert [average(mine, model, n) for n in (0, 1)] == [average(theirs, other, n) for n in (0, 1)]


def test_the_average_is_in_place_within_the_block_only_also_after_an_error() -> None:
    model = Numbers()
    averages = averages_of(model, (0.5,))
    for value in (3.0, 4.0):
        set_to(model, value)
        averages.step()
    pointer = model.a.data_ptr()
    with pytest.raises(KeyError), averages.applied():
        assert float(model.a.detach()) not in (0.0, 4.0) and float(model.b) == 7.0
        raise KeyError
    assert float(model.a.detach()) == 4.0 and model.a.data_ptr() == pointer


def test_without_profiles_nothing_is_kept(tmp_path: Path) -> None:
    model = Numbers()
    averages = averages_of(model, ())
    averages.step()
    with averages.applied():
        assert float(model.a.detach()) == 0.0
    assert averages.saved() == {}
    assert float(averages.weights("model")["a"]) == 0.0


def test_saving_builds_no_second_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_prior("ul-tiny-f8")
    averages = averages_of(model, (0.9, 0.5))
    averages.step()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a second model")

    monkeypatch.setattr(UnifiedLatentsTransformer, "__init__", refuse)
    save_averages(averages, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model_ema", "model_ema_0.5"}


def test_diffusers_reads_what_is_saved(tmp_path: Path) -> None:
    model = build_prior("ul-tiny-f8")
    averages = averages_of(model, (0.9,))
    for _ in range(3):
        averages.step()
    save_averages(averages, tmp_path)
    theirs = EMAModel.from_pretrained(tmp_path / "model_ema", UnifiedLatentsTransformer)
    assert (theirs.optimization_step, theirs.decay, theirs.power) == (3, 0.9, 0.75)
    UnifiedLatentsTransformer.from_pretrained(tmp_path / "model_ema")


def moved_and_saved(folder: Path, decays: tuple[float, ...], stds: tuple[float, ...] = ()) -> UnifiedLatentsTransformer:
    model = build_prior("ul-tiny-f8")
    averages = averages_of(model, decays, stds)
    for _ in range(2):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(1.0)
        averages.step()
    save_averages(averages, folder)
    return model


def test_a_decay_that_a_resumed_run_adds_goes_on_from_the_first_average(tmp_path: Path) -> None:
    model = moved_and_saved(tmp_path, (0.5,))
    averages = averages_of(model, (0.5, 0.9))
    averages.load(tmp_path)
    weights = []
    for number in (0, 1):
        with averages.applied(number):
            weights.append(next(model.parameters()).detach().clone())
    assert torch.equal(*weights) and not torch.equal(weights[0], next(model.parameters()))


def test_a_power_function_average_cannot_start_later(tmp_path: Path) -> None:
    model = moved_and_saved(tmp_path, (0.5,))
    with pytest.raises(ValueError, match=r"no averaged weights ema_std0\.1; such averages must start with"):
        averages_of(model, (0.5,), (0.1,)).load(tmp_path)
    with pytest.raises(ValueError, match=r"resume with --no-use_ema"):
        averages_of(model, (0.5,)).load(tmp_path / "nowhere")


def test_a_run_saves_each_average_and_validates_the_first(train: Train, weights: Weights, tmp_path: Path) -> None:
    changes = {"max_train_steps": 4, "learning_rate": 0.01, "ema_decay": "0.9,0.1", "ema_std": "0.1"}
    assert train(tmp_path, **changes) == 0
    checkpoint = weights(tmp_path / "checkpoint-4")
    first = []
    for suffix, folder in (
        ("ema", tmp_path),
        ("ema_0.1", tmp_path / "ema_0.1"),
        ("ema_std0.1", tmp_path / "ema_std0.1"),
    ):
        model = UnifiedLatentsAutoencoder.from_pretrained(folder)
        UnifiedLatentsTransformer.from_pretrained(folder, subfolder="prior")
        state = model.state_dict()
        assert all(torch.equal(weight, checkpoint[f"autoencoder_{suffix}/{name}"]) for name, weight in state.items())
        first.append(state["encoder.conv_in.weight"])
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    config = json.loads((tmp_path / "checkpoint-4" / "prior_ema_0.1" / "config.json").read_text())
    assert (config["decay"], config["optimization_step"]) == (0.1, 4)
