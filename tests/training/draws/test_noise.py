"""Noise of a draw: a function of its number and the seed alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ul_tokenizer import _compat
from ul_tokenizer.randomness import Stream, derived_seed
from ul_tokenizer.training.draws.noise import sample_noise

SHAPES = ((4, 2, 2), (3, 16, 16))
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_depends_on_its_draw_and_the_seed_alone(device: str) -> None:
    noise = sample_noise(SHAPES, [7, 3, 100], 5, torch.device(device))
    for row, draw in enumerate([7, 3, 100]):
        alone = sample_noise(SHAPES, [draw], 5, torch.device(device))
        assert all(torch.equal(many[row], one[0]) for many, one in zip(noise, alone, strict=True))
    other = sample_noise(SHAPES, [7, 3, 100], 6, torch.device(device))
    assert not any(torch.equal(a, b) for a, b in zip(noise, other, strict=True))
    assert not torch.equal(noise[1][0], noise[1][1])


@pytest.mark.parametrize("device", DEVICES)
def test_noise_is_standard_normal_and_its_tensors_are_independent(device: str) -> None:
    shapes = ((4, 64, 64), (4, 64, 64))
    a, b = (tensor.flatten().cpu() for tensor in sample_noise(shapes, range(16), 0, torch.device(device)))
    for x in (a, b):
        assert x.mean().abs() < 0.01 and (x.std() - 1).abs() < 0.01 and ((x**4).mean() - 3).abs() < 0.1
    assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 0.01


def test_noise_on_a_cpu_is_that_of_its_generators() -> None:
    noise = sample_noise(SHAPES, [7, 3], 5, torch.device("cpu"))
    for row, draw in enumerate([7, 3]):
        generator = torch.Generator().manual_seed(derived_seed(5, Stream.NOISE, draw))
        for tensor, shape in zip(noise, SHAPES, strict=True):
            assert torch.equal(tensor[row], torch.empty(shape).normal_(generator=generator))


class Operators(TorchDispatchMode):
    """Records the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func.overloadpacket))
        return func(*args, **(kwargs or {}))


META = torch.device("meta")


@pytest.mark.skipif(not _compat.draws_normal_by_rows(META), reason="torch before 2.13")
def test_elsewhere_than_on_a_cpu_each_tensor_is_drawn_in_one_launch() -> None:
    with Operators() as operators:
        noise = sample_noise(SHAPES, range(50), 5, META)
    assert [tuple(tensor.shape) for tensor in noise] == [(50, *shape) for shape in SHAPES]
    assert operators.names.count("aten._philox_normal_") == 2
    assert len(operators.names) < 20
