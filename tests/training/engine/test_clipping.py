"""Gradients are clipped by part or together, and their norms are computed once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ul_tokenizer.training.engine.clipping import clip_gradients

Parts = dict[str, nn.Module]
SIZES = {"encoder": 1.0, "decoder": 100.0, "prior": 0.1}  # of the gradients, as in the bundled curves


@pytest.fixture
def parts() -> Parts:
    generator = torch.Generator().manual_seed(0)
    parts: Parts = {name: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for name in SIZES}
    for name, part in parts.items():
        for weight in part.parameters():
            weight.grad = SIZES[name] * torch.randn(weight.shape, generator=generator)
    return parts


def gradients(parts: Parts) -> dict[str, Tensor]:
    flat = {name: [w.grad.flatten() for w in part.parameters() if w.grad is not None] for name, part in parts.items()}
    return {name: torch.cat(those).clone() for name, those in flat.items()}


def test_a_heavy_decoder_does_not_scale_the_steps_of_the_others(parts: Parts) -> None:
    before = gradients(parts)
    norms = clip_gradients(parts, 1.0, "parts")
    after = gradients(parts)
    assert torch.equal(after["prior"], before["prior"])  # its norm is below 1
    for name in ("encoder", "decoder"):
        assert before[name].norm() > 1 and after[name].norm() == pytest.approx(1.0, rel=1e-5)
    for name in SIZES:
        assert norms[f"grad_norm/{name}"] == pytest.approx(float(before[name].norm()), rel=1e-6)
    assert norms["grad_norm"] == pytest.approx(float(torch.cat([*before.values()]).norm()), rel=1e-6)


def test_clipping_by_the_common_norm_has_the_bits_of_torchs(parts: Parts) -> None:
    everything = nn.ModuleList(parts.values())
    before = [None if weight.grad is None else weight.grad.clone() for weight in everything.parameters()]
    norms = clip_gradients(parts, 1.0, "global")
    mine = gradients(parts)
    for weight, gradient in zip(everything.parameters(), before, strict=True):
        weight.grad = gradient
    assert torch.equal(nn.utils.clip_grad_norm_(everything.parameters(), 1.0), norms["grad_norm"])
    assert all(torch.equal(mine[name], gradient) for name, gradient in gradients(parts).items())
    assert mine["prior"].norm() < 0.1  # scaled by the decoder's norm


def test_one_part_is_clipped_the_same_either_way(parts: Parts) -> None:
    part = {"transformer": parts["decoder"]}
    kept = [None if weight.grad is None else weight.grad.clone() for weight in parts["decoder"].parameters()]
    clip_gradients(part, 1.0, "parts")
    one = gradients(part)["transformer"]
    for weight, gradient in zip(parts["decoder"].parameters(), kept, strict=True):
        weight.grad = gradient
    clip_gradients(part, 1.0, "global")
    assert torch.equal(one, gradients(part)["transformer"])


def test_weights_without_a_gradient_and_parts_without_any_are_left_out(parts: Parts) -> None:
    for weight in parts["prior"].parameters():
        weight.grad = None
    next(parts["encoder"].parameters()).grad = None
    norms = clip_gradients(parts, 1.0, "parts")
    assert set(norms) == {"grad_norm", "grad_norm/encoder", "grad_norm/decoder"}


class Counted(TorchDispatchMode):
    """Counts calls of operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def test_the_norms_are_computed_once(parts: Parts) -> None:
    with Counted() as counted:
        clip_gradients(parts, 1.0, "parts")
    assert counted.calls["aten._foreach_norm"] == 1
    assert "aten._local_scalar_dense" not in counted.calls
