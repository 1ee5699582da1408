"""Compiling and exporting whole networks: no graph breaks, the same outputs, and few graphs for many sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code

from tests.models.conftest import move_weights
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.layers import DecoderResidualBlock
from ul_tokenizer.models.presets import build_autoencoder
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

CONFIGS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "image": ({}, (2, 3, 16, 16)),
    "clip": ({"temporal_compression_ratio": 4}, (1, 3, 5, 16, 16)),
    "image with a log-length temperature": ({"attention_train_tokens": 4}, (2, 3, 24, 24)),
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


SIZES = ((16, 24), (32, 40), (48, 16))


def graphs_at_three_sizes(kind: str, job: str, dynamic: bool | None) -> list[int]:
    """Numbers of graphs after each of three sizes; asserts that the outputs are right."""
    network, _ = network_and_inputs(kind)
    counter = CompileCounterWithBackend("eager")
    function: Any = network if job == "forward" else lambda x, noise: network.encode(x)
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=counter)
    graphs = []
    for size in SIZES:
        shape = (2, *CONFIGS[kind][1][1:-2], *size)
        x, noise = torch.rand(shape) * 2 - 1, torch.randn(shape)
        output = "sample" if job == "forward" else "latent"
        assert_same(compiled(x, noise=noise)[output], function(x, noise=noise)[output])
        graphs.append(counter.frame_count)
    return graphs


@kinds
@pytest.mark.parametrize("job", ["forward", "encode"])
def test_one_dynamic_graph_serves_all_sizes(kind: str, job: str) -> None:
    assert graphs_at_three_sizes(kind, job, dynamic=True) == [1, 1, 1]


@kinds
@pytest.mark.parametrize("job", ["forward", "encode"])
def test_the_second_size_makes_a_graph_for_all_others(kind: str, job: str) -> None:
    assert graphs_at_three_sizes(kind, job, dynamic=None) == [1, 2, 2]


@pytest.mark.parametrize("kind", ["clip", "clip with folded latents"])
def test_clips_of_other_lengths_share_the_graph_of_the_second(kind: str) -> None:
    """Two things make a further graph: a padding of a single frame, and on CPUs convolutions of 16 pictures or more."""
    network, _ = network_and_inputs(kind)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(network, fullgraph=True, backend=counter)
    graphs = []
    for frames in (5, 9, 10):
        x, noise = torch.rand(1, 3, frames, 16, 24) * 2 - 1, torch.randn(1, 3, frames, 16, 24)
        assert_same(compiled(x, noise=noise).sample, network(x, noise=noise).sample)
        graphs.append(counter.frame_count)
    assert graphs == [1, 2, 2]


def test_a_base_model_with_all_conditions_compiles_and_serves_all_sizes() -> None:
    model = UnifiedLatentsTransformer(
        4, (32, 48), (2, 2), 16, 16, num_class_embeds=3, cross_attention_dim=12, context_conditioning=True
    ).eval()
    move_weights(model)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    graphs = []
    for tokens, (height, width) in zip((5, 7, 9), ((8, 12), (16, 10), (20, 14)), strict=True):
        inputs = {
            "sample": torch.randn(2, 4, 3, height, width),
            "logsnr": torch.tensor([-1.0, 2.0]),
            "class_labels": torch.tensor([0, 2]),
            "encoder_hidden_states": torch.randn(2, tokens, 12),
            "encoder_attention_mask": torch.ones(2, tokens),
            "context_latents": torch.randn(2, 4, 1, height, width),
        }
        assert_same(compiled(**inputs).sample, model(**inputs).sample)
        graphs.append(counter.frame_count)
    assert graphs == [1, 2, 2]


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


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inductor_fuses_what_lies_between_two_convolutions(dtype: torch.dtype) -> None:
    """Norm in fp32, modulation, activation and casts are one kernel."""
    torch.manual_seed(0)
    block = DecoderResidualBlock(32, 16).eval()
    block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, embedding = torch.randn(2, 32, 16, 16).to(dtype, memory_format=torch.channels_last), torch.randn(2, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        result, (code,) = run_and_get_code(torch.compile(block, fullgraph=True), x, embedding)
        assert_same(result.float(), block(x, embedding).float())
    calls = re.findall(r"^ +(cpp_fused\w+|.*extern_kernels\.convolution)\(", code, re.MULTILINE)
    kinds = ["conv" if "convolution" in call else "norm" if "layer_norm" in call else "other" for call in calls]
    assert kinds[-5:] == ["norm", "conv", "norm", "conv", "other"]
    assert len(kinds) <= 6  # the other one casts the input of the modulation
