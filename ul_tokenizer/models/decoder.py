"""D: a U-ViT that denoises pixels x_t given the noisy latent z_0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ul_tokenizer.models.attention import Rotary
from ul_tokenizer.models.blocks import TransformerStage
from ul_tokenizer.models.layers import (
    ChannelNorm,
    DecoderResidualBlock,
    Downsample,
    LogSNREmbedding,
    OutputConv,
    Upsample,
    fold_time,
    patchify,
    to_frames,
    to_tokens,
    unpatchify,
)
from ul_tokenizer.models.temporal import (
    LatentUnfold,
    NoTemporalConv,
    TemporalConv,
    TemporalFold,
    frames_of_latents,
)


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder."""

    out_channels: int
    latent_channels: int  # c
    patch_size: int  # pixels per side that are folded into channels
    block_out_channels: tuple[int, ...]  # width of each convolutional stage; all halve the grid on the way in
    layers_per_block: tuple[int, ...]  # residual blocks of each stage, on the way in and on the way out
    hidden_size: int  # width of the transformer, which works on the grid of z_0
    num_layers: int  # of the transformer
    attention_head_dim: int
    embedding_channels: int  # width of the log-SNR embedding
    latent_embedding_layers: int = 0  # residual convolutions on z_0
    dropout: float = 0.0
    temporal_ratio: int = 1  # R, frames per latent frame
    attention_train_tokens: int | None = None  # of `log_length_temperature`
    unfolds_latents: bool = False  # whether a latent frame holds the latents of R frames
    cleanest_latent_logsnr: float | None = None  # λ of z_0 unless another is given; None: there is no other

    @classmethod
    def from_model(cls, config: Mapping[str, Any]) -> DecoderConfig:
        """The part of a `UnifiedLatentsAutoencoder`'s config that describes the decoder."""
        ratio = config["temporal_compression_ratio"]
        return cls(
            out_channels=config["out_channels"],
            latent_channels=config["latent_channels"],
            patch_size=config["patch_size"],
            block_out_channels=tuple(config["decoder_block_out_channels"]),
            layers_per_block=tuple(config["decoder_layers_per_block"]),
            hidden_size=config["decoder_hidden_size"],
            num_layers=config["decoder_num_layers"],
            attention_head_dim=config["attention_head_dim"],
            embedding_channels=config["embedding_channels"],
            latent_embedding_layers=config["decoder_latent_embedding_layers"],
            dropout=config["dropout"],
            temporal_ratio=ratio,
            attention_train_tokens=config["attention_train_tokens"],
            unfolds_latents=ratio > 1 and config["temporal_downsample"] == "latents",
            cleanest_latent_logsnr=None if config["latent_logsnr_min"] is None else config["latent_logsnr"],
        )


class DecoderStage(nn.Module):
    """Residual blocks at one resolution, conditioned on the log-SNR."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(self, channels: int, num_layers: int, config: DecoderConfig) -> None:
        super().__init__()
        embedding, dropout = config.embedding_channels, config.dropout
        self.blocks = nn.ModuleList([DecoderResidualBlock(channels, embedding, dropout) for _ in range(num_layers)])

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(N, C, H, W), (N, E) → (N, C, H, W)."""
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, embedding)
            else:
                x = block(x, embedding)
        return x


class LatentLevelEmbedding(nn.Module):
    """λ of z_0 (B,) → (B, C, 1, 1), which starts at 0."""

    def __init__(self, channels: int, embedding_channels: int, cleanest: float) -> None:
        super().__init__()
        self.cleanest = cleanest
        self.logsnr_embedding = LogSNREmbedding(embedding_channels)
        self.proj = nn.Linear(embedding_channels, channels)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, logsnr: Tensor) -> Tensor:
        """(B,) → (B, C, 1, 1)."""
        features: Tensor = self.proj(F.silu(self.logsnr_embedding(logsnr)))
        return features[:, :, None, None]


