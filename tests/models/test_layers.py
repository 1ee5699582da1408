"""The building blocks."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ul_tokenizer.evaluation.measures import flops
from ul_tokenizer.evaluation.measures.flops import count_flops
from ul_tokenizer.models.attention import RotaryAttention, apply_rotary, log_length_temperature, rotary_table
from ul_tokenizer.models.blocks import TransformerStage
from ul_tokenizer.models.layers import (
    ChannelNorm,
    DecoderResidualBlock,
    EncoderResidualBlock,
    Linear,
    LogSNREmbedding,
    OutputConv,
    TokenNorm,
    Upsample,
    enlarge,
    fold_time,
    patchify,
    to_frames,
    to_tokens,
    unfold_time,
    unpatchify,
)
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

CPU = torch.device("cpu")
halves = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def part_of_table(
    grid: tuple[int, int, int], rows: slice, columns: slice, frames: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    tables = (table.reshape(*grid, -1) for table in rotary_table(grid, 16, CPU))
    cos, sin = (table[frames, rows, columns].flatten(0, 2) for table in tables)
    return cos, sin


# ---------------------------------------------------------------- shapes


def test_folding_and_unfolding_time_are_inverse_and_frames_stay_in_order() -> None:
    clip = torch.randn(2, 3, 4, 5, 6)
    frames = fold_time(clip)
    assert torch.equal(frames[5], clip[1, :, 1])
    assert frames.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(unfold_time(frames, 4), clip)
    assert torch.equal(to_frames(to_tokens(frames, 4), (4, 5, 6)), frames)
    assert torch.equal(to_tokens(frames, 4)[1, 1 * 30 + 2 * 6 + 3], clip[1, :, 1, 2, 3])


def test_a_single_frame_has_the_strides_of_channels_last_whatever_its_own() -> None:
    """With a batch of one, PyTorch calls odd strides contiguous, and convolutions then take the slow way."""
    odd = torch.randn(16, 3).as_strided((1, 3, 1, 4, 4), (3, 1, 3, 12, 3))
    assert fold_time(odd).stride() == (48, 1, 12, 3)


def test_patches_are_those_of_pixel_unshuffle_and_undone_exactly() -> None:
    clip = torch.randn(2, 3, 4, 6, 10)
    patches = patchify(clip, 2)
    assert torch.equal(patches, nn.functional.pixel_unshuffle(fold_time(clip), 2))
    assert torch.equal(unpatchify(patches, 2, 4), clip)
    assert torch.equal(unpatchify(patches.contiguous(), 2, 4), clip)  # of any layout


@pytest.mark.parametrize("patch_size", [1, 2])
def test_patches_of_a_single_frame_have_the_strides_of_channels_last(patch_size: int) -> None:
    patches = patchify(torch.randn(1, 3, 1, 4, 4).expand(1, 3, 1, 4, 4), patch_size)
    channels, side = 3 * patch_size**2, 4 // patch_size
    assert patches.stride() == (channels * side * side, 1, channels * side, channels)


def test_enlarging_is_pixel_shuffle_in_channels_last_memory() -> None:
    x = torch.randn(2, 12, 3, 5).contiguous(memory_format=torch.channels_last)
    enlarged = enlarge(x, 2)
    assert torch.equal(enlarged, nn.functional.pixel_shuffle(x, 2))
    assert enlarged.is_contiguous(memory_format=torch.channels_last)


class Elsewhere(Tensor):
    """A tensor that claims to be on a GPU, so that the code for GPUs runs on a CPU."""

    @property
    def device(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(type="cuda")


def test_the_layouts_of_gpus_are_those_of_cpus() -> None:
    clip, features = torch.randn(2, 3, 4, 6, 10), torch.randn(2, 12, 3, 5)
    for on_cpu, on_gpu in (
        (patchify(clip, 2), patchify(clip.as_subclass(Elsewhere), 2)),
        (enlarge(features, 2), enlarge(features.as_subclass(Elsewhere), 2)),
    ):
        assert torch.equal(on_cpu, on_gpu.as_subclass(Tensor))
        assert on_cpu.stride() == on_gpu.stride()


class CountedOperators(TorchDispatchMode):
    """Notes the names of all operators that do not only return a view."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            self.names.append(func.name())
        return result


