"""Configs that are refused, before they cost memory."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from ul_tokenizer.models.presets import build_autoencoder


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"latent_channels": 10**12}, "latent_channels must hold integers from 1 to 65536"),
        ({"in_channels": 10**12}, "in_channels"),
        ({"decoder_hidden_size": 10**12}, "decoder_hidden_size"),
        ({"encoder_block_out_channels": [10**12] * 3}, "encoder_block_out_channels"),
        ({"encoder_layers_per_block": [1, 1, 10**9]}, "encoder_layers_per_block must hold integers from 0 to 512"),
        ({"decoder_num_layers": -1}, "decoder_num_layers"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"latent_channels": 4.0}, r"latent_channels .* got 4\.0"),
        ({"latent_channels": True}, "latent_channels"),
        ({"patch_size": 1 << 15}, "would make about .* weights"),
        ({"decoder_hidden_size": 1 << 16, "decoder_num_layers": 512}, "would make about .* weights"),
        ({"patch_size": 3}, "patch_size must be a power of two, got 3"),
        ({"encoder_layers_per_block": [1, 1]}, "encoder_layers_per_block must have one entry per stage .* 2 for 3"),
        ({"decoder_block_out_channels": [16], "decoder_layers_per_block": [1]}, "one entry more than .* got 3 and 1"),
        ({"attention_head_dim": 12}, "head_dim must be even and divide the 32 channels, got 12"),
        ({"temporal_compression_ratio": 4}, "temporal_compression_ratio must be 1 until video is supported, got 4"),
        ({"latents_mean": [0.0]}, "latents_mean must hold 4 values, one per latent channel, got 1"),
        ({"latent_logsnr": float("nan")}, "latent_logsnr must be finite, got nan"),
        ({"decoder_logsnr_min": 9.5}, "logsnr_min must be below logsnr_max"),
        ({"decoder_schedule": "sigmoid"}, "schedule kind must be .* got 'sigmoid'"),
        ({"decoder_algorithm": "euler"}, "decoder_algorithm must be one of .* got 'euler'"),
        ({"decoder_algorithm": "ddpm"}, "decoder_algorithm must be one of .* got 'ddpm'"),
        ({"dropout": 2.0}, "dropout"),
    ],
)
def test_hostile_or_contradictory_configs_are_refused_before_memory_is_taken(
    config: dict[str, Any], words: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=words):
        build_autoencoder("ul-tiny-f8", config)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_an_unknown_config_key_or_preset_is_named() -> None:
    with pytest.raises(ValueError, match="UnifiedLatentsAutoencoder has no config key 'latent_chanels'"):
        build_autoencoder("ul-tiny-f8", {"latent_chanels": 4})
    with pytest.raises(ValueError, match=r"preset must be one of ul-imagenet512, .* got 'ul-huge'"):
        build_autoencoder("ul-huge")
