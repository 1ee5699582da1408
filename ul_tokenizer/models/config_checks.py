"""Checks of an autoencoder's config, before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ul_tokenizer.models.limits import (
    check_bounds,
    check_dropout,
    check_numbers,
    check_stage_bounds,
    check_train_tokens,
    check_weights,
    is_number,
)

SIZES = (
    "in_channels",
    "out_channels",
    "latent_channels",
    "patch_size",
    "decoder_hidden_size",
    "decoder_num_layers",
    "decoder_latent_embedding_layers",
    "attention_head_dim",
    "embedding_channels",
    "num_inference_steps",
)
STAGES = (
    "encoder_block_out_channels",
    "encoder_layers_per_block",
    "decoder_block_out_channels",
    "decoder_layers_per_block",
)
NUMBERS = (
    "latent_logsnr",
    "decoder_logsnr_max",
    "decoder_logsnr_min",
    "decoder_shift_clean",
    "decoder_shift_noisy",
    "scaling_factor",
    "shift_factor",
)
TEMPORAL_DOWNSAMPLES = ("features", "latents")
DECODER_ALGORITHMS = ("ddim", "dpmsolver++")  # an ancestral sampler would draw noise anew in every tile and slice


def check_autoencoder_config(config: Mapping[str, Any]) -> None:
    """Checks all arguments of `UnifiedLatentsAutoencoder`.

    Raises:
        ValueError: an argument is out of range; the sentence names the first one.
    """
    check_bounds(**{name: config[name] for name in SIZES})
    check_stage_bounds(**{name: config[name] for name in STAGES})
    check_numbers(**{name: config[name] for name in NUMBERS})
    check_dropout(config["dropout"])
    check_train_tokens(config["attention_train_tokens"])
    _check_stages(config)
    _check_total(config)
    _check_choices(config)
    if config["tile_sample_size"] is not None:
        check_bounds(tile_sample_size=config["tile_sample_size"])
        ratio = config["patch_size"] * 2 ** len(config["decoder_block_out_channels"])
        if config["tile_sample_size"] < ratio:
            raise ValueError(f"tile_sample_size must be at least {ratio}, got {config['tile_sample_size']}.")
    if config["scaling_factor"] <= 0:
        raise ValueError(f"scaling_factor must be positive, got {config['scaling_factor']}.")
    for name in ("latents_mean", "latents_std"):
        _check_statistic(name, config[name], config["latent_channels"])
    _check_derived(config)


def derived_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Config keys that pipelines read and that follow from the other keys, which must be legal.

    `latents_mean` and `latents_std` are the identity unless they are given: video pipelines of diffusers need lists.
    """
    widths = tuple(config["encoder_block_out_channels"])
    ratio = config["patch_size"] * 2 ** len(config["decoder_block_out_channels"])
    # Pipelines compute the compression ratio as 2^(len(block_out_channels) − 1); patches halve without a stage.
    levels = int(math.log2(ratio)) + 1
    identity = {"latents_mean": 0.0, "latents_std": 1.0}
    statistics = {
        name: (value,) * config["latent_channels"] if config[name] is None else tuple(config[name])
        for name, value in identity.items()
    }
    return {
        **statistics,
        "block_out_channels": (*[widths[0]] * (levels - len(widths)), *widths),
        "z_dim": config["latent_channels"],
        "spatial_compression_ratio": ratio,
        "scale_factor_spatial": ratio,
        "scale_factor_temporal": config["temporal_compression_ratio"],
        "timestep_conditioning": False,
    }


def _check_derived(config: Mapping[str, Any]) -> None:
    for name, value in derived_config(config).items():
        given = tuple(config[name]) if isinstance(config[name], list) else config[name]
        if given is not None and given != value:
            raise ValueError(f"{name} contradicts the keys that it follows from and must be {value}, got {given!r}.")


def _check_choices(config: Mapping[str, Any]) -> None:
    if config["patch_size"] & (config["patch_size"] - 1):
        raise ValueError(f"patch_size must be a power of two, got {config['patch_size']}.")
    ratio = config["temporal_compression_ratio"]
    most = 2 ** len(config["decoder_block_out_channels"])
    if type(ratio) is not int or not 1 <= ratio <= most or ratio & (ratio - 1):
        raise ValueError(f"temporal_compression_ratio must be a power of two of at most {most}, got {ratio!r}.")
    where = config["temporal_downsample"]
    if where not in TEMPORAL_DOWNSAMPLES:
        raise ValueError(f"temporal_downsample must be one of {TEMPORAL_DOWNSAMPLES}, got {where!r}.")
    if where == "latents" and config["latent_channels"] % ratio:
        raise ValueError(
            f"latent_channels must be a multiple of temporal_compression_ratio, {ratio}, with "
            f'temporal_downsample="latents", got {config["latent_channels"]}.'
        )
    lowest = config["latent_logsnr_min"]
    if lowest is not None:
        check_numbers(latent_logsnr_min=lowest)
        if lowest >= config["latent_logsnr"]:
            raise ValueError(f"latent_logsnr_min must be below latent_logsnr, {config['latent_logsnr']}, got {lowest}.")
    if type(config["learned_variance"]) is not bool:
        raise ValueError(f"learned_variance must be true or false, got {config['learned_variance']!r}.")
    if config["learned_variance"] and ratio > 1 and where == "latents":
        raise ValueError('learned_variance needs temporal_downsample="features", got "latents".')
    if config["decoder_algorithm"] not in DECODER_ALGORITHMS:
        raise ValueError(
            f"decoder_algorithm must be one of {DECODER_ALGORITHMS}, which draw no noise between steps, "
            f"got {config['decoder_algorithm']!r}."
        )


def _check_statistic(name: str, values: Any, channels: int) -> None:
    if values is None:
        return
    kind = "positive" if name == "latents_std" else "finite"
    if not isinstance(values, list | tuple) or not all(map(is_number, values)):
        raise ValueError(f"{name} must be None or a list of {kind} numbers, got {values!r}.")
    if len(values) != channels:
        raise ValueError(f"{name} must hold {channels} values, one per latent channel, got {len(values)}.")
    if kind == "positive" and min(values) <= 0:
        raise ValueError(f"{name} must hold positive numbers, got {min(values)}.")


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
            "encoder_block_out_channels must have one entry more than decoder_block_out_channels, "
            f"got {stages[0]} and {stages[1]}."
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
