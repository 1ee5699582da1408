"""E: pixels to the clean latent, deterministic."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ul_tokenizer.models.layers import (
    ChannelNorm,
    Downsample,
    EncoderResidualBlock,
    OutputConv,
    fold_time,
    unfold_time,
)


class EncoderStage(nn.Module):
    """Residual blocks at one resolution, then (but in the last stage) a halving of it."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(self, channels: int, out_channels: int | None, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([EncoderResidualBlock(channels, dropout) for _ in range(num_layers)])
        self.downsample = None if out_channels is None else Downsample(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H/2, W/2), or (N, C, H, W) in the last stage."""
        for block in self.blocks:
            if self.gradient_checkpointing and x.requires_grad:
                x = self._gradient_checkpointing_func(block, x)
            else:
                x = block(x)
        return x if self.downsample is None else self.downsample(x)


class Encoder(nn.Module):
    r"""Deterministic residual encoder.

    ```
    x (B,3,T,H,W) ─ patch p×p ─ conv ─┬─ stage 0: blocks ─ ½ ─ … ─ stage n−1: blocks ─ norm, silu, conv ─ z_clean
                                      └ widths block_out_channels;  z_clean (B,c,T,h,w), h = H / (p·2^(n−1))
    ```
    """

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        patch_size: int,
        block_out_channels: tuple[int, ...],
        layers_per_block: tuple[int, ...],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, block_out_channels[0], 3, padding=1)
        outputs = (*block_out_channels[1:], None)
        self.stages = nn.ModuleList(
            [
                EncoderStage(channels, out, num_layers, dropout)
                for channels, out, num_layers in zip(block_out_channels, outputs, layers_per_block, strict=True)
            ]
        )
        self.norm_out = ChannelNorm(block_out_channels[-1])
        self.conv_out = OutputConv(block_out_channels[-1], latent_channels, 3, padding=1)
        # Unit variance out of silu's mean square of 0.36: a smaller z_clean would drown in its noise from the start.
        nn.init.normal_(self.conv_out.weight, std=(0.36 * 9 * block_out_channels[-1]) ** -0.5)

    def forward(self, x_BxCxTxHxW: Tensor) -> Tensor:
        """(B, C, T, H, W) in [−1, 1] → z_clean (B, c, T, h, w), fp32."""
        num_frames = x_BxCxTxHxW.shape[2]
        h = self.conv_in(F.pixel_unshuffle(fold_time(x_BxCxTxHxW), self.patch_size))
        for stage in self.stages:
            h = stage(h)
        return unfold_time(self.conv_out(F.silu(self.norm_out(h))), num_frames)
