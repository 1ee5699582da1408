"""Optimisers by name."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from ul_tokenizer.models.presets import build_prior
from ul_tokenizer.training.engine.optimization import hidden_matrices, make_optimizer
from ul_tokenizer.training.stage1_arguments import Stage1Arguments

Train = Callable[..., int]
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


def arguments(**changes: Any) -> Stage1Arguments:
    return Stage1Arguments(train_data_dir="x", learning_rate=0.01, **changes)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator)
    optimizer.step()


@needs_muon
def test_muon_takes_the_matrices_of_blocks_and_adamw_all_other_weights() -> None:
    model = build_prior("ul-tiny-f8")
    optimizer = make_optimizer(arguments(optimizer="muon", muon_momentum=0.5, adam_beta1=0.7), model)
    matrices, others = (group["params"] for group in optimizer.param_groups)
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert len(matrices) + len(others) == len(names) == len({id(weight) for weight in [*matrices, *others]})
    assert matrices and all(weight.ndim == 2 and "blocks" in names[id(weight)] for weight in matrices)
    assert any(weight.ndim == 2 for weight in others)  # such as first and last layers
    assert optimizer.param_groups[0]["momentum"] == 0.5 and optimizer.param_groups[1]["betas"] == (0.7, 0.99)


@needs_muon
def test_muon_and_adamw_step_as_each_does_alone() -> None:
    model = build_prior("ul-tiny-f8")
    other = copy.deepcopy(model)
    mine = make_optimizer(arguments(optimizer="muon"), model)
    matrices = hidden_matrices(other)
    rest = [weight for weight in other.parameters() if id(weight) not in {id(matrix) for matrix in matrices}]
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=1e-4, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    for seed in range(3):
        step(model, mine, seed)
        step(other, muon, seed)
        adamw.step()
    assert all(map(torch.equal, model.parameters(), other.parameters()))


@needs_muon
def test_a_chain_of_optimisers_goes_on_from_its_saved_state() -> None:
    model = build_prior("ul-tiny-f8")
    optimizer = make_optimizer(arguments(optimizer="muon"), model)
    step(model, optimizer, 0)
    other = copy.deepcopy(model)
    resumed = make_optimizer(arguments(optimizer="muon"), other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer, 1)
    step(other, resumed, 1)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    fresh = copy.deepcopy(other)
    step(fresh, make_optimizer(arguments(optimizer="muon"), fresh), 2)
    step(model, optimizer, 2)
    assert not all(map(torch.equal, model.parameters(), fresh.parameters()))  # or the state would not matter


@needs_muon
def test_a_run_with_muon_resumes_with_changed_arguments(train: Train, tmp_path: Path) -> None:
    changes = {"optimizer": "muon", "checkpointing_steps": 1, "resume_from_checkpoint": "latest"}
    assert train(tmp_path, **changes) == 0
    assert train(tmp_path, **changes, max_train_steps=4, muon_momentum=0.5, learning_rate=0.5) == 0
    groups = torch.load(tmp_path / "checkpoint-4" / "optimizer.bin", weights_only=True)["param_groups"]
    assert [group["lr"] for group in groups] == [0.5, 0.5]
    assert groups[0]["momentum"] == 0.5 and "betas" not in groups[0] and groups[1]["betas"] == (0.9, 0.99)


@needs_muon
def test_a_checkpoint_of_another_optimiser_is_refused(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path) == 0
    assert train(tmp_path, optimizer="muon", max_train_steps=4, resume_from_checkpoint="latest") == 1
    assert "checkpoint-2 doesn't fit this run" in capfd.readouterr().err.strip().splitlines()[-1]


def test_8_bits_without_their_package_are_refused_in_a_sentence(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert train(tmp_path, optimizer="adamw8bit") == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error == "error: --optimizer adamw8bit needs the package bitsandbytes, which is not installed."


def test_8_bits_with_their_package_get_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    module.AdamW8bit = torch.optim.AdamW  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    model = build_prior("ul-tiny-f8")
    optimizer = make_optimizer(arguments(optimizer="adamw8bit", adam_weight_decay=0.5), model)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.01, 0.5, (0.9, 0.99))
    assert len(group["params"]) == len(list(model.parameters()))
