"""Transformer blocks, modulated by the conditioning, and stages of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ul_tokenizer.models.attention import CrossAttention, Rotary, RotaryAttention, Text, rotary_table
from ul_tokenizer.models.layers import Linear, TokenNorm


class FeedForward(nn.Module):
    """C → 4C → C with SiLU, which takes a quarter of the time of a tanh GELU on CPUs."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.linear_in = Linear(channels, 4 * channels)
        self.dropout = nn.Dropout(dropout)
        self.linear_out = Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        return self.linear_out(self.dropout(F.silu(self.linear_in(x))))


class TransformerBlock(nn.Module):
    """Pre-norm attention and feed-forward, each scaled, shifted and gated by the conditioning.

    With `text_channels`, a block has cross-attention to a text between the two.

    The modulation is a projection that all blocks of a stage share plus a learned table per block (adaLN-single of
    PixArt-α), so that a block has only 12 C² weights.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int,
        dropout: float = 0.0,
        text_channels: int | None = None,
        train_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.norm_1 = TokenNorm(channels, elementwise_affine=False)
        self.attn = RotaryAttention(channels, head_dim, train_tokens)
        if text_channels is not None:
            self.norm_text = TokenNorm(channels, elementwise_affine=False)
            self.cross_attn = CrossAttention(channels, head_dim, text_channels)
        self.norm_2 = TokenNorm(channels, elementwise_affine=False)
        self.feed_forward = FeedForward(channels, dropout)
        self.dropout = nn.Dropout(dropout)
        self.modulation_table = nn.Parameter(torch.randn(6, channels) / math.sqrt(channels))

    def forward(self, x_BxLxC: Tensor, modulation_Bx6xC: Tensor, rotary: Rotary, text: Text | None = None) -> Tensor:
        """(B, L, C), (B, 6, C) → (B, L, C)."""
        modulation = (modulation_Bx6xC + self.modulation_table).to(x_BxLxC.dtype)
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = modulation[:, :, None].unbind(1)
        h = self.attn(torch.addcmul(shift_1, self.norm_1(x_BxLxC), 1 + scale_1), rotary)
        x_BxLxC = torch.addcmul(x_BxLxC, gate_1, self.dropout(h))
        if text is not None:
            x_BxLxC = x_BxLxC + self.dropout(self.cross_attn(self.norm_text(x_BxLxC), text))
        h = self.feed_forward(torch.addcmul(shift_2, self.norm_2(x_BxLxC), 1 + scale_2))
        return torch.addcmul(x_BxLxC, gate_2, self.dropout(h))


class TransformerStage(nn.Module):
    """Transformer blocks of one width, with the projection of the conditioning that they share."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(
        self,
        channels: int,
        num_layers: int,
        head_dim: int,
        embedding_channels: int,
        dropout: float,
        text_channels: int | None = None,
        train_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.modulation = nn.Linear(embedding_channels, 6 * channels)
        self.blocks = nn.ModuleList(
            [TransformerBlock(channels, head_dim, dropout, text_channels, train_tokens) for _ in range(num_layers)]
        )
        nn.init.zeros_(self.modulation.weight)
        with torch.no_grad():  # gates start open, as in a plain pre-norm transformer
            self.modulation.bias.zero_().unflatten(0, (6, channels))[[2, 5]] = 1.0

    def rotary_table(self, grid: tuple[int, int, int], device: torch.device) -> Rotary:
        """The rotary positions of a grid (T, H, W)."""
        return rotary_table(grid, self.head_dim, device)

    def forward(
        self,
        x_BxLxC: Tensor,
        embedding: Tensor,
        grid: tuple[int, int, int],
        text: Text | None = None,
        rotary: Rotary | None = None,
    ) -> Tensor:
        """Runs all blocks.

        Args:
            x_BxLxC: tokens (B, L, C).
            embedding: the conditioning, (B, E).
            grid: (T, H, W) with T·H·W = L.
            text: for cross-attention.
            rotary: the `rotary_table` of the grid, for callers that use it many times; None computes it.

        Returns:
            (B, L, C).
        """
        modulation = self.modulation(embedding.to(self.modulation.weight.dtype)).unflatten(-1, (6, -1))
        # A view of the picture would make the first block differ from the others, and be compiled apart from them.
        x_BxLxC = x_BxLxC.clone()
        rotary = self.rotary_table(grid, x_BxLxC.device) if rotary is None else rotary
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x_BxLxC = self._gradient_checkpointing_func(block, x_BxLxC, modulation, rotary, text)
            else:
                x_BxLxC = block(x_BxLxC, modulation, rotary, text)
        return x_BxLxC
