"""Configs that are refused, before they cost memory."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from ul_tokenizer.models.presets import build_autoencoder


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"latent_channels": 10**12}, "latent_channels must be an integer from 1 to 65536"),
        ({"in_channels": 10**12}, "in_channels"),
        ({"decoder_hidden_size": 10**12}, "decoder_hidden_size"),
        ({"encoder_block_out_channels": [10**12] * 3}, "encoder_block_out_channels"),
        (
            {"encoder_layers_per_block": [1, 1, 10**9]},
            "encoder_layers_per_block must be a list of integers from 0 to 512",
        ),
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
        ({"temporal_downsample": "pixels"}, "temporal_downsample must be one of .*, got 'pixels'"),
        (
            {"temporal_compression_ratio": 4, "temporal_downsample": "latents", "latent_channels": 6},
            "latent_channels must be a multiple of temporal_compression_ratio, 4, .* got 6",
        ),
        ({"temporal_compression_ratio": 3}, "temporal_compression_ratio must be a power of two of at most 4, got 3"),
        ({"latents_mean": [0.0]}, "latents_mean must hold 4 values, one per latent channel, got 1"),
        ({"latent_logsnr": float("nan")}, "latent_logsnr must be a finite number, got nan"),
        ({"decoder_logsnr_min": 9.5}, "logsnr_min must be below logsnr_max"),
        ({"decoder_schedule": "sigmoid"}, "schedule kind must be .* got 'sigmoid'"),
        ({"decoder_algorithm": "euler"}, "decoder_algorithm must be one of .* got 'euler'"),
        ({"decoder_algorithm": "ddpm"}, "decoder_algorithm must be one of .* got 'ddpm'"),
        ({"dropout": 2.0}, r"dropout must be a number of at least 0 and below 1, got 2\.0"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": True}, "dropout"),
        ({"dropout": None}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"latent_logsnr": "5"}, "latent_logsnr must be a finite number, got '5'"),
        ({"latent_logsnr": True}, "latent_logsnr must be a finite number, got True"),
        ({"latent_logsnr": 10**400}, "latent_logsnr must be a finite number"),
        ({"decoder_logsnr_max": None}, "decoder_logsnr_max must be a finite number, got None"),
        ({"decoder_logsnr_min": "-5"}, "decoder_logsnr_min must be a finite number"),
        ({"decoder_shift_clean": [0.0]}, "decoder_shift_clean must be a finite number"),
        ({"decoder_shift_noisy": float("inf")}, "decoder_shift_noisy must be a finite number, got inf"),
        ({"scaling_factor": "1"}, "scaling_factor must be a finite number"),
        ({"scaling_factor": 0.0}, r"scaling_factor must be positive, got 0\.0"),
        ({"shift_factor": None}, "shift_factor must be a finite number"),
        ({"encoder_layers_per_block": 2}, "encoder_layers_per_block must be a list of integers .* got 2"),
        ({"decoder_block_out_channels": None}, "decoder_block_out_channels must be a list of integers .* got None"),
        ({"encoder_block_out_channels": {"0": 16}}, "encoder_block_out_channels must be a list of integers"),
        ({"patch_size": [2]}, r"patch_size must be an integer .* got \[2\]"),
        ({"temporal_compression_ratio": True}, "temporal_compression_ratio must be a power of two .* got True"),
        ({"latents_mean": 0.0}, r"latents_mean must be None or a list of finite numbers, got 0\.0"),
        ({"latents_mean": [0.0, 0.0, 0.0, None]}, "latents_mean must be None or a list of finite numbers"),
        ({"latents_mean": [0.0, 0.0, 0.0, float("nan")]}, "latents_mean must be None or a list of finite numbers"),
        ({"latents_std": [1.0, 1.0, 1.0, 0.0]}, r"latents_std must hold positive numbers, got 0\.0"),
        ({"latents_std": "1111"}, "latents_std must be None or a list of positive numbers"),
        ({"spatial_compression_ratio": 16}, "spatial_compression_ratio contradicts .* must be 8, got 16"),
        ({"scale_factor_spatial": 4}, "scale_factor_spatial contradicts .* must be 8, got 4"),
        ({"scale_factor_temporal": 4}, "scale_factor_temporal contradicts .* must be 1, got 4"),
        ({"z_dim": 16}, "z_dim contradicts .* must be 4, got 16"),
        ({"block_out_channels": [16, 32]}, "block_out_channels contradicts .* must be .* got"),
        ({"timestep_conditioning": True}, "timestep_conditioning contradicts .* must be False, got True"),
    ],
)
def test_hostile_or_contradictory_configs_are_refused_before_memory_is_taken(
    config: dict[str, Any], words: str
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=words) as caught:
        build_autoencoder("ul-tiny-f8", config)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_derived_keys_may_be_given_where_they_agree() -> None:
    derived = {"z_dim": 4, "spatial_compression_ratio": 8, "block_out_channels": [16, 16, 16, 32]}
    config = build_autoencoder("ul-tiny-f8", derived).config
    assert (config.z_dim, config.spatial_compression_ratio, config.scale_factor_temporal) == (4, 8, 1)


def test_an_unknown_config_key_or_preset_is_named() -> None:
    with pytest.raises(ValueError, match="UnifiedLatentsAutoencoder has no config key 'latent_chanels'"):
        build_autoencoder("ul-tiny-f8", {"latent_chanels": 4})
    with pytest.raises(ValueError, match=r"preset must be one of ul-imagenet512, .* got 'ul-huge'"):
        build_autoencoder("ul-huge")
