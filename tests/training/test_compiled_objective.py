"""The objective of stage 1 under torch.compile: one graph, the same loss and gradients, few graphs for many sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from ul_tokenizer.diffusion.objective import SigmoidWeighting
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.training.algorithm1 import Stage1Model, Stage1Noise

CONFIGS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "image": ({}, ()),
    "clip": ({"temporal_compression_ratio": 4}, (5,)),
    "clip with folded latents": ({"temporal_compression_ratio": 4, "temporal_downsample": "latents"}, (5,)),
}
kinds = pytest.mark.parametrize("kind", CONFIGS)
SIZES = ((48, 56), (64, 72), (80, 48))  # no dimension equals another one, which would be taken for the same


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make_model(kind: str) -> Stage1Model:
    torch.manual_seed(0)
    autoencoder, prior = build_autoencoder("ul-tiny-f8", CONFIGS[kind][0]), build_prior("ul-tiny-f8")
    for network in (autoencoder, prior):
        for parameter in network.parameters():  # some start at 0 and would hide gradients
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    schedule = LogSNRSchedule(5.0, -10.0, "linear")
    return Stage1Model(autoencoder, prior, schedule, SigmoidWeighting(1.5, 4.5, boost_below=0.0))


def make_inputs(
    kind: str, height: int, width: int, batch: int = 2, length: int | None = None
) -> tuple[Tensor, Stage1Noise]:
    generator = torch.Generator().manual_seed(height)
    frames = CONFIGS[kind][1] if length is None else (length,)
    pixels, noise = torch.rand(2, batch, 3, *frames, height, width, generator=generator)
    latent_frames = [-(-count // 4) for count in frames]
    prior, latent = torch.randn(2, batch, 4, *latent_frames, height // 8, width // 8, generator=generator)
    t_prior, t_decoder = torch.tensor([[0.1, 0.6], [0.3, 0.8]])[:, :batch]
    return pixels * 2 - 1, Stage1Noise(t_prior, t_decoder, prior, latent, noise)


def loss_and_gradients(model: Any, parameters: Sequence[Tensor], inputs: tuple[Tensor, Stage1Noise]) -> list[Tensor]:
    loss = model(*inputs).total(1000.0, 0.5)
    return [loss, *torch.autograd.grad(loss, parameters)]


@kinds
@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=pytest.mark.slow)])
def test_the_objective_is_one_graph_and_a_second_one_serves_all_other_sizes(kind: str, dynamic: bool | None) -> None:
    model = make_model(kind)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=counter)
    graphs = []
    for size in SIZES:
        inputs = make_inputs(kind, *size)
        torch.testing.assert_close(compiled(*inputs).total(1.0), model(*inputs).total(1.0))
        graphs.append(counter.frame_count)
    assert graphs == ([1, 1, 1] if dynamic else [1, 2, 2])


@pytest.mark.parametrize("kind", ["clip", "clip with folded latents"])
def test_clips_of_other_lengths_share_the_graph_of_the_second(kind: str) -> None:
    """Two things make a further graph: a padding of a single frame, and on CPUs convolutions of 16 pictures or more."""
    model = make_model(kind)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    graphs = []
    for length in (5, 9, 10):
        inputs = make_inputs(kind, 16, 24, batch=1, length=length)
        torch.testing.assert_close(compiled(*inputs).total(1.0), model(*inputs).total(1.0))
        graphs.append(counter.frame_count)
    assert graphs == [1, 2, 2]


def test_the_progress_of_the_warm_up_makes_one_more_graph_and_not_one_per_step() -> None:
    model, inputs = make_model("image"), make_inputs("image", 16, 24)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    graphs = []
    for progress in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0):
        torch.testing.assert_close(compiled(*inputs, progress).total(1.0), model(*inputs, progress).total(1.0))
        graphs.append(counter.frame_count)
    assert graphs[-1] <= 3


@kinds
def test_a_compiled_step_has_the_same_gradients(kind: str) -> None:
    model, inputs = make_model(kind), make_inputs(kind, 16, 24)
    parameters = list(model.parameters())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    exact = loss_and_gradients(model, parameters, inputs)
    torch.testing.assert_close(loss_and_gradients(compiled, parameters, inputs), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@kinds
def test_a_step_compiled_by_inductor_has_the_same_gradients(kind: str) -> None:
    model, inputs = make_model(kind), make_inputs(kind, 16, 24)
    parameters = list(model.parameters())
    compiled = torch.compile(model, fullgraph=True)
    exact = loss_and_gradients(model, parameters, inputs)
    torch.testing.assert_close(loss_and_gradients(compiled, parameters, inputs), exact, rtol=1e-3, atol=1e-4)
