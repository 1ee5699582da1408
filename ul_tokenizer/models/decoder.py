"""D: a U-ViT that denoises pixels x_t given the noisy latent z_0."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ul_tokenizer.models.blocks import TransformerStage
from ul_tokenizer.models.layers import (
    ChannelNorm,
    DecoderResidualBlock,
    Downsample,
    LogSNREmbedding,
    OutputConv,
    Upsample,
    fold_time,
    to_frames,
    to_tokens,
    unfold_time,
)
from ul_tokenizer.models.temporal import LatentUnfold, TemporalConv, TemporalFold


class DecoderStage(nn.Module):
    """Residual blocks at one resolution, conditioned on the log-SNR."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(self, channels: int, num_layers: int, embedding_channels: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [DecoderResidualBlock(channels, embedding_channels, dropout) for _ in range(num_layers)]
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(N, C, H, W), (N, E) → (N, C, H, W)."""
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, x, embedding)
            else:
                x = block(x, embedding)
        return x


class LatentEmbedding(nn.Module):
    """z_0 at its own grid to features of the decoder's middle; runs once per decode, not once per step.

    `unfolded_frames`: of a latent one, if each has features of its own.
    """

    def __init__(self, latent_channels: int, channels: int, num_layers: int, unfolded_frames: int = 1) -> None:
        super().__init__()
        self.unfold = LatentUnfold(latent_channels, unfolded_frames) if unfolded_frames > 1 else None
        self.conv_in = nn.Conv2d(latent_channels // unfolded_frames, channels, 3, padding=1)
        self.mix = nn.ModuleList([nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num_layers)])
        self.norms = nn.ModuleList([ChannelNorm(channels) for _ in range(num_layers)])

    def forward(self, z: Tensor) -> Tensor:
        """(N, c, h, w) → (N·R, C, h, w)."""
        h = self.conv_in(z if self.unfold is None else self.unfold(z))
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

    With a temporal ratio R, frames are mixed behind every stage, and R of them are one in the transformer, which so
    stands on the grid of z_0; what tells them apart goes around it, as at every halving. If the encoder's frames
    became fewer in the "latents", z_0 is unfolded to R frames again, and each enters with its own.
    """

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        patch_size: int,
        block_out_channels: tuple[int, ...],
        layers_per_block: tuple[int, ...],
        hidden_size: int,
        num_layers: int,
        attention_head_dim: int,
        embedding_channels: int,
        latent_embedding_layers: int = 0,
        dropout: float = 0.0,
        temporal_ratio: int = 1,
        temporal_downsample: str = "features",
    ) -> None:
        super().__init__()
        self.patch_size, self.temporal_ratio = patch_size, temporal_ratio
        self.unfolds_latents = temporal_ratio > 1 and temporal_downsample == "latents"
        widths = (*block_out_channels, hidden_size)
        stages = list(zip(block_out_channels, layers_per_block, strict=True))
        self.logsnr_embedding = LogSNREmbedding(embedding_channels)
        self.latent_embedding = LatentEmbedding(
            latent_channels, hidden_size, latent_embedding_layers, temporal_ratio if self.unfolds_latents else 1
        )
        self.conv_in = nn.Conv2d(out_channels * patch_size**2, block_out_channels[0], 3, padding=1)
        self.down_stages = nn.ModuleList([DecoderStage(c, n, embedding_channels, dropout) for c, n in stages])
        self.downsamples = nn.ModuleList([Downsample(a, b) for a, b in pairwise(widths)])
        self.transformer = TransformerStage(hidden_size, num_layers, attention_head_dim, embedding_channels, dropout)
        self.upsamples = nn.ModuleList([Upsample(b, a) for a, b in pairwise(widths)])
        self.up_stages = nn.ModuleList([DecoderStage(c, n, embedding_channels, dropout) for c, n in stages])
        if temporal_ratio > 1:
            self.temporal_fold = TemporalFold(hidden_size, temporal_ratio)
            mixes = [[TemporalConv(c, is_causal=False) for c in block_out_channels] for _ in range(2)]
            self.temporal_convs_down, self.temporal_convs_up = map(nn.ModuleList, mixes)
        self.norm_out = ChannelNorm(block_out_channels[0])
        self.conv_out = OutputConv(block_out_channels[0], out_channels * patch_size**2, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)

    def embed_latents(self, z_BxCxTxHxW: Tensor) -> Tensor:
        """z_0 (B, c, t, h, w) → the `latent_features` of `forward`, (B·t, hidden_size, h, w); t·R if unfolded."""
        return self.latent_embedding(fold_time(z_BxCxTxHxW))

    def forward(self, x_BxCxTxHxW: Tensor, logsnr: Tensor, latent_features: Tensor) -> Tensor:
        """Predicts v of x_t (B, C, T, H, W) at λ (B,); returns (B, C, T, H, W) in fp32.

        `latent_features` are of the ⌈T/R⌉ frames of z_0, as `embed_latents` gives them.
        """
        num_frames = x_BxCxTxHxW.shape[2]
        embedding = F.silu(self.logsnr_embedding(logsnr))
        frame_embedding = embedding.repeat_interleave(num_frames, dim=0)

        h = self.conv_in(F.pixel_unshuffle(fold_time(x_BxCxTxHxW), self.patch_size))
        skips = []
        for number, (stage, downsample) in enumerate(zip(self.down_stages, self.downsamples, strict=True)):
            before = self._mixed(stage(h, frame_embedding), num_frames, "down", number)
            h = downsample(before)
            skips.append((before, h))

        h = self._transformed(h, num_frames, embedding, latent_features)

        last = len(skips) - 1
        for place, (stage, upsample) in enumerate(zip(reversed(self.up_stages), reversed(self.upsamples), strict=True)):
            before, after = skips.pop()
            h = stage(upsample(h - after) + before, frame_embedding)
            h = self._mixed(h, num_frames, "up", last - place)

        patches = self.conv_out(F.silu(self.norm_out(h)))
        return unfold_time(F.pixel_shuffle(patches, self.patch_size), num_frames)

    def _mixed(self, h: Tensor, num_frames: int, way: str, number: int) -> Tensor:
        """Behind a stage, with its neighbours in time."""
        if self.temporal_ratio == 1:
            return h
        convs = self.temporal_convs_down if way == "down" else self.temporal_convs_up
        mixed: Tensor = convs[number](h, num_frames)[0]
        return mixed

    def _transformed(self, h: Tensor, num_frames: int, embedding: Tensor, latent_features: Tensor) -> Tensor:
        """(B·T, C, h, w) through the transformer, on the grid of z_0."""
        if self.temporal_ratio == 1:
            return self._attend(h + latent_features.to(h.dtype), num_frames, embedding)
        latent_frames = -(-num_frames // self.temporal_ratio)
        features = latent_features.to(h.dtype)
        if self.unfolds_latents:
            frames = features.unflatten(0, (-1, latent_frames * self.temporal_ratio))[:, -num_frames:]
            h = h + frames.flatten(0, 1)
        folded = self.temporal_fold.fold(h, num_frames)
        attended = self._attend(folded if self.unfolds_latents else folded + features, latent_frames, embedding)
        return self.temporal_fold.unfold(attended - folded, num_frames) + h

    def _attend(self, h: Tensor, num_frames: int, embedding: Tensor) -> Tensor:
        grid = (num_frames, h.shape[2], h.shape[3])
        return to_frames(self.transformer(to_tokens(h, num_frames), embedding, grid), grid)