@pytest.mark.parametrize(
    ("move", "shape"),
    [
        (fold_time, (2, 3, 4, 8, 8)),
        (lambda x: patchify(x, 2), (2, 3, 4, 8, 8)),
        (lambda x: unpatchify(x, 2, 4), (8, 12, 4, 4)),
        (lambda x: enlarge(x, 2), (8, 12, 4, 4)),
    ],
)
def test_changes_of_the_layout_copy_once(move: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    """As on GPUs: like them, the meta device has no `pixel_shuffle` that keeps the layout."""
    x = torch.empty(shape, device="meta")
    with CountedOperators() as counted:
        move(x)
    assert counted.names == ["aten::clone"]


def test_upsampling_doubles_the_grid() -> None:
    assert Upsample(6, 4)(torch.randn(2, 6, 3, 5)).shape == (2, 4, 6, 10)


# ---------------------------------------------------------------- fp32 inside


@halves
@pytest.mark.parametrize("norm", [TokenNorm(32), ChannelNorm(32)])
def test_norms_run_in_fp32_in_half_precision(norm: TokenNorm, dtype: torch.dtype) -> None:
    shape = (2, 32, 4, 4) if isinstance(norm, ChannelNorm) else (2, 7, 32)
    x = (300 * torch.randn(shape) + 1000).to(dtype)  # its squares overflow in fp16
    expected = norm.float()(x.float()).to(dtype)
    assert torch.equal(norm.to(dtype)(x), expected)
    assert expected.isfinite().all()
    norm.float()


@halves
def test_the_last_convolution_runs_in_fp32_whatever_its_weights_were_cast_to(dtype: torch.dtype) -> None:
    layer, x = OutputConv(4, 3, 3, padding=1), torch.randn(2, 4, 8, 8)
    assert layer.bias is not None
    expected = nn.functional.conv2d(x, layer.weight, layer.bias, padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), expected)
    layer.to(dtype)
    assert torch.equal(layer(x), nn.functional.conv2d(x, layer.weight.float(), layer.bias.float(), padding=1))
    assert layer(x.to(dtype)).dtype == torch.float32


@halves
def test_the_log_snr_embedding_runs_in_fp32_and_tells_near_levels_apart(dtype: torch.dtype) -> None:
    embedding = LogSNREmbedding(16)
    logsnr = torch.tensor([-10.0, -9.99, 5.0])
    out = embedding(logsnr)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(embedding(logsnr), out)
    assert (out[0] - out[1]).abs().max() > 1e-4
    assert embedding.to(dtype)(logsnr).dtype == torch.float32


# ---------------------------------------------------------------- no statistics across the picture


def test_channel_norm_sees_one_position_at_a_time() -> None:
    norm, x = ChannelNorm(8), torch.randn(2, 8, 6, 10)
    whole = norm(x)
    torch.testing.assert_close(norm(x[..., 2:5, 3:9]), whole[..., 2:5, 3:9], rtol=1e-6, atol=1e-6)
    x[..., 0, 0] = 1e4
    torch.testing.assert_close(norm(x)[..., 1:, :], whole[..., 1:, :], rtol=0, atol=0)
    assert whole.mean(dim=1).abs().max() < 1e-5


def test_an_encoder_block_reads_two_pixels_around_and_not_more() -> None:
    block = EncoderResidualBlock(8)
    nn.init.normal_(block.conv_2.weight)
    x = torch.randn(1, 8, 11, 11, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x)[0, :, 5, 5].sum(), x)
    reach = gradient.abs().sum(dim=(0, 1))
    assert reach[3:8, 3:8].min() > 0
    reach[3:8, 3:8] = 0
    assert reach.max() == 0


