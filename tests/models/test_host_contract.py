"""What diffusers' own tests ask of any model: training, attention processors, precision, sharded files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, attention_backend
from diffusers.training_utils import EMAModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn

from ul_tokenizer.models.attention import RotaryAttnProcessor
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.layers import FP32_MODULES
from ul_tokenizer.models.presets import build_autoencoder

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
NOISE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
Z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
LOGSNR = torch.tensor([-2.0, 3.0])


@pytest.fixture(params=["model", "prior"])
def network(request: pytest.FixtureRequest) -> Any:
    """The autoencoder, and a transformer of two stages."""
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def _restore_the_attention_backend() -> Iterator[None]:
    backend, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    _AttentionBackendRegistry.set_active_backend(backend)


def call(network: nn.Module, **options: Any) -> Any:
    if isinstance(network, UnifiedLatentsAutoencoder):
        return network(X, noise=NOISE, **options)
    return network(Z, LOGSNR, **options)


@torch.no_grad()
def result(network: nn.Module) -> Tensor:
    sample: Tensor = call(network).sample
    return sample


def attentions(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, AttentionModuleMixin)]


# ---------------------------------------------------------------- calls and attributes


@torch.no_grad()
def test_a_tuple_holds_what_the_output_object_holds(network: Any) -> None:
    assert torch.equal(call(network, return_dict=False)[0], call(network).sample)


def test_attributes_work_without_a_warning_and_config_keys_as_attributes_with_one(network: Any) -> None:
    network.own_attribute = 5
    network.register_to_config(own_key=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert network.own_attribute == 5
        assert network.save_pretrained == network.save_pretrained
    with pytest.warns(FutureWarning):
        assert network.own_key == 6
    with pytest.raises(AttributeError, match="has no attribute 'does_not_exist'"):
        _ = network.does_not_exist


@pytest.mark.parametrize("ratios", [(8, 1), (8, 2), (8, 4), (16, 4)])
def test_pipelines_compute_both_compression_ratios_from_temperal_downsample(ratios: tuple[int, int]) -> None:
    spatial, temporal = ratios
    vae = build_autoencoder("ul-tiny-f8", {"temporal_compression_ratio": temporal, "patch_size": spatial // 4})
    assert 2 ** len(vae.temperal_downsample) == vae.spatial_compression_ratio == spatial
    assert 2 ** sum(vae.temperal_downsample) == vae.temporal_compression_ratio == temporal


# ---------------------------------------------------------------- training


def test_a_whole_forward_pass_trains_every_weight_and_an_average_follows(network: Any) -> None:
    network.train()
    average = EMAModel(network.parameters(), min_decay=0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    weights = []
    for _ in range(2):
        network.zero_grad()
        call(network).sample.square().mean().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        optimizer.step()
        average.step(network.parameters())  # the first of which copies the weights
        weights.append([parameter.detach().clone() for parameter in network.parameters()])
    for shadow, first, second in zip(average.shadow_params, *weights, strict=True):
        torch.testing.assert_close(shadow, (first + second) / 2)


@pytest.mark.parametrize("storage", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_stored_in_few_bits_still_have_gradients(network: Any, storage: torch.dtype) -> None:
    network.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    network.train()
    stored = [parameter for parameter in network.parameters() if parameter.dtype == storage]
    with torch.autocast("cpu"):
        loss = call(network).sample.square().mean()
    loss.backward()
    assert loss.isfinite()
    assert stored and all(parameter.grad is not None for parameter in stored)


# ---------------------------------------------------------------- precision


def test_layerwise_casting_makes_a_model_smaller(network: Any) -> None:
    before, weights = network.get_memory_footprint(), network.num_parameters()
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert before == 4 * weights
    assert network.get_memory_footprint() < 0.7 * before


def test_layerwise_casting_keeps_what_must_stay_fp32(network: Any) -> None:
    network.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    kept = {name for name, p in network.named_parameters() if p.dtype == torch.float32}
    assert {name for name, _ in network.named_parameters() if set(name.split(".")) & set(FP32_MODULES)} <= kept
    assert len(kept) < len(list(network.parameters()))


def test_casting_everything_by_hand_warns(network: Any, caplog: pytest.LogCaptureFixture) -> None:
    verbosity = diffusers_logging.get_verbosity()  # commands of other tests lower it
    diffusers_logging.set_verbosity_warning()
    diffusers_logging.enable_propagation()
    try:
        network.to(torch.float16)
    finally:
        diffusers_logging.disable_propagation()
        diffusers_logging.set_verbosity(verbosity)
    assert "should be kept in float32" in caplog.text


# ---------------------------------------------------------------- attention


def test_every_attention_has_a_processor_that_can_be_exchanged(network: Any) -> None:
    processors = network.attn_processors
    assert len(processors) == len(attentions(network)) > 0
    fresh: dict[str, Any] = {name: RotaryAttnProcessor() for name in processors}
    exact = result(network)
    network.set_attn_processor(fresh.copy())
    assert all(network.attn_processors[name] is processor for name, processor in fresh.items())
    assert torch.equal(result(network), exact)
    with pytest.raises(ValueError, match="number of processors"):
        network.set_attn_processor(dict(list(fresh.items())[:1]))


def test_unfusing_removes_the_fused_layers(network: Any) -> None:
    network.fuse_qkv_projections()
    assert all(attention.fused_projections and hasattr(attention, "to_qkv") for attention in attentions(network))
    network.unfuse_qkv_projections()
    assert not any(attention.fused_projections or hasattr(attention, "to_qkv") for attention in attentions(network))


def test_a_backend_chosen_for_the_model_equals_one_chosen_by_context(network: Any) -> None:
    before, _ = _AttentionBackendRegistry.get_active_backend()
    with attention_backend("_native_math"):
        by_context = result(network)
    assert _AttentionBackendRegistry.get_active_backend()[0] == before
    network.set_attention_backend("_native_math")
    assert torch.equal(result(network), by_context)
    network.reset_attention_backend()


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("parallel", [False, True])
def test_weights_in_several_files_load_as_from_one(
    network: Any, parallel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parallel:
        monkeypatch.setattr("diffusers.models.modeling_utils.HF_ENABLE_PARALLEL_LOADING", True)
    network.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = type(network).from_pretrained(tmp_path).eval()
    assert torch.equal(result(loaded), result(network))
