"""Named configurations of the networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ul_tokenizer import _compat

if TYPE_CHECKING:  # the names of presets stand in help texts, which must not wait for torch
    from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
    from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

_Config = TypeVar("_Config")


def noisiest_level(resolution: int) -> float:
    """λ_x(1) for square pictures of this size, in pixels: −5 at 64² and 1.4 lower for each doubling (paper.md §8).

    The variance of a picture's slow modes grows with its number of pixels. At a fixed level they would be visible in
    x_t, but not in the pure noise from which decoding starts, and brightness would drift to grey.
    """
    return round(-5 - 2 * math.log(resolution / 64), 1)


# name → (autoencoder config, prior config)
PRESETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # The paper's ImageNet-512 networks (paper.md §5): 512² → 32×32×32. The decoder's noisiest level is our reading: see
    # `noisiest_level`, as in all presets for a certain size of pictures.
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
            "decoder_logsnr_min": noisiest_level(512),
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
    # Our reading for ImageNet-256, of which the paper gives nothing: the ImageNet-512 networks without their finest
    # stage, 256² → 16×32×32. A base model then works on the same grid as at 512².
    "ul-imagenet256": (
        {
            "latent_channels": 16,
            "encoder_block_out_channels": (128, 256, 512),
            "encoder_layers_per_block": (2, 2, 3),
            "decoder_block_out_channels": (128, 256),
            "decoder_layers_per_block": (2, 2),
            "decoder_hidden_size": 1024,
            "decoder_num_layers": 8,
            "attention_head_dim": 64,
            "embedding_channels": 256,
            "dropout": 0.1,
            "decoder_logsnr_min": noisiest_level(256),
            "sample_size": 256,
        },
        {
            "in_channels": 16,
            "block_out_channels": (1024,),
            "num_layers": (8,),
            "attention_head_dim": 64,
            "embedding_channels": 256,
            "sample_size": 32,
        },
    ),
    # For a first evening on one consumer GPU: 128² → 16×16×16.
    "ul-evening": (
        {
            "latent_channels": 16,
            "encoder_block_out_channels": (64, 128, 256),
            "encoder_layers_per_block": (1, 2, 2),
            "decoder_block_out_channels": (64, 128),
            "decoder_layers_per_block": (2, 2),
            "decoder_hidden_size": 384,
            "decoder_num_layers": 6,
            "attention_head_dim": 64,
            "embedding_channels": 128,
            "dropout": 0.0,
            "decoder_logsnr_min": noisiest_level(128),
            "sample_size": 128,
        },
        {
            "in_channels": 16,
            "block_out_channels": (384,),
            "num_layers": (6,),
            "attention_head_dim": 64,
            "embedding_channels": 128,
            "sample_size": 16,
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
    # Small pictures on two CPU cores: 8× down, 16 channels, 2.2 M weights in all.
    "ul-mini-f8": (
        {
            "latent_channels": 16,
            "encoder_block_out_channels": (32, 64, 96),
            "encoder_layers_per_block": (1, 2, 2),
            "decoder_block_out_channels": (32, 80),
            "decoder_layers_per_block": (2, 2),
            "decoder_hidden_size": 128,
            "decoder_num_layers": 3,
            "attention_head_dim": 32,
            "embedding_channels": 64,
            "dropout": 0.0,
        },
        {
            "in_channels": 16,
            "block_out_channels": (128,),
            "num_layers": (2,),
            "attention_head_dim": 32,
            "embedding_channels": 64,
        },
    ),
    # The paper's setting for Kinetics-600: 16 frames of 128² → 4×16×16. The paper gives no widths for it. These are
    # the widths of its ImageNet networks without the finest stage.
    "ul-k600": (
        {
            "latent_channels": 16,
            "encoder_block_out_channels": (128, 256, 512),
            "encoder_layers_per_block": (2, 2, 3),
            "decoder_block_out_channels": (128, 256),
            "decoder_layers_per_block": (2, 2),
            "decoder_hidden_size": 1024,
            "decoder_num_layers": 8,
            "attention_head_dim": 64,
            "embedding_channels": 256,
            "dropout": 0.1,
            "temporal_compression_ratio": 4,
            "decoder_logsnr_min": noisiest_level(128),
            "sample_size": 128,
        },
        {
            "in_channels": 16,
            "block_out_channels": (1024,),
            "num_layers": (8,),
            "attention_head_dim": 64,
            "embedding_channels": 256,
            "sample_size": 16,
        },
    ),
    # For tests; a step takes milliseconds.
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

# `ul-small-f8` with time, 4×8×8: 5.8 M weights in all.
PRESETS["ul-small-4x8x8"] = ({**PRESETS["ul-small-f8"][0], "temporal_compression_ratio": 4}, PRESETS["ul-small-f8"][1])

# name → base model's config, for stage 2
BASE_PRESETS: dict[str, dict[str, Any]] = {
    # The paper's two-stage ViT (paper.md §5): 232 M weights. Heads and embedding, which it omits, are our choice.
    "ul-base-imagenet512-medium": {
        "in_channels": 32,
        "block_out_channels": (512, 1024),
        "num_layers": (6, 16),
        "attention_head_dim": 64,
        "embedding_channels": 512,
        "dropout": 0.1,
        "num_class_embeds": 1000,
        "sample_size": 32,
    },
    # For the latents of `ul-evening`, 16×16×16.
    "ul-base-evening": {
        "in_channels": 16,
        "block_out_channels": (384,),
        "num_layers": (12,),
        "attention_head_dim": 64,
        "embedding_channels": 256,
        "dropout": 0.1,
        "sample_size": 16,
    },
    # Trains on two CPU cores, on small latents.
    "ul-base-mini": {
        "in_channels": 16,
        "block_out_channels": (224,),
        "num_layers": (4,),
        "attention_head_dim": 32,
        "embedding_channels": 128,
        "dropout": 0.0,
    },
    # For tests; a step takes milliseconds.
    "ul-base-tiny": {
        "in_channels": 4,
        "block_out_channels": (32,),
        "num_layers": (2,),
        "attention_head_dim": 16,
        "embedding_channels": 16,
    },
}
_MEDIUM = BASE_PRESETS["ul-base-imagenet512-medium"]
BASE_PRESETS |= {
    # Our version of the paper's "small": narrower, with a third of the FLOPs of "medium".
    "ul-base-imagenet512-small": {**_MEDIUM, "block_out_channels": (320, 576)},
    # Frame prediction on clips of 17 frames in latents of `ul-k600`, 5×16×16; the paper prints no widths for it.
    "ul-base-k600-medium": {
        **_MEDIUM,
        "in_channels": 16,
        "num_class_embeds": None,
        "sample_size": 16,
        "sample_frames": 5,
    },
    # Text-to-image at 512²: wider, with cross-attention to a text of width 1024. 300 GFLOP, one of the three sizes of
    # the paper (100, 300 and 970), which prints no widths.
    "ul-base-text-to-image": {
        **_MEDIUM,
        "block_out_channels": (640, 1280),
        "num_class_embeds": None,
        "cross_attention_dim": 1024,
    },
}


def build_autoencoder(preset: str, changes: Mapping[str, Any] | None = None) -> UnifiedLatentsAutoencoder:
    """A new autoencoder of a preset, with some config keys changed.

    Raises:
        ValueError: an unknown preset or config key, or a value out of range.
    """
    from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder

    return UnifiedLatentsAutoencoder(**_config(_pair(preset)[0], UnifiedLatentsAutoencoder, changes))


def build_prior(preset: str, changes: Mapping[str, Any] | None = None) -> UnifiedLatentsTransformer:
    """A new stage-1 prior of a preset; arguments and errors as in `build_autoencoder`."""
    from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

    return UnifiedLatentsTransformer(**_config(_pair(preset)[1], UnifiedLatentsTransformer, changes))


def build_base(preset: str, changes: Mapping[str, Any] | None = None) -> UnifiedLatentsTransformer:
    """A new base model of a preset of `BASE_PRESETS`; arguments and errors as in `build_autoencoder`."""
    from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

    return UnifiedLatentsTransformer(**_config(_entry(BASE_PRESETS, preset), UnifiedLatentsTransformer, changes))


def _pair(preset: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return _entry(PRESETS, preset)


def _entry(presets: Mapping[str, _Config], preset: str) -> _Config:
    if preset not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}, got {preset!r}.")
    return presets[preset]


def _config(config: dict[str, Any], cls: type[Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    check_config_keys(cls, changes or {})
    return {**config, **(changes or {})}


def check_config_keys(cls: type[Any], changes: Mapping[str, Any]) -> None:
    """Checks that a network's config has all of these keys.

    Raises:
        ValueError: an unknown key.
    """
    legal = _compat.init_keys(cls)
    for key in changes:
        if key not in legal:
            raise ValueError(f"{cls.__name__} has no config key {key!r}.")
