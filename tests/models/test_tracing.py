"""Compiling and exporting whole networks: no graph breaks, the same outputs, and few graphs for many sizes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tests.models.conftest import move_weights
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.presets import build_autoencoder
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

CONFIGS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "image": ({}, (2, 3, 16, 16)),
    "clip": ({"temporal_compression_ratio": 4}, (1, 3, 5, 16, 16)),
    "clip with folded latents": (
        {"temporal_compression_ratio": 4, "temporal_downsample": "latents"},
        (1, 3, 5, 16, 16),
    ),
}
kinds = pytest.mark.parametrize("kind", CONFIGS)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    with torch.no_grad():
        yield
    torch.compiler.reset()


def network_and_inputs(kind: str) -> tuple[UnifiedLatentsAutoencoder, dict[str, Tensor]]:
    changes, shape = CONFIGS[kind]
    torch.manual_seed(0)
    network = build_autoencoder("ul-tiny-f8", changes).eval()
    move_weights(network)
    return network, {"sample": torch.rand(shape) * 2 - 1, "noise": torch.randn(shape)}


def assert_same(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@kinds
def test_a_whole_autoencoder_compiles_without_a_graph_break(kind: str) -> None:
    network, inputs = network_and_inputs(kind)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert_same(compiled(**inputs).sample, network(**inputs).sample)


def test_encoding_compiles_without_a_graph_break() -> None:
    network, inputs = network_and_inputs("image")
    encode = torch.compile(lambda x: network.encode(x).latent, fullgraph=True, backend="eager")
    assert_same(encode(inputs["sample"]), network.encode(inputs["sample"]).latent)


def test_decoding_of_the_second_order_compiles_without_a_graph_break() -> None:
    network, inputs = network_and_inputs("image")
    network.register_to_config(decoder_algorithm="dpmsolver++")
    expected = network(**inputs, num_inference_steps=2).sample
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert_same(compiled(**inputs, num_inference_steps=2).sample, expected)


def test_one_graph_serves_all_sizes() -> None:
    network, _ = network_and_inputs("image")
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=counter)
    for height, width in ((16, 24), (32, 24)):
        x, noise = torch.rand(2, 3, height, width), torch.randn(2, 3, height, width)
        assert_same(compiled(x, noise=noise).sample, network(x, noise=noise).sample)
    assert counter.frame_count == 1


def test_transformer_blocks_compile_once_for_one_size_and_once_more_for_all_others() -> None:
    prior = UnifiedLatentsTransformer(4, (32,), (2,), 16, 16).eval()
    counter = CompileCounterWithBackend("eager")
    prior.compile_repeated_blocks(fullgraph=True, backend=counter)
    graphs = []
    for shape in ((2, 4, 8, 8), (2, 4, 12, 8), (2, 4, 16, 16), (2, 4, 3, 4, 6)):
        prior(torch.randn(shape), torch.zeros(2))
        graphs.append(counter.frame_count)
    assert graphs == [1, 2, 2, 2]


@kinds
def test_an_exported_autoencoder_gives_the_same_pictures(kind: str) -> None:
    network, inputs = network_and_inputs(kind)
    program = torch.export.export(network, (), inputs)
    other = {name: -value for name, value in inputs.items()}
    assert_same(program.module()(**other).sample, network(**other).sample)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "clip"])
def test_an_ahead_of_time_compiled_package_gives_the_same_pictures(kind: str, tmp_path: Path) -> None:
    network, inputs = network_and_inputs(kind)
    program = torch.export.export(network, (), inputs)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "autoencoder.pt2"))
    loaded = torch._inductor.aoti_load_package(package, run_single_threaded=True)
    other = {name: -value for name, value in inputs.items()}
    assert_same(loaded(**other).sample, network(**other).sample)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "clip"])
def test_inductor_gives_the_same_pictures(kind: str) -> None:
    network, inputs = network_and_inputs(kind)
    compiled = torch.compile(network, fullgraph=True)
    assert_same(compiled(**inputs).sample, network(**inputs).sample)
