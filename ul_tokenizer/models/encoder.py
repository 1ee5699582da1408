"""E: pixels to the clean latent, deterministic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ul_tokenizer.models.layers import (
    ChannelNorm,
    Downsample,
    EncoderResidualBlock,
    OutputConv,
    patchify,
    unfold_time,
)
from ul_tokenizer.models.temporal import (
    CausalTemporalConv,
    LatentFold,
    TemporalDownsample,
    frames_of_padding,
    halved,
    to_clips,
)

EncoderCache = tuple[Tensor, ...]  # the last frames that each stage's convolution in time saw


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder."""

    in_channels: int
    latent_channels: int  # c
    patch_size: int  # p, pixels per side that are folded into channels
    block_out_channels: tuple[int, ...]  # width of each stage; all but the last halve the grid
    layers_per_block: tuple[int, ...]
    temporal_ratio: int = 1  # R, frames per latent frame
    folds_latents: bool = False  # whether the latents of R frames become one, rather than their features
    learned_variance: bool = False  # whether a log-variance follows z_clean in the channels

    @classmethod
    def from_model(cls, config: Mapping[str, Any]) -> EncoderConfig:
        """The part of a `UnifiedLatentsAutoencoder`'s config that describes the encoder."""
        ratio = config["temporal_compression_ratio"]
        return cls(
            in_channels=config["in_channels"],
            latent_channels=config["latent_channels"],
            patch_size=config["patch_size"],
            block_out_channels=tuple(config["encoder_block_out_channels"]),
            layers_per_block=tuple(config["encoder_layers_per_block"]),
            temporal_ratio=ratio,
            folds_latents=ratio > 1 and config["temporal_downsample"] == "latents",
            learned_variance=config["learned_variance"],
        )

    @property
    def widths_behind(self) -> tuple[int, ...]:
        """Width of the features that leave each stage."""
        return (*self.block_out_channels[1:], self.block_out_channels[-1])

    @property
    def first_halving(self) -> int:
        """Number of the first stage behind which two frames become one."""
        halvings = 0 if self.folds_latents else self.temporal_ratio.bit_length() - 1
        return len(self.block_out_channels) - 1 - halvings


class EncoderStage(nn.Module):
    """Residual blocks at one resolution, then a halving of it, except in the last stage."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(self, channels: int, out_channels: int | None, num_layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([EncoderResidualBlock(channels) for _ in range(num_layers)])
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
    With a temporal ratio R, frames are mixed causally behind every stage: z_clean has ⌈T/R⌉ frames, and frame k does
    not depend on pixels after the R frames that it stands for. The number of frames is reduced in one of two places.
    Features are halved in time behind the last log₂ R stages that halve the picture. Or the latents are folded: R
    frames have c/R channels each, and a linear layer mixes them to one.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        widths, ratio = config.block_out_channels, config.temporal_ratio
        self.patch_size, self.temporal_ratio = config.patch_size, ratio
        self.conv_in = nn.Conv2d(config.in_channels * config.patch_size**2, widths[0], 3, padding=1)
        stages = zip(widths, (*widths[1:], None), config.layers_per_block, strict=True)
        self.stages = nn.ModuleList([EncoderStage(channels, out, layers) for channels, out, layers in stages])
        if ratio > 1:
            self.first_halving = config.first_halving
            self.temporal_convs = nn.ModuleList([CausalTemporalConv(c) for c in config.widths_behind])
            halved_widths = config.widths_behind[config.first_halving : -1]
            self.temporal_downsamples = nn.ModuleList([TemporalDownsample(c) for c in halved_widths])
        self.norm_out = ChannelNorm(widths[-1])
        channels = config.latent_channels // ratio if config.folds_latents else config.latent_channels
        channels *= 2 if config.learned_variance else 1
        self.conv_out = OutputConv(widths[-1], channels, 3, padding=1)
        # Unit variance, given silu's mean square of 0.36: a smaller z_clean would drown in its noise from the start.
        nn.init.normal_(self.conv_out.weight, std=(0.36 * 9 * widths[-1]) ** -0.5)
        if config.learned_variance:
            _start_nearly_deterministic(self.conv_out, config.latent_channels)
        self.latent_fold = LatentFold(config.latent_channels, ratio) if config.folds_latents else None

    def forward(self, x_BxCxTxHxW: Tensor, cache: EncoderCache | None = None) -> tuple[Tensor, EncoderCache]:
        """Encodes a clip, or a part of one.

        Args:
            x_BxCxTxHxW: (B, C, T, H, W) in [−1, 1]. In a clip that is encoded part by part, T is a multiple of R in
                every part but the first.
            cache: the cache returned for the part before; None for a whole clip and for the first part.

        Returns:
            z_clean (B, c, ⌈T/R⌉, h, w), fp32, followed in the channels by the logarithm of its variance if that is
            learned, (B, 2c, …); and the cache for the part after this one.
        """
        num_frames = x_BxCxTxHxW.shape[2]
        h = self.conv_in(patchify(x_BxCxTxHxW, self.patch_size))
        if self.temporal_ratio == 1:
            for stage in self.stages:
                h = stage(h)
            new_cache: EncoderCache = ()
        else:
            h, num_frames, new_cache = self._stages_in_time(h, num_frames, cache)
        z = self.conv_out(F.silu(self.norm_out(h)))
        if self.latent_fold is None:
            return unfold_time(z, num_frames), new_cache
        return self.latent_fold(to_clips(z, num_frames)).permute(0, 4, 1, 2, 3), new_cache

    def _stages_in_time(
        self, h: Tensor, num_frames: int, cache: EncoderCache | None
    ) -> tuple[Tensor, int, EncoderCache]:
        """Runs all stages with the layers in time behind them; returns features, their number of frames, the cache."""
        padding = frames_of_padding(num_frames, self.temporal_ratio)
        histories = []
        for number, stage in enumerate(self.stages):
            history = None if cache is None else cache[number]
            h, history = self.temporal_convs[number](stage(h), num_frames, history)
            histories.append(history)
            halving = number - self.first_halving
            if 0 <= halving < len(self.temporal_downsamples):
                h = self.temporal_downsamples[halving](h, num_frames, padding)
                num_frames, padding = halved(num_frames, padding), 0
        return h, num_frames, tuple(histories)


@torch.no_grad()
def _start_nearly_deterministic(conv_out: nn.Conv2d, latent_channels: int) -> None:
    """Starts with a log-variance of −8 everywhere: a twentieth of the fixed noise of z_0."""
    assert conv_out.bias is not None
    conv_out.weight[latent_channels:] = 0.0
    conv_out.bias[latent_channels:] = -8.0
