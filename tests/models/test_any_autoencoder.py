"""What generators need of diffusers' autoencoders, of pictures and of clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo

from tests.evaluation.autoencoders import CONFIGS
from ul_tokenizer.models.any_autoencoder import (
    decode_any,
    encode_clean,
    frames_of,
    latent_channels,
    latent_frames_of,
    spatial_ratio,
    takes_clips_only,
    temporal_ratio,
)
from ul_tokenizer.models.latent_normalization import denormalize_latents, normalize_latents
from ul_tokenizer.models.presets import build_autoencoder

HUNYUAN: dict[str, Any] = {
    "latent_channels": 4,
    "down_block_types": ("HunyuanVideoDownBlock3D",) * 4,
    "up_block_types": ("HunyuanVideoUpBlock3D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
OF_CLIPS = {
    "wan": (*CONFIGS["AutoencoderKLWan"], 4, 4),
    "ltx": (*CONFIGS["AutoencoderKLLTXVideo"], 8, 8),
    "hunyuan": (AutoencoderKLHunyuanVideo, HUNYUAN, 4, 4),
}


@pytest.fixture(params=OF_CLIPS)
def of_clips(request: pytest.FixtureRequest) -> tuple[Any, int, int]:
    """An autoencoder of clips, its channels and its frames per latent frame."""
    kind, config, channels, ratio = OF_CLIPS[request.param]
    torch.manual_seed(0)
    return kind(**config).eval(), channels, ratio


@torch.no_grad()
def test_an_autoencoder_of_clips_takes_pictures_as_one_frame(of_clips: tuple[Any, int, int]) -> None:
    vae, channels, _ = of_clips
    side = 2 * spatial_ratio(vae)
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = encode_clean(vae, x)
    assert takes_clips_only(vae) and latent_channels(vae) == channels
    assert z.shape == (2, channels, 2, 2)
    torch.testing.assert_close(z, vae.encode(x[:, :, None]).latent_dist.mode()[:, :, 0])
    assert decode_any(vae, z).shape == x.shape


@torch.no_grad()
def test_clips_have_the_numbers_of_frames_that_are_said(of_clips: tuple[Any, int, int]) -> None:
    vae, _, ratio = of_clips
    side, frames = 2 * spatial_ratio(vae), 1 + 2 * ratio
    assert temporal_ratio(vae) == ratio
    z = encode_clean(vae, torch.zeros(1, 3, frames, side, side))
    assert z.shape[2] == latent_frames_of(vae, frames) == 3
    assert decode_any(vae, z).shape[2] == frames_of(vae, 3) == frames
    assert [latent_frames_of(vae, n) for n in (1, 2, ratio + 1, ratio + 2)] == [1, 2, 2, 3]


def test_ours_pads_in_front_and_takes_pictures_as_they_are() -> None:
    vae = build_autoencoder("ul-tiny-f8", {"temporal_compression_ratio": 4})
    assert not takes_clips_only(vae)
    assert (frames_of(vae, 3), latent_frames_of(vae, 9), latent_frames_of(vae, 8)) == (12, 3, 2)
    images = build_autoencoder("ul-tiny-f8")
    assert (frames_of(images, 3), latent_frames_of(images, 3)) == (3, 3)


def test_statistics_in_the_state_of_a_model_normalise_like_those_of_a_config() -> None:
    kind, config, channels, _ = OF_CLIPS["ltx"]
    vae = kind(**config)
    z = torch.randn(1, channels, 2, 2)
    assert torch.equal(normalize_latents(vae, z), z)
    vae.latents_mean.fill_(0.5)
    vae.latents_std.fill_(2.0)
    torch.testing.assert_close(normalize_latents(vae, z), (z - 0.5) / 2)
    torch.testing.assert_close(denormalize_latents(vae, normalize_latents(vae, z)), z)


@torch.no_grad()
def test_a_decoder_that_removes_noise_is_told_that_there_is_none() -> None:
    kind, config, channels, _ = OF_CLIPS["ltx"]
    torch.manual_seed(0)
    vae = kind(**config, timestep_conditioning=True).eval()
    z = torch.randn(2, channels, 1, 1)
    expected = vae.decode(z[:, :, None], temb=torch.zeros(2)).sample[:, :, 0]
    assert torch.equal(decode_any(vae, z), expected)