class LatentEmbedding(nn.Module):
    """z_0 on its own grid → features for the decoder's transformer; runs once per decode, not once per step."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        ratio = config.temporal_ratio if config.unfolds_latents else 1
        channels, layers = config.hidden_size, range(config.latent_embedding_layers)
        self.unfold = LatentUnfold(config.latent_channels, ratio) if config.unfolds_latents else None
        self.conv_in = nn.Conv2d(config.latent_channels // ratio, channels, 3, padding=1)
        self.mix = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1) for _ in layers])
        self.norms = nn.ModuleList([ChannelNorm(channels) for _ in layers])
        cleanest = config.cleanest_latent_logsnr
        self.level = None if cleanest is None else LatentLevelEmbedding(channels, config.embedding_channels, cleanest)

    def forward(self, z: Tensor, logsnr: Tensor | None = None) -> Tensor:
        """(N, c, h, w) → (N, C, h, w), or (N·R, C, h, w) if each latent frame is unfolded to R frames.

        `logsnr` (B,) is the level of z_0, for decoders that take several, and the cleanest if None; N is a multiple of
        B.
        """
        h = self.conv_in(z if self.unfold is None else self.unfold(z))
        if self.level is not None:
            logsnr = torch.full((len(h),), self.level.cleanest, device=h.device) if logsnr is None else logsnr
            h = h + self.level(logsnr).repeat_interleave(len(h) // len(logsnr), dim=0).to(h.dtype)
        for norm, conv in zip(self.norms, self.mix, strict=True):
            h = h + conv(F.silu(norm(h)))
        return h


class Decoder(nn.Module):
    r"""U-ViT denoiser, v-prediction, conditioned on z_0 and the log-SNR.

    ```
    x_t ─ patch, conv ─ down 0 ─ ½ ─ down 1 ─ ½ ─ … ─(+)─ transformer ─ … ─ ×2 ─ up 1 ─ ×2 ─ up 0 ─ norm, silu, conv ─ v
                     │h_before    │h_after            │                        │
                     └────────────┴───── x ← Up(x − h_after) + h_before ───────┘
    z_0 ─ embed_latents (once per decode) ────────────┘        λ ─ embedding ─ every block
    ```
    One skip per downsampling, no block-wise skips (SiD2, arXiv 2410.19324).

    With a temporal ratio R, frames are mixed behind every stage. The transformer works on the grid of z_0, where R
    frames are one; the differences between these frames bypass it, as at every halving of the picture. If the encoder
    folds latents, z_0 is unfolded to R frames again, and each enters with its own.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        widths, pairs = config.block_out_channels, list(pairwise((*config.block_out_channels, config.hidden_size)))
        stages = list(zip(widths, config.layers_per_block, strict=True))
        self.patch_size, self.temporal_ratio = config.patch_size, config.temporal_ratio
        self.unfolds_latents = config.unfolds_latents
        self.logsnr_embedding = LogSNREmbedding(config.embedding_channels)
        self.latent_embedding = LatentEmbedding(config)
        self.conv_in = nn.Conv2d(config.out_channels * config.patch_size**2, widths[0], 3, padding=1)
        self.down_stages = nn.ModuleList([DecoderStage(c, n, config) for c, n in stages])
        self.downsamples = nn.ModuleList([Downsample(a, b) for a, b in pairs])
        self.transformer = TransformerStage(
            config.hidden_size,
            config.num_layers,
            config.attention_head_dim,
            config.embedding_channels,
            config.dropout,
            train_tokens=config.attention_train_tokens,
        )
        self.upsamples = nn.ModuleList([Upsample(b, a) for a, b in pairs])
        self.up_stages = nn.ModuleList([DecoderStage(c, n, config) for c, n in stages])
        if config.temporal_ratio > 1:
            self.temporal_fold = TemporalFold(config.hidden_size, config.temporal_ratio)
            self.temporal_convs_down = nn.ModuleList([TemporalConv(c) for c in widths])
            self.temporal_convs_up = nn.ModuleList([TemporalConv(c) for c in widths])
        else:
            self.temporal_convs_down = nn.ModuleList([NoTemporalConv() for _ in widths])
            self.temporal_convs_up = nn.ModuleList([NoTemporalConv() for _ in widths])
        self.norm_out = ChannelNorm(widths[0])
        self.conv_out = OutputConv(widths[0], config.out_channels * config.patch_size**2, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)

    def embed_latents(self, z_BxCxTxHxW: Tensor, logsnr: Tensor | None = None) -> Tensor:
        """z_0 (B, c, t, h, w) → the `latent_features` of `forward`, (B·t, C, h, w), or (B·t·R, C, h, w) if unfolded.

        `logsnr` (B,) is the level of z_0, for decoders that take several; None means the cleanest.
        """
        return self.latent_embedding(fold_time(z_BxCxTxHxW), logsnr)

    def rotary_table(self, z_BxCxTxHxW: Tensor) -> Rotary:
        """The `rotary` of `forward` for latents of this shape, on their device."""
        t, h, w = z_BxCxTxHxW.shape[2:]
        return self.transformer.rotary_table((t, h, w), z_BxCxTxHxW.device)

    def forward(
        self, x_BxCxTxHxW: Tensor, logsnr: Tensor, latent_features: Tensor, rotary: Rotary | None = None
    ) -> Tensor:
        """Predicts v.

        Args:
            x_BxCxTxHxW: x_t (B, C, T, H, W).
            logsnr: λ (B,).
            latent_features: the output of `embed_latents` for the ⌈T/R⌉ frames of z_0.
            rotary: the output of `rotary_table` for them, for callers that use it many times; None computes it.

        Returns:
            v (B, C, T, H, W), fp32.
        """
        num_frames = x_BxCxTxHxW.shape[2]
        embedding = F.silu(self.logsnr_embedding(logsnr))
        frame_embedding = embedding.repeat_interleave(num_frames, dim=0)

        h = self.conv_in(patchify(x_BxCxTxHxW, self.patch_size))
        skips = []
        for stage, mix, downsample in zip(self.down_stages, self.temporal_convs_down, self.downsamples, strict=True):
            before = mix(stage(h, frame_embedding), num_frames)
            h = downsample(before)
            skips.append((before, h))

        h = self._transformed(h, num_frames, embedding, latent_features, rotary)

        way_out = zip(self.up_stages, self.temporal_convs_up, self.upsamples, skips, strict=True)
        for stage, mix, upsample, (before, after) in reversed(list(way_out)):
            h = mix(stage(upsample(h - after) + before, frame_embedding), num_frames)

        patches = self.conv_out(F.silu(self.norm_out(h)))
        return unpatchify(patches, self.patch_size, num_frames)

    def _transformed(
        self, h: Tensor, num_frames: int, embedding: Tensor, latent_features: Tensor, rotary: Rotary | None
    ) -> Tensor:
        """Runs the transformer on the grid of z_0: (B·T, C, h, w) → (B·T, C, h, w)."""
        if self.temporal_ratio == 1:
            return self._attend(h + latent_features.to(h.dtype), num_frames, embedding, rotary)
        latent_frames = frames_of_latents(num_frames, self.temporal_ratio)
        features = latent_features.to(h.dtype)
        if self.unfolds_latents:
            frames = features.unflatten(0, (-1, latent_frames * self.temporal_ratio))[:, -num_frames:]
            h = h + frames.flatten(0, 1)
        folded = self.temporal_fold.fold(h, num_frames)
        tokens = folded if self.unfolds_latents else folded + features
        attended = self._attend(tokens, latent_frames, embedding, rotary)
        return self.temporal_fold.unfold(attended - folded, num_frames) + h

    def _attend(self, h: Tensor, num_frames: int, embedding: Tensor, rotary: Rotary | None) -> Tensor:
        grid = (num_frames, h.shape[2], h.shape[3])
        return to_frames(self.transformer(to_tokens(h, num_frames), embedding, grid, rotary=rotary), grid)
