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
from ul_tokenizer.models.temporal import LatentFold, TemporalConv, TemporalDownsample, to_clips

EncoderCache = dict[int, Tensor]  # number of a stage → what its convolution in time saw last


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
    With a temporal ratio R, frames are mixed causally behind every stage: z_clean has ⌈T/R⌉ frames, of which frame k
    knows nothing of the pixels after its R. They become fewer either in the "features", halved behind the last log₂ R
    stages that halve the picture, or in the "latents", where R frames have c/R channels each, and are mixed to one.
    """

    def __init__(
        self,
        in_channels: int,
        latent_channels: int,
        patch_size: int,
        block_out_channels: tuple[int, ...],
        layers_per_block: tuple[int, ...],
        dropout: float = 0.0,
        temporal_ratio: int = 1,
        temporal_downsample: str = "features",
    ) -> None:
        super().__init__()
        folds_latents = temporal_ratio > 1 and temporal_downsample == "latents"
        self.patch_size = patch_size
        self.conv_in = nn.Conv2d(in_channels * patch_size**2, block_out_channels[0], 3, padding=1)
        outputs = (*block_out_channels[1:], None)
        self.stages = nn.ModuleList(
            [
                EncoderStage(channels, out, num_layers, dropout)
                for channels, out, num_layers in zip(block_out_channels, outputs, layers_per_block, strict=True)
            ]
        )
        self.temporal_ratio = temporal_ratio
        if temporal_ratio > 1:
            behind = (*block_out_channels[1:], block_out_channels[-1])
            halvings = 0 if folds_latents else temporal_ratio.bit_length() - 1
            self._first_halving = len(block_out_channels) - 1 - halvings
            self.temporal_convs = nn.ModuleList([TemporalConv(channels, is_causal=True) for channels in behind])
            halved = behind[self._first_halving : -1]
            self.temporal_downsamples = nn.ModuleList([TemporalDownsample(channels) for channels in halved])
        self.norm_out = ChannelNorm(block_out_channels[-1])
        channels = latent_channels // temporal_ratio if folds_latents else latent_channels
        self.conv_out = OutputConv(block_out_channels[-1], channels, 3, padding=1)
        # Unit variance out of silu's mean square of 0.36: a smaller z_clean would drown in its noise from the start.
        nn.init.normal_(self.conv_out.weight, std=(0.36 * 9 * block_out_channels[-1]) ** -0.5)
        self.latent_fold = LatentFold(latent_channels, temporal_ratio) if folds_latents else None

    def forward(self, x_BxCxTxHxW: Tensor, cache: EncoderCache | None = None) -> Tensor:
        """Encodes a clip, or a part of one.

        Args:
            x_BxCxTxHxW: (B, C, T, H, W) in [−1, 1].
            cache: for a clip in parts: what was left by the part before, empty for the first; it is taken on. Later
                parts have a multiple of R frames.

        Returns:
            z_clean (B, c, ⌈T/R⌉, h, w), fp32.
        """
        num_frames = x_BxCxTxHxW.shape[2]
        padding = -num_frames % self.temporal_ratio
        h = self.conv_in(F.pixel_unshuffle(fold_time(x_BxCxTxHxW), self.patch_size))
        for number, stage in enumerate(self.stages):
            h = stage(h)
            if self.temporal_ratio > 1:
                h, num_frames, padding = self._in_time(number, h, num_frames, padding, cache)
        z = self.conv_out(F.silu(self.norm_out(h)))
        if self.latent_fold is None:
            return unfold_time(z, num_frames)
        return self.latent_fold(to_clips(z, num_frames)).permute(0, 4, 1, 2, 3)

    def _in_time(
        self, number: int, h: Tensor, num_frames: int, padding: int, cache: EncoderCache | None
    ) -> tuple[Tensor, int, int]:
        """Behind a stage: features, their number of frames, and the padding that is still to come."""
        history = None if cache is None else cache.get(number)
        h, history = self.temporal_convs[number](h, num_frames, history)
        if cache is not None:
            cache[number] = history
        place = number - self._first_halving
        if not 0 <= place < len(self.temporal_downsamples):
            return h, num_frames, padding
        h = self.temporal_downsamples[place](h, num_frames, padding)
        return h, max(1, (num_frames + padding) // 2) if num_frames > 1 else 1, 0 if num_frames > 1 else padding