def test_a_decoder_block_is_steered_by_the_embedding_of_its_own_sample() -> None:
    block = DecoderResidualBlock(8, 4)
    nn.init.normal_(block.conv_2.weight)
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 4)
    before, embedding[1] = block(x, embedding), torch.randn(4)
    after = block(x, embedding)
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


# ---------------------------------------------------------------- rotary attention


def test_attention_depends_on_relative_positions_only() -> None:
    attention, x = RotaryAttention(32, 16), torch.randn(2, 12, 32)
    grid = (3, 9, 9)
    corner = attention(x, part_of_table(grid, slice(0, 3), slice(0, 4), slice(0, 1)))
    for rows, columns, frames in (((3, 6), (0, 4), (0, 1)), ((0, 3), (5, 9), (0, 1)), ((6, 9), (4, 8), (2, 3))):
        shifted = attention(x, part_of_table(grid, slice(*rows), slice(*columns), slice(*frames)))
        torch.testing.assert_close(shifted, corner, rtol=1e-4, atol=1e-5)


def test_attention_depends_on_positions_at_all_on_every_axis() -> None:
    attention, x = RotaryAttention(32, 16), torch.randn(1, 4, 32)
    grids = [(4, 1, 1), (1, 4, 1), (1, 1, 4), (1, 2, 2)]
    outputs = [attention(x, rotary_table(grid, 16, CPU)) for grid in grids]
    for i in range(4):
        for j in range(i):
            assert (outputs[i] - outputs[j]).abs().max() > 1e-4


def test_turning_keeps_lengths_and_a_still_position_alone() -> None:
    x = torch.randn(2, 12, 3, 16)
    turned = apply_rotary(x, rotary_table((1, 3, 4), 16, CPU))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, 0], x[:, 0])
    assert not torch.equal(turned[:, 1], x[:, 1])


