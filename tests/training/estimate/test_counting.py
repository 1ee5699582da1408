"""What a step needs: FLOPs and activations, compared with arithmetic by hand, with tensors of a CPU and with design."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ul_tokenizer.evaluation.measures.flops import count_flops
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.presets import build_autoencoder, build_base, build_prior
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.training.estimate.counting import StepCost, count_inference, count_step, to_meta
from ul_tokenizer.training.estimate.samples import Latents, Pixels, latents_of, stage1_loss, stage2_loss

META = torch.device("meta")
BF16 = torch.bfloat16


def on_meta(build: Callable[..., Any], *args: Any, dtype: torch.dtype = torch.float32) -> Any:
    with META:
        return to_meta(build(*args), dtype)


@functools.cache
def imagenet512() -> StepCost:
    autoencoder = on_meta(build_autoencoder, "ul-imagenet512", dtype=BF16)
    prior = on_meta(build_prior, "ul-imagenet512", dtype=BF16)
    return count_step((autoencoder, prior), stage1_loss(autoencoder, prior, Pixels(512), None))


def base_cost(latents: Latents, **changes: Any) -> StepCost:
    base = on_meta(build_base, "ul-base-tiny", changes)
    return count_step((base,), stage2_loss(base, latents))


# ---------------------------------------------------------------- the design's counts


def test_imagenet512_needs_the_flops_of_the_design() -> None:
    cost = imagenet512()
    assert cost.forward_flops / 1e9 == pytest.approx(1249, rel=0.02)
    assert cost.flops / 1e9 == pytest.approx(3777, rel=0.02)
    assert cost.flops < cost.checkpointed_flops < cost.flops + cost.forward_flops


def test_imagenet512_keeps_the_activations_of_the_design() -> None:
    cost = imagenet512()
    assert cost.activations / 1e9 == pytest.approx(2.84, rel=0.05)
    assert cost.checkpointed_activations / 1e9 == pytest.approx(0.39, rel=0.1)
    assert 0 < cost.recomputed_activations < cost.activations / 4


def test_the_medium_base_model_needs_the_flops_of_the_design() -> None:
    base = on_meta(build_base, "ul-base-imagenet512-medium", dtype=BF16)
    assert count_step((base,), stage2_loss(base, Latents(32, 32))).flops / 1e9 == pytest.approx(492, rel=0.03)


# ---------------------------------------------------------------- against tensors that exist


def test_activations_of_convolutions_are_those_that_a_cpu_keeps() -> None:
    """Only the encoder: attention keeps other things on CPUs."""
    x = (1, 3, 1, 16, 16)
    kept: dict[int, Tensor] = {}
    real = build_autoencoder("ul-tiny-f8").train()
    weights = {p.data_ptr() for p in real.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = real.encoder(torch.zeros(2, *x[1:]))[0].sum()
    of_two = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in weights)
    meta = on_meta(build_autoencoder, "ul-tiny-f8").train()

    def meta_loss(size: int) -> Tensor:
        total: Tensor = meta.encoder(torch.zeros(size, *x[1:], device="meta"))[0].sum()
        return total

    assert count_step((meta,), meta_loss).activations == of_two / 2
    assert loss.requires_grad


def test_flops_of_a_step_are_those_of_the_same_step_on_a_cpu() -> None:
    real, latents = build_base("ul-base-tiny").train(), torch.zeros(1, 4, 4, 4)
    expected = count_flops(lambda: real(latents, torch.zeros(1)).sample)
    assert base_cost(Latents(4, 4)).forward_flops == expected


# ---------------------------------------------------------------- what the counts depend on


def test_half_precision_halves_what_is_not_kept_in_fp32() -> None:
    costs = []
    for dtype in (torch.float32, BF16):
        base = on_meta(build_base, "ul-base-tiny", dtype=dtype)
        costs.append(count_step((base,), stage2_loss(base, Latents(4, 8))))
    full, half = costs
    assert full.flops == half.flops
    assert 0.5 < half.activations / full.activations < 0.75


def test_attention_keeps_no_weights_of_pairs_of_tokens() -> None:
    """Activations grow with the number of tokens, not with its square."""
    small, large = (base_cost(Latents(4, side)).activations for side in (16, 32))
    assert large == pytest.approx(4 * small, rel=0.02)


def test_a_dropout_mask_takes_one_byte_for_each_value() -> None:
    without, with_dropout = (base_cost(Latents(4, 8), dropout=p).activations for p in (0.0, 0.5))
    channels, tokens, blocks = 32, 64, 2
    masks = blocks * tokens * (2 * channels + 4 * channels)  # behind attention and feed-forward, and within the latter
    results = blocks * tokens * 4 * channels * 4  # what the second linear layer reads is no longer silu's result itself
    assert masks <= with_dropout - without <= masks + results


def test_texts_contexts_and_classes_are_counted() -> None:
    plain = base_cost(Latents(4, 8))
    text = base_cost(Latents(4, 8, text_tokens=16), cross_attention_dim=8)
    longer_text = base_cost(Latents(4, 8, text_tokens=32), cross_attention_dim=8)
    assert plain.flops < text.flops < longer_text.flops
    assert base_cost(Latents(4, 8), num_class_embeds=10).flops == plain.flops
    clip = base_cost(Latents(4, 8, frames=3, context_frames=1), context_conditioning=True)
    assert clip.forward_flops > 3 * plain.forward_flops


def test_frozen_parts_need_no_gradients_of_their_weights() -> None:
    autoencoder, prior = on_meta(build_autoencoder, "ul-tiny-f8"), on_meta(build_prior, "ul-tiny-f8")

    def cost(part: str | None) -> StepCost:
        return count_step((autoencoder, prior), stage1_loss(autoencoder, prior, Pixels(16), part))

    everything = cost(None)
    costs = {part: cost(part) for part in ("prior", "encoder")}
    assert costs["prior"].flops < costs["encoder"].flops < everything.flops
    assert costs["prior"].forward_flops == everything.forward_flops


def test_counting_leaves_gradient_checkpointing_off() -> None:
    prior: UnifiedLatentsTransformer = on_meta(build_prior, "ul-tiny-f8")
    count_step((prior,), stage2_loss(prior, Latents(4, 4)))
    assert not prior.is_gradient_checkpointing


def test_inference_costs_a_forward_pass_alone() -> None:
    base = on_meta(build_base, "ul-base-tiny")
    z, logsnr = torch.empty(1, 4, 4, 4, device=META), torch.empty(1, device=META)
    assert count_inference(lambda: base(z, logsnr)) == base_cost(Latents(4, 4)).forward_flops


def test_the_latents_size_follows_from_the_pixels() -> None:
    autoencoder: UnifiedLatentsAutoencoder = on_meta(build_autoencoder, "ul-k600")
    assert latents_of(autoencoder, Pixels(128, 17)).shape == (16, 5, 16, 16)
    assert latents_of(autoencoder, Pixels(128)).shape == (16, 16, 16)


def test_layers_that_always_run_in_fp32_keep_that_dtype() -> None:
    network = on_meta(build_prior, "ul-tiny-f8", dtype=BF16)
    dtypes = {name: parameter.dtype for name, parameter in network.named_parameters()}
    assert dtypes["conv_in.weight"] is BF16 and dtypes["conv_out.weight"] is torch.float32
    assert all(isinstance(p, nn.Parameter) and p.is_meta for p in network.parameters())
