"""Self-attention within the latents' grid with rotary positions, and cross-attention to a text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from ul_tokenizer.models.layers import Linear, TokenNorm

Rotary = tuple[Tensor, Tensor]  # (cos, sin) of `rotary_table`


class Text(NamedTuple):
    """Input of cross-attention."""

    tokens: Tensor  # (B, S, D)
    mask: Tensor | None  # (B, S) bool, True where there is a token; every row has at least one. None: all are tokens


def count_heads(channels: int, head_dim: int) -> int:
    """Number of heads.

    Raises:
        ValueError: `head_dim` is odd or does not divide `channels`.
    """
    if channels % head_dim or head_dim % 2:
        raise ValueError(f"attention head_dim must be even and divide the {channels} channels, got {head_dim}.")
    return channels // head_dim


def rotary_table(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Rotary:
    """(cos, sin) of rotary positions in three axes, each (L, head_dim/2) fp32; grid is (T, H, W), L = T·H·W.

    A quarter of the pairs is rotated by time, and half of the others each by height and by width.
    """
    pairs = head_dim // 2
    time_pairs = pairs // 4
    width_pairs = (pairs - time_pairs) // 2
    axis_pairs = (time_pairs, pairs - time_pairs - width_pairs, width_pairs)
    angles = []
    for size, count in zip(grid, axis_pairs, strict=True):
        # Low base: grids have tens of positions, not thousands.
        frequencies = 100.0 ** -(torch.arange(count, device=device, dtype=torch.float32) / max(count, 1))
        angles.append(torch.arange(size, device=device, dtype=torch.float32)[:, None] * frequencies)
    t, h, w = grid
    table = torch.cat(
        [
            angles[0][:, None, None].expand(t, h, w, -1),
            angles[1][None, :, None].expand(t, h, w, -1),
            angles[2][None, None].expand(t, h, w, -1),
        ],
        dim=-1,
    ).reshape(t * h * w, pairs)
    return table.cos(), table.sin()


def log_length_temperature(num_tokens: int, train_tokens: int, device: torch.device) -> Tensor:
    """Factor of the logits, log(n) / log(n_train) and at least 1; (), fp32.

    The entropy of a softmax of logits of a fixed spread grows with the logarithm of their number. Without this factor,
    attention over a grid that is larger than those of training is spread out thinner than the network ever saw.
    """
    # A tensor, since the compiler would make a graph for each number of tokens with `math.log`.
    count = torch.full((), num_tokens, dtype=torch.float32, device=device)
    return (count.log() / math.log(train_tokens)).clamp(min=1.0)


def apply_rotary(x_BxLxNxD: Tensor, rotary: Rotary) -> Tensor:
    """Rotates the pairs (x_i, x_{i + D/2}) of every head by the angles of their position; the shape stays."""
    cos, sin = (table[None, :, None, :].to(x_BxLxNxD.dtype) for table in rotary)
    a, b = x_BxLxNxD.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class _AttnProcessor:
    """Attention on (B, L, heads, head_dim) through diffusers' dispatch, so that `set_attention_backend` works."""

    _attention_backend = None
    _parallel_config = None

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention with the chosen backend; the mask, (B, 1, L, S) or (B, 1, 1, S), is True where to attend."""

        def attend(*tensors: Tensor) -> Tensor:
            return dispatch_attention_fn(
                *tensors, attn_mask=mask, backend=self._attention_backend, parallel_config=self._parallel_config
            )

        # On CPUs the backward pass of half-precision attention takes two to ten times as long as that of fp32.
        if query.device.type == "cpu" and query.requires_grad:
            with torch.autocast("cpu", enabled=False):
                return attend(query.float(), key.float(), value.float())
        return attend(query, key, value)


class RotaryAttnProcessor(_AttnProcessor):
    """Self-attention with rotary positions."""

    def __call__(self, attn: RotaryAttention, x_BxLxC: Tensor, rotary: Rotary) -> Tensor:
        """(B, L, C) → (B, L, C)."""
        if attn.fused_projections:
            query, key, value = attn.to_qkv(x_BxLxC).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(x_BxLxC), attn.to_k(x_BxLxC), attn.to_v(x_BxLxC)
        query, key, value = (p.unflatten(-1, (attn.heads, attn.head_dim)) for p in (query, key, value))
        query = apply_rotary(attn.norm_q(query), rotary)
        if attn.train_tokens is not None:
            query = query * log_length_temperature(x_BxLxC.shape[1], attn.train_tokens, query.device)
        key = apply_rotary(attn.norm_k(key), rotary)
        return attn.to_out(self._attend(query, key, value).flatten(2).to(x_BxLxC.dtype))


class CrossAttnProcessor(_AttnProcessor):
    """Attention from the latents to a text; its tokens have their positions from the text encoder."""

    def __call__(self, attn: CrossAttention, x_BxLxC: Tensor, text: Text) -> Tensor:
        """(B, L, C) → (B, L, C)."""
        if attn.fused_projections:
            key, value = attn.to_kv(text.tokens).chunk(2, dim=-1)
        else:
            key, value = attn.to_k(text.tokens), attn.to_v(text.tokens)
        query, key, value = (p.unflatten(-1, (attn.heads, attn.head_dim)) for p in (attn.to_q(x_BxLxC), key, value))
        mask = None if text.mask is None else text.mask[:, None, None]
        attended = self._attend(attn.norm_q(query), attn.norm_k(key), value, mask)
        return attn.to_out(attended.flatten(2).to(x_BxLxC.dtype))


class RotaryAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention with normalised queries and keys and rotary positions.

    Args:
        channels: width of the tokens.
        head_dim: channels of a head.
        train_tokens: number of tokens in training; more of them are attended to with `log_length_temperature`. None
            leaves the logits alone.
    """

    _default_processor_cls = RotaryAttnProcessor
    _available_processors = [RotaryAttnProcessor]
    use_bias = False
    to_qkv: nn.Linear  # exists if the projections are fused
    processor: RotaryAttnProcessor
    set_processor: Callable[[RotaryAttnProcessor], None]

    def __init__(self, channels: int, head_dim: int, train_tokens: int | None = None) -> None:
        super().__init__()
        self.heads, self.head_dim, self.train_tokens = count_heads(channels, head_dim), head_dim, train_tokens
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(channels, channels, bias=False)
        self.to_v = Linear(channels, channels, bias=False)
        self.norm_q = TokenNorm(head_dim)
        self.norm_k = TokenNorm(head_dim)
        self.to_out = Linear(channels, channels, bias=False)
        self.set_processor(RotaryAttnProcessor())

    def forward(self, x_BxLxC: Tensor, rotary: Rotary) -> Tensor:
        """(B, L, C) → (B, L, C)."""
        return self.processor(self, x_BxLxC, rotary)


class CrossAttention(nn.Module, AttentionModuleMixin):
    """Multi-head attention to a text, with normalised queries and keys; its output starts as zero."""

    _default_processor_cls = CrossAttnProcessor
    _available_processors = [CrossAttnProcessor]
    use_bias = False
    is_cross_attention = True
    to_kv: nn.Linear  # exists if the projections are fused
    processor: CrossAttnProcessor
    set_processor: Callable[[CrossAttnProcessor], None]

    def __init__(self, channels: int, head_dim: int, text_channels: int) -> None:
        super().__init__()
        self.heads, self.head_dim = count_heads(channels, head_dim), head_dim
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(text_channels, channels, bias=False)
        self.to_v = Linear(text_channels, channels, bias=False)
        self.norm_q = TokenNorm(head_dim)
        self.norm_k = TokenNorm(head_dim)
        self.to_out = Linear(channels, channels, bias=False)
        nn.init.zeros_(self.to_out.weight)
        self.set_processor(CrossAttnProcessor())

    def forward(self, x_BxLxC: Tensor, text: Text) -> Tensor:
        """(B, L, C), text of width D → (B, L, C)."""
        return self.processor(self, x_BxLxC, text)
