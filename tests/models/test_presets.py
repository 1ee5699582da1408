"""The paper's sizes (paper.md §5), on the meta device: nothing is allocated, nothing is computed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ul_tokenizer.evaluation.measures.flops import count_flops
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.presets import PRESETS, build_autoencoder, build_base, build_prior
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

META = torch.device("meta")
IMAGE = torch.empty(1, 3, 1, 512, 512, device=META)
LATENT = torch.empty(1, 32, 1, 32, 32, device=META)
LOGSNR = torch.empty(1, device=META)


@pytest.fixture(scope="module")
def model() -> UnifiedLatentsAutoencoder:
    with META:
        return build_autoencoder("ul-imagenet512").eval()


@pytest.fixture(scope="module")
def prior() -> UnifiedLatentsTransformer:
    with META:
        return build_prior("ul-imagenet512").eval()


def millions(network: nn.Module) -> float:
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


@torch.no_grad()
def flops(function: Callable[..., Any], *inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*inputs)
    return int(counter.get_total_flops())


def conv(channels_in: int, channels_out: int, kernel: int, side_out: int) -> int:
    return 2 * channels_in * channels_out * kernel**2 * side_out**2


def transformer(width: int, blocks: int, tokens: int) -> int:
    """12 C² weights a block, and two products of L × L × C."""
    return blocks * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)


def inputs_of(modules: Any, run: Callable[[], Any]) -> list[tuple[int, ...]]:
    """Shape of the first input of each module, as `run` calls them."""
    shapes: list[tuple[int, ...]] = []
    handles = [m.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape))) for m in modules]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return shapes


# ---------------------------------------------------------------- parameters


def test_the_prior_has_101_million_parameters(prior: UnifiedLatentsTransformer) -> None:
    assert millions(prior) == pytest.approx(101, rel=0.03)


def test_the_base_model_of_two_stages_has_220_to_240_million() -> None:
    with META:
        base = build_base("ul-base-imagenet512-medium")
    assert 220 < millions(base) < 240


def test_the_small_base_model_takes_a_third_of_the_mediums_flops() -> None:
    flops = {}
    for size in ("small", "medium"):
        with META:
            base: Any
            base, latent, logsnr = build_base(f"ul-base-imagenet512-{size}"), torch.zeros(1, 32, 32, 32), torch.zeros(1)
        flops[size] = count_flops(functools.partial(base, latent, logsnr))
    assert flops["small"] / flops["medium"] == pytest.approx(1 / 3, abs=0.05)


def test_unknown_base_presets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"preset must be one of ul-base-imagenet512-medium, .*, got 'ul-tiny-f8'"):
        build_base("ul-tiny-f8")


def test_encoder_and_decoder_have_the_parameters_of_their_tables(model: UnifiedLatentsAutoencoder) -> None:
    """9 C² a convolution, two a block; 12 C² a transformer block."""
    encoder = 2 * 9 * (2 * 128**2 + 2 * 256**2 + 5 * 512**2) + 4 * (128 * 256 + 256 * 512 + 512**2)
    decoder = 4 * 2 * 9 * (128**2 + 256**2 + 512**2) + 8 * 12 * 1024**2
    decoder += (4 + 4) * (128 * 256 + 256 * 512 + 512 * 1024)  # down by 2×2 convolutions, up by 1×1 to four channels
    assert millions(model.encoder) == pytest.approx(encoder / 1e6, rel=0.02)
    assert millions(model.decoder) == pytest.approx(decoder / 1e6, rel=0.04)  # and the modulation
    assert model.num_parameters_by_part() == {
        "encoder": round(1e6 * millions(model.encoder)),
        "decoder": round(1e6 * millions(model.decoder)),
    }


# ---------------------------------------------------------------- geometry


def test_512_pixels_become_a_latent_of_32_by_32_by_32(model: UnifiedLatentsAutoencoder) -> None:
    assert model.encoder(IMAGE)[0].shape == LATENT.shape
    assert model.spatial_compression_ratio == 16
    assert model.decoder(IMAGE, LOGSNR, model.decoder.embed_latents(LATENT)).shape == IMAGE.shape


def test_the_encoders_stages_run_at_256_128_64_and_32(model: UnifiedLatentsAutoencoder) -> None:
    shapes = inputs_of(model.encoder.stages, lambda: model.encoder(IMAGE))
    assert shapes == [(1, 128, 256, 256), (1, 256, 128, 128), (1, 512, 64, 64), (1, 512, 32, 32)]


def test_the_decoders_transformer_runs_on_the_grid_of_the_latent(model: UnifiedLatentsAutoencoder) -> None:
    decoder = model.decoder
    features = decoder.embed_latents(LATENT)
    assert features.shape == (1, 1024, 32, 32)
    stages = [*decoder.down_stages, decoder.transformer, *decoder.up_stages]
    assert inputs_of(stages, lambda: decoder(IMAGE, LOGSNR, features)) == [
        (1, 128, 256, 256),
        (1, 256, 128, 128),
        (1, 512, 64, 64),
        (1, 32 * 32, 1024),
        (1, 512, 64, 64),
        (1, 256, 128, 128),
        (1, 128, 256, 256),
    ]


def test_the_second_stage_of_a_base_model_runs_on_a_quarter_of_the_tokens() -> None:
    with META:
        base = UnifiedLatentsTransformer(block_out_channels=(512, 1024), num_layers=(6, 16))
    stages = [*base.down_stages, base.mid_stage, *base.up_stages]
    shapes = inputs_of(stages, lambda: base(LATENT.squeeze(2), LOGSNR))
    assert shapes == [(1, 1024, 512), (1, 256, 1024), (1, 1024, 512)]
    assert [len(stage.blocks) for stage in stages] == [3, 16, 3]


# ---------------------------------------------------------------- arithmetic


def test_the_encoders_flops_are_those_of_its_convolutions(model: UnifiedLatentsAutoencoder) -> None:
    expected = conv(12, 128, 3, 256) + conv(512, 32, 3, 32)
    expected += 4 * (conv(128, 128, 3, 256) + conv(256, 256, 3, 128) + conv(512, 512, 3, 64)) + 6 * conv(
        512, 512, 3, 32
    )
    expected += conv(128, 256, 2, 128) + conv(256, 512, 2, 64) + conv(512, 512, 2, 32)
    assert flops(model.encoder, IMAGE) == pytest.approx(expected, rel=0.02)
    assert expected / 1e9 == pytest.approx(274, abs=1)  # a quarter of AutoencoderKL's 1,082


def test_the_flops_of_a_decoder_step_are_those_of_its_table(model: UnifiedLatentsAutoencoder) -> None:
    expected = conv(12, 128, 3, 256) + conv(128, 12, 3, 256)
    expected += 8 * (conv(128, 128, 3, 256) + conv(256, 256, 3, 128) + conv(512, 512, 3, 64))
    for narrow, wide, side in ((128, 256, 128), (256, 512, 64), (512, 1024, 32)):
        expected += conv(narrow, wide, 2, side) + conv(wide, 4 * narrow, 1, side)
    expected += transformer(1024, blocks=8, tokens=1024)
    features = model.decoder.embed_latents(LATENT)
    assert flops(model.decoder, IMAGE, LOGSNR, features) == pytest.approx(expected, rel=0.02)


def test_embedding_the_latent_costs_less_than_a_thousandth_of_a_step(model: UnifiedLatentsAutoencoder) -> None:
    assert flops(model.decoder.embed_latents, LATENT) == conv(32, 1024, 3, 32)
    assert conv(32, 1024, 3, 32) < 733e9 / 1000


def test_the_priors_flops_are_those_of_eight_blocks_on_1024_tokens(prior: UnifiedLatentsTransformer) -> None:
    expected = transformer(1024, blocks=8, tokens=1024) + 2 * conv(32, 1024, 1, 32)
    assert flops(prior, LATENT.squeeze(2), LOGSNR) == pytest.approx(expected, rel=0.02)


# ---------------------------------------------------------------- all presets


@pytest.mark.parametrize("name", PRESETS)
def test_autoencoder_and_prior_of_a_preset_fit_each_other(name: str) -> None:
    with META:
        model, prior = build_autoencoder(name), build_prior(name)
    assert prior.config.in_channels == model.config.latent_channels
    assert prior.config.latent_logsnr == model.config.latent_logsnr


def test_changes_to_a_preset_are_taken_and_leave_the_preset_alone() -> None:
    with META:
        assert build_prior("ul-tiny-f8", {"num_layers": [1]}).config.num_layers == [1]
        assert build_prior("ul-tiny-f8").config.num_layers == (2,)
