"""Named configurations of the networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

# name → (autoencoder config, prior config)
PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # The paper's ImageNet-512 networks (paper.md §5): 512² → 32×32×32.
    "ul-imagenet512": (
        {
            "latent_channels": 32,
            "encoder_block_out_channels": (128, 256, 512, 512),
            "encoder_layers_per_block": (2, 2, 2, 3),
            "decoder_block_out_channels": (128, 256, 512),
            "decoder_layers_per_block": (2, 2, 2),
            "decoder_hidden_size": 1024,
            "decoder_num_layers": 8,
            "attention_head_dim": 64,
            "embedding_channels": 256,
            "dropout": 0.1,
            "sample_size": 512,
        },
        {
            "in_channels": 32,
            "block_out_channels": (1024,),
            "num_layers": (8,),
            "attention_head_dim": 64,
            "embedding_channels": 256,
            "sample_size": 32,
        },
    ),
    # Trains on two CPU cores: 8× down, 16 channels, 4.9 M weights in all.
    "ul-small-f8": (
        {
            "latent_channels": 16,
            "encoder_block_out_channels": (48, 96, 128),
            "encoder_layers_per_block": (1, 2, 2),
            "decoder_block_out_channels": (64, 128),
            "decoder_layers_per_block": (2, 2),
            "decoder_hidden_size": 192,
            "decoder_num_layers": 3,
            "attention_head_dim": 32,
            "embedding_channels": 96,
            "dropout": 0.0,
        },
        {
            "in_channels": 16,
            "block_out_channels": (160,),
            "num_layers": (2,),
            "attention_head_dim": 32,
            "embedding_channels": 64,
        },
    ),
    # For tests: a step takes milliseconds.
    "ul-tiny-f8": (
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (16, 16, 32),
            "encoder_layers_per_block": (1, 1, 1),
            "decoder_block_out_channels": (16, 16),
            "decoder_layers_per_block": (1, 1),
            "decoder_hidden_size": 32,
            "decoder_num_layers": 2,
            "attention_head_dim": 16,
            "embedding_channels": 16,
            "dropout": 0.0,
        },
        {
            "in_channels": 4,
            "block_out_channels": (32,),
            "num_layers": (2,),
            "attention_head_dim": 16,
            "embedding_channels": 16,
        },
    ),
}


def build_autoencoder(preset: str, changes: Mapping[str, Any] | None = None) -> UnifiedLatentsAutoencoder:
    """A fresh autoencoder of a preset, with some config keys changed.

    Raises:
        ValueError: an unknown preset or config key, or a value out of range.
    """
    return UnifiedLatentsAutoencoder(**_config(preset, 0, UnifiedLatentsAutoencoder, changes))


def build_prior(preset: str, changes: Mapping[str, Any] | None = None) -> UnifiedLatentsTransformer:
    """A fresh stage-1 prior of a preset; arguments and errors as `build_autoencoder`."""
    return UnifiedLatentsTransformer(**_config(preset, 1, UnifiedLatentsTransformer, changes))


def _config(preset: str, part: int, cls: type[Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}.")
    check_config_keys(cls, changes or {})
    return {**PRESETS[preset][part], **(changes or {})}


def check_config_keys(cls: type[Any], changes: Mapping[str, Any]) -> None:
    """Refuses keys that a network's config doesn't have.

    Raises:
        ValueError: names the first.
    """
    legal = cls._get_init_keys(cls)
    for key in changes:
        if key not in legal:
            raise ValueError(f"{cls.__name__} has no config key {key!r}.")
