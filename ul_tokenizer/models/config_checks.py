"""What an autoencoder's config must fulfil, checked before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ul_tokenizer.models.limits import check_bounds, check_weights

SIZES = (
    "in_channels",
    "out_channels",
    "latent_channels",
    "patch_size",
    "encoder_block_out_channels",
    "encoder_layers_per_block",
    "decoder_block_out_channels",
    "decoder_layers_per_block",
    "decoder_hidden_size",
    "decoder_num_layers",
    "decoder_latent_embedding_layers",
    "attention_head_dim",
    "embedding_channels",
    "num_inference_steps",
)
DECODER_ALGORITHMS = ("ddim", "dpmsolver++")  # an ancestral one would draw noise of its own in every tile and slice


def check_autoencoder_config(config: Mapping[str, Any]) -> None:
    """Raises one ValueError for the first of `UnifiedLatentsAutoencoder`'s arguments that is out of range."""
    check_bounds(**{name: config[name] for name in SIZES})
    _check_stages(config)
    _check_total(config)
    if config["patch_size"] & (config["patch_size"] - 1):
        raise ValueError(f"patch_size must be a power of two, got {config['patch_size']}.")
    ratio = config["temporal_compression_ratio"]
    if ratio != 1:
        raise ValueError(f"temporal_compression_ratio must be 1 until video is supported, got {ratio}.")
    if config["decoder_algorithm"] not in DECODER_ALGORITHMS:
        raise ValueError(
            f"decoder_algorithm must be one of {DECODER_ALGORITHMS}, whose noise is all in x_1, "
            f"got {config['decoder_algorithm']!r}."
        )
    if not math.isfinite(config["latent_logsnr"]):
        raise ValueError(f"latent_logsnr must be finite, got {config['latent_logsnr']}.")
    for name in ("latents_mean", "latents_std"):
        values, channels = config[name], config["latent_channels"]
        if values is not None and len(values) != channels:
            raise ValueError(f"{name} must hold {channels} values, one per latent channel, got {len(values)}.")


def _check_stages(config: Mapping[str, Any]) -> None:
    for part in ("encoder", "decoder"):
        widths, layers = config[f"{part}_block_out_channels"], config[f"{part}_layers_per_block"]
        if len(widths) != len(layers):
            raise ValueError(
                f"{part}_layers_per_block must have one entry per stage of {part}_block_out_channels, "
                f"got {len(layers)} for {len(widths)}."
            )
    stages = [len(config[f"{part}_block_out_channels"]) for part in ("encoder", "decoder")]
    if stages[0] != stages[1] + 1:
        raise ValueError(
            "encoder_block_out_channels must have one entry more than decoder_block_out_channels, whose transformer "
            f"is the last stage, got {stages[0]} and {stages[1]}."
        )


def _check_total(config: Mapping[str, Any]) -> None:
    colours = max(config["in_channels"], config["out_channels"]) * config["patch_size"] ** 2
    widths = [
        colours,
        config["latent_channels"],
        config["embedding_channels"],
        config["decoder_hidden_size"],
        *config["encoder_block_out_channels"],
        *config["decoder_block_out_channels"],
    ]
    layers = [
        *config["encoder_layers_per_block"],
        *config["decoder_layers_per_block"],
        *config["decoder_layers_per_block"],
        config["decoder_num_layers"],
        config["decoder_latent_embedding_layers"],
    ]
    check_weights(widths, layers)