@pytest.mark.parametrize("head_dim", [2, 4, 6, 16, 64])
def test_any_even_head_dim_has_a_table(head_dim: int) -> None:
    cos, sin = rotary_table((2, 3, 4), head_dim, CPU)
    assert cos.shape == sin.shape == (24, head_dim // 2)


@pytest.mark.parametrize("head_dim", [12, 5, 64])
def test_a_head_dim_that_is_odd_or_does_not_divide_is_refused(head_dim: int) -> None:
    with pytest.raises(ValueError, match=f"head_dim must be even and divide the 40 channels, got {head_dim}"):
        RotaryAttention(40, head_dim)


@pytest.mark.parametrize(("num_tokens", "factor"), [(64, 1.5), (16, 1.0), (8, 1.0)])
def test_the_logits_of_more_tokens_than_in_training_are_scaled(num_tokens: int, factor: float) -> None:
    attention, x = RotaryAttention(32, 16, train_tokens=16), torch.randn(2, num_tokens, 32)
    query, key, value = (
        layer(x).unflatten(-1, (2, 16)).transpose(1, 2) for layer in (attention.to_q, attention.to_k, attention.to_v)
    )
    logits = attention.norm_q(query) @ attention.norm_k(key).transpose(2, 3) / 4
    expected = attention.to_out(((factor * logits).softmax(-1) @ value).transpose(1, 2).flatten(2))
    still = torch.ones(num_tokens, 8), torch.zeros(num_tokens, 8)
    torch.testing.assert_close(attention(x, still), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("num_tokens", "factor"), [(4096, 2.0), (512, 1.5), (64, 1.0), (4, 1.0), (1, 1.0)])
def test_the_log_length_temperature_is_the_ratio_of_logarithms_and_at_least_one(num_tokens: int, factor: float) -> None:
    assert float(log_length_temperature(num_tokens, 64, CPU)) == pytest.approx(factor)


@pytest.mark.parametrize(("side", "is_same"), [(2, True), (4, True), (8, False)])
def test_only_latents_larger_than_in_training_are_attended_to_in_another_way(side: int, is_same: bool) -> None:
    plain, scaled = make_transformer(), make_transformer(attention_train_tokens=16)
    scaled.load_state_dict(plain.state_dict())
    z, logsnr = torch.randn(1, 4, side, side), torch.zeros(1)
    assert torch.equal(scaled(z, logsnr).sample, plain(z, logsnr).sample) == is_same


def test_deeper_stages_were_trained_on_a_quarter_of_the_tokens() -> None:
    model = make_transformer(attention_train_tokens=64)
    tokens = {name: part.train_tokens for name, part in model.named_modules() if isinstance(part, RotaryAttention)}
    assert {name.split(".")[0]: count for name, count in tokens.items()} == {
        "down_stages": 64,
        "mid_stage": 16,
        "up_stages": 64,
    }


def test_a_fresh_stage_of_blocks_passes_its_input_on_with_open_gates() -> None:
    stage = TransformerStage(32, 2, 16, 8, dropout=0.0)
    gates = stage.modulation.bias.unflatten(0, (6, 32))
    assert gates[[2, 5]].eq(1).all()
    assert gates[[0, 1, 3, 4]].eq(0).all()
    out = stage(torch.randn(2, 4, 32), torch.randn(2, 8), (1, 2, 2))
    assert out.isfinite().all()


# ---------------------------------------------------------------- the transformer as a whole


def make_transformer(**config: Any) -> UnifiedLatentsTransformer:
    model = UnifiedLatentsTransformer(4, (16, 32), (2, 1), 16, 8, **config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return model


@torch.no_grad()
def test_a_latent_image_is_a_clip_of_one_frame() -> None:
    model, z, logsnr = make_transformer(), torch.randn(2, 4, 4, 6), torch.tensor([-3.0, 4.0])
    v = model(z, logsnr).sample
    assert v.shape == z.shape
    assert torch.equal(model(z.unsqueeze(2), logsnr, return_dict=False)[0], v.unsqueeze(2))
    assert model(torch.randn(2, 4, 3, 4, 6), logsnr).sample.shape == (2, 4, 3, 4, 6)


@torch.no_grad()
def test_each_latent_is_denoised_at_its_own_level_and_alone() -> None:
    model, z, logsnr = make_transformer(), torch.randn(2, 4, 4, 4), torch.tensor([-3.0, 4.0])
    v = model(z, logsnr).sample
    torch.testing.assert_close(v[1:], model(z[1:], logsnr[1:]).sample, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(v[1:], model(z[1:], logsnr[:1]).sample, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 4, 5, 4), r"sample height and width must be multiples of 2, got \(5, 4\)"),
        ((1, 3, 4, 4), r"sample must be \(B, 4, h, w\) or \(B, 4, t, h, w\), got \(1, 3, 4, 4\)"),
        ((4, 4, 4), r"sample must be .* got \(4, 4, 4\)"),
    ],
)
def test_wrong_latents_are_refused(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_transformer()(torch.zeros(shape), torch.zeros(1))


@pytest.mark.parametrize(
    ("sample", "logsnr", "words"),
    [
        (torch.zeros(1, 4, 4, 4, dtype=torch.int64), torch.zeros(1), "sample must be floating point, got torch.int64"),
        (torch.zeros(0, 4, 4, 4), torch.zeros(0), r"at least one sample, frame and position, got \(0, 4, 4, 4\)"),
        (torch.zeros(1, 4, 0, 4, 4), torch.zeros(1), r"sample must hold at least one .* got \(1, 4, 0, 4, 4\)"),
        (torch.zeros(1, 4, 0, 4), torch.zeros(1), r"sample must hold at least one .* got \(1, 4, 0, 4\)"),
        (torch.zeros(3, 4, 4, 4), torch.zeros(2), r"logsnr must be \(3,\), one per sample, got \(2,\)"),
        (torch.zeros(3, 4, 4, 4), torch.zeros(3, 1), r"logsnr must be \(3,\), one per sample, got \(3, 1\)"),
    ],
)
def test_empty_or_mistyped_latents_and_stray_levels_are_refused(sample: Tensor, logsnr: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_transformer()(sample, logsnr)


@pytest.mark.parametrize("name", ["class_labels", "encoder_hidden_states", "context_latents"])
def test_conditions_have_a_place_and_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be None: this model has no \w+ conditioning, got a Tensor\.$"):
        make_transformer()(torch.zeros(1, 4, 4, 4), torch.zeros(1), **{name: torch.zeros(1, 2)})


def test_the_transformers_signature_is_the_announced_one() -> None:
    sample, logsnr = torch.zeros(1, 4, 4, 4), torch.zeros(1)
    (v,) = make_transformer()(sample, logsnr, None, None, None, None, False)
    assert v.shape == sample.shape
    assert list(inspect.signature(UnifiedLatentsTransformer.forward).parameters)[1:] == [
        "sample",
        "logsnr",
        "class_labels",
        "encoder_hidden_states",
        "context_latents",
        "encoder_attention_mask",
        "return_dict",
    ]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"block_out_channels": (10**12,)}, "block_out_channels must be a list of integers from 1 to 65536"),
        ({"block_out_channels": (1 << 16,), "num_layers": (512,)}, "would make about .* weights"),
        ({"num_layers": (1, 2)}, "num_layers must have one entry per stage"),
        ({"num_layers": 8}, "num_layers must be a list of integers from 0 to 512, at most 16, got 8"),
        ({"in_channels": [4]}, r"in_channels must be an integer from 1 to 65536, got \[4\]"),
        ({"dropout": 1.0}, r"dropout must be a number of at least 0 and below 1, got 1\.0"),
        ({"dropout": "0.1"}, "dropout must be a number of at least 0 and below 1, got '0.1'"),
        ({"attention_train_tokens": 1}, "attention_train_tokens must be None or an integer of at least 2, got 1"),
        (
            {"block_out_channels": (8, 8), "num_layers": (1, 1), "attention_head_dim": 8, "attention_train_tokens": 4},
            "attention_train_tokens must be None or an integer of at least 8, got 4",
        ),
        ({"latent_logsnr": None}, "latent_logsnr must be a finite number, got None"),
        ({"latent_logsnr": True}, "latent_logsnr must be a finite number, got True"),
    ],
)
def test_hostile_or_contradictory_transformers_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        UnifiedLatentsTransformer(**config)
    assert "\n" not in str(caught.value)


