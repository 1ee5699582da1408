"""What diffusers offers for any model, used on ours: every class attribute has a test that needs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import Tensor, nn

from ul_tokenizer.models.attention import Rotary, RotaryAttention
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.decoding import DecodingSteps
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
NOISE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
Z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
LOGSNR = torch.tensor([-2.0, 3.0])


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    backend, _ = _AttentionBackendRegistry.get_active_backend()
    yield
    _AttentionBackendRegistry.set_active_backend(backend)  # set_attention_backend sets it for all models
    torch._dynamo.reset()


@torch.no_grad()
def run(model: UnifiedLatentsAutoencoder, **options: Any) -> Tensor:
    sample: Tensor = model(X, noise=NOISE, num_inference_steps=2, **options).sample
    return sample


# ---------------------------------------------------------------- memory


def gradients(network: Any, *inputs: Tensor) -> list[Tensor]:
    network.zero_grad()
    network(*inputs).sample.square().sum().backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


def count_calls(network: nn.Module, kind: str) -> list[int]:
    """A list of one number, the calls of modules of that class so far."""
    calls = [0]
    for module in network.modules():
        if type(module).__name__ == kind:
            module.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    return calls


@pytest.mark.parametrize("which", ["model", "prior"])
def test_gradient_checkpointing_computes_twice_and_gives_the_same_gradients(
    which: str, request: pytest.FixtureRequest
) -> None:
    network = request.getfixturevalue(which)
    inputs = (X,) if which == "model" else (Z, LOGSNR)
    if which == "model":
        network.forward = lambda x, forward=network.forward: forward(x, noise=NOISE)
    kinds = network._repeated_blocks
    calls = [count_calls(network, kind) for kind in kinds]
    plain = gradients(network, *inputs)
    once = [call[0] for call in calls]
    network.enable_gradient_checkpointing()
    checkpointed = gradients(network, *inputs)
    assert [call[0] for call in calls] == [
        3 * n for n in once
    ]  # once, then twice: each block again in the backward pass
    for a, b in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))
    network.disable_gradient_checkpointing()
    assert not any(getattr(module, "gradient_checkpointing", False) for module in network.modules())


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_layerwise_casting_to_fp8_runs_and_leaves_what_is_delicate_alone(
    model: UnifiedLatentsAutoencoder, compute_dtype: torch.dtype
) -> None:
    exact = run(model)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute_dtype)
    assert model.encoder.conv_in.weight.dtype == torch.float8_e4m3fn
    for name, parameter in model.named_parameters():
        delicate = any(word in name for word in ("norm", "logsnr_embedding", "conv_out", "modulation"))
        assert (parameter.dtype == torch.float32) == delicate, name
    out = run(model)
    assert out.isfinite().all()
    assert (out - exact).abs().mean() < 0.25 * exact.std()


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading_runs_and_covers_the_latent_embedding(model: UnifiedLatentsAutoencoder, kind: str) -> None:
    """The decoder's latent embedding is called from outside of the decoder's forward and needs its own hook."""
    exact = run(model)
    options = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    model.enable_group_offload(onload_device=torch.device("cpu"), offload_type=kind, **options)
    hooked = [name for name, module in model.named_modules() if hasattr(module, "_diffusers_hook")]
    assert any(name.startswith("decoder.latent_embedding") for name in hooked)
    assert any(name.startswith("decoder.transformer.blocks") for name in hooked)
    assert any(name.startswith("encoder.stages") for name in hooked)
    assert torch.equal(run(model), exact)


def test_group_offloading_names_every_top_level_module_with_weights(model: UnifiedLatentsAutoencoder) -> None:
    with_weights = {name for name, child in model.named_children() if list(child.parameters())}
    assert with_weights <= set(model._group_offload_block_modules)


def test_a_device_map_places_the_model(model: UnifiedLatentsAutoencoder, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = UnifiedLatentsAutoencoder.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert torch.equal(run(loaded), run(model))


def test_unsplittable_and_repeated_blocks_exist(
    model: UnifiedLatentsAutoencoder, prior: UnifiedLatentsTransformer
) -> None:
    for network in (model, prior):
        kinds = {type(module).__name__ for module in network.modules()}
        assert set(network._no_split_modules) <= kinds
        assert set(network._repeated_blocks) <= kinds


# ---------------------------------------------------------------- compilation


def test_repeated_blocks_compile_and_change_nothing(model: UnifiedLatentsAutoencoder) -> None:
    exact = run(model)
    model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(model), exact, rtol=1e-4, atol=1e-5)


def test_the_priors_repeated_blocks_compile(prior: UnifiedLatentsTransformer) -> None:
    with torch.no_grad():
        exact = prior(Z, LOGSNR).sample
        prior.compile_repeated_blocks(fullgraph=True, backend="eager")
        torch.testing.assert_close(prior(Z, LOGSNR).sample, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_encoder_and_decoder_compile_whole_without_a_graph_break(model: UnifiedLatentsAutoencoder) -> None:
    exact = run(model)
    model.encoder.compile(fullgraph=True, backend="eager", dynamic=True)
    model.decoder.compile(fullgraph=True, backend="eager", dynamic=True)
    torch.testing.assert_close(run(model), exact, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert model(torch.cat([X, X], dim=3)).sample.shape == (2, 3, 32, 64)  # another size


# ---------------------------------------------------------------- attention


def test_attention_backends_can_be_chosen(model: UnifiedLatentsAutoencoder) -> None:
    exact = run(model)
    model.set_attention_backend("_native_math")
    backends = [m.processor._attention_backend for m in model.modules() if isinstance(m, RotaryAttention)]
    assert len(backends) >= 2
    assert all(backend is not None for backend in backends)
    torch.testing.assert_close(run(model), exact, rtol=1e-4, atol=1e-5)
    model.reset_attention_backend()
    assert all(m.processor._attention_backend is None for m in model.modules() if isinstance(m, RotaryAttention))


@pytest.mark.parametrize("which", ["model", "prior"])
def test_fused_projections_change_nothing_and_come_apart_again(which: str, request: pytest.FixtureRequest) -> None:
    network = request.getfixturevalue(which)

    @torch.no_grad()
    def result() -> Tensor:
        sample: Tensor = run(network) if which == "model" else network(Z, LOGSNR).sample
        return sample

    exact = result()
    network.fuse_qkv_projections()
    attentions = [module for module in network.modules() if isinstance(module, RotaryAttention)]
    assert len(attentions) >= 2
    assert all(attention.fused_projections for attention in attentions)
    for attention in attentions:
        attention.to_q.weight.data.zero_()  # must no longer be read
    torch.testing.assert_close(result(), exact, rtol=1e-4, atol=1e-5)
    for attention in attentions:
        attention.to_q.weight.data.copy_(attention.to_qkv.weight.data.chunk(3)[0])
    network.unfuse_qkv_projections()
    assert torch.equal(result(), exact)


# ---------------------------------------------------------------- slicing


def test_slicing_equals_one_call_per_sample_to_the_bit_and_the_batch_to_rounding(
    model: UnifiedLatentsAutoencoder,
) -> None:
    batch = run(model)
    model.enable_slicing()
    sliced = run(model)
    with torch.no_grad():
        single = [model(X[i : i + 1], noise=NOISE[i : i + 1], num_inference_steps=2).sample for i in range(2)]
    assert torch.equal(sliced, torch.cat(single))
    torch.testing.assert_close(sliced, batch, rtol=1e-4, atol=1e-5)


def test_slicing_does_not_change_the_noise(model: UnifiedLatentsAutoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    denoise = model._denoise

    def noted(z: Tensor, x_1: Tensor, steps: DecodingSteps, rotary: Rotary) -> Tensor:
        seen.append(x_1)
        return denoise(z, x_1, steps, rotary)

    monkeypatch.setattr(model, "_denoise", noted)
    for slicing in (False, True):
        model.use_slicing = slicing
        with torch.no_grad():
            model.decode(Z, generator=torch.Generator().manual_seed(0))
    whole, *slices = seen
    assert len(slices) == 2
    assert torch.equal(torch.cat(slices), whole)
