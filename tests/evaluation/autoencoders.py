"""Tiny random autoencoders of diffusers, saved to folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    AutoencoderRAE,
    AutoencoderTiny,
    UNet2DModel,
    VQModel,
)

DOWN, UP = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
KL: dict[str, Any] = {
    "down_block_types": DOWN,
    "up_block_types": UP,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "latent_channels": 4,
}
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "AutoencoderKL": (AutoencoderKL, KL),
    "AutoencoderTiny": (
        AutoencoderTiny,
        {
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
            "latent_channels": 4,
        },
    ),
    "AutoencoderDC": (
        AutoencoderDC,
        {
            "in_channels": 3,
            "latent_channels": 4,
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), (5,)),
            "decoder_qkv_multiscales": ((), (5,)),
            "attention_head_dim": 8,
        },
    ),
    "AutoencoderRAE": (
        AutoencoderRAE,
        {
            "encoder_type": "mae",
            "encoder_hidden_size": 64,
            "encoder_patch_size": 4,
            "encoder_num_hidden_layers": 1,
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 32,
            "patch_size": 4,
            "encoder_input_size": 32,
            "image_size": 32,
        },
    ),
    "VQModel": (VQModel, {**KL, "num_vq_embeddings": 16, "vq_embed_dim": 4}),
    "AutoencoderKLWan": (
        AutoencoderKLWan,
        {
            "base_dim": 4,
            "z_dim": 4,
            "dim_mult": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "temperal_downsample": [False, True, True],
            "latents_mean": [0.1] * 4,
            "latents_std": [2.0] * 4,
        },
    ),
    "AutoencoderKLLTXVideo": (
        AutoencoderKLLTXVideo,
        {
            "latent_channels": 8,
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1, 1),
        },
    ),
    "UNet2DModel": (
        UNet2DModel,
        {
            "sample_size": 16,
            "block_out_channels": (8, 8),
            "norm_num_groups": 4,
            "down_block_types": ("DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D"),
        },
    ),
}


def save(name: str, folder: Path) -> Path:
    """Saves a model with random weights of seed 0, and returns its folder."""
    torch.manual_seed(0)
    kind, config = CONFIGS[name]
    path = folder / name
    kind(**config).save_pretrained(path)
    return path