def test_linear_layers_of_fp32_inference_are_those_of_torch_and_training_keeps_its_gradient() -> None:
    layer = Linear(24, 40)
    x = torch.randn(2, 5, 24)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x), expected)
    layer(x).sum().backward()
    assert layer.weight.grad is not None


class OwnWeight(Tensor):
    """As quantised weights are: a subclass that does its own matrix products."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear:
            return torch.zeros(*args[0].shape[:-1], args[1].shape[0])
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_weight_of_a_subclass_does_its_own_matrix_product() -> None:
    layer = Linear(24, 40)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(OwnWeight))
    assert isinstance(layer.weight, OwnWeight)
    with torch.inference_mode():
        assert (layer(torch.randn(2, 24)) == 0).all()


def test_a_torch_without_onednns_linear_layer_counts_and_runs_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(24, 40), torch.randn(2, 24)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    importlib.reload(flops)
    with torch.inference_mode():
        assert torch.equal(layer(x), expected)
        assert flops.count_flops(lambda: layer(x)) == 2 * 2 * 24 * 40


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_flops_count_onednns_linear_layers() -> None:
    layer, x = Linear(24, 40, bias=False), torch.randn(2, 5, 24)
    with torch.inference_mode():
        assert count_flops(lambda: layer(x)) == 2 * 10 * 24 * 40
    assert count_flops(lambda: layer(x)) == 2 * 10 * 24 * 40


def test_flops_count_attention_on_cpus_as_on_the_meta_device() -> None:
    q = torch.randn(2, 3, 16, 8)
    expected = 2 * (2 * 2 * 3 * 16 * 16 * 8)
    with torch.inference_mode():
        assert count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)) == expected
