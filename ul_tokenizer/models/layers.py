"""Building blocks of the networks: norms, residual blocks, rotary attention, patching, log-SNR embedding.

Shapes: spatial layers see frames folded into the batch, (B·T, C, H, W) in channels-last memory, so that an image
(T = 1) pays nothing for time; attention sees tokens (B, L, C) with L = T·H·W.

Normalisation is over channels at each position: no statistic spans the picture, so tiles, crops and frames
are normalised alike, and a network trained on small crops keeps its meaning on large images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

# ----------------------------------------------------------------------------------------------------------------
# Shapes
# ----------------------------------------------------------------------------------------------------------------


def fold_time(x_BxCxTxHxW: Tensor) -> Tensor:
    """(B, C, T, H, W) → (B·T, C, H, W), channels-last."""
    b, c, t, h, w = x_BxCxTxHxW.shape
    frames = x_BxCxTxHxW.transpose(1, 2).reshape(b * t, c, h, w)
    # Not `contiguous`, which leaves the strides of a single frame as they came: convolutions then miss the layout.
    return frames.clone(memory_format=torch.channels_last)


def unfold_time(x_NxCxHxW: Tensor, num_frames: int) -> Tensor:
    """(B·T, C, H, W) → (B, C, T, H, W)."""
    return x_NxCxHxW.unflatten(0, (-1, num_frames)).transpose(1, 2)


def to_tokens(x_NxCxHxW: Tensor, num_frames: int) -> Tensor:
    """Frames (B·T, C, H, W) → tokens (B, T·H·W, C); free of copies in channels-last memory."""
    n, c, h, w = x_NxCxHxW.shape
    return x_NxCxHxW.permute(0, 2, 3, 1).reshape(n // num_frames, num_frames * h * w, c)


def to_frames(x_BxLxC: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Tokens (B, T·H·W, C) → frames (B·T, C, H, W) in channels-last memory; `grid` is (T, H, W)."""
    t, h, w = grid
    return x_BxLxC.reshape(x_BxLxC.shape[0] * t, h, w, x_BxLxC.shape[-1]).permute(0, 3, 1, 2)


# ----------------------------------------------------------------------------------------------------------------
# What always runs in fp32
# ----------------------------------------------------------------------------------------------------------------

# For `_keep_in_fp32_modules`, where diffusers compares whole parts of a weight's dotted name.
FP32_MODULES = ["norm_1", "norm_2", "norm_q", "norm_k", "norm_out", "norms", "logsnr_embedding", "conv_out"]


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast off on the device of `x`."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


class TokenNorm(nn.Module):
    """LayerNorm over the last dimension, in fp32, returned in the dtype that came.

    `elementwise_affine=False` has no weights.
    """

    def __init__(self, channels: int, elementwise_affine: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        self.weight = nn.Parameter(torch.ones(channels)) if elementwise_affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C)."""
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        return F.layer_norm(x.float(), (self.channels,), weight, bias, self.eps).to(x.dtype)


class ChannelNorm(TokenNorm):
    """`TokenNorm` over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class OutputConv(nn.Conv2d):
    """A convolution that runs in fp32: the last layer, whose rounding would be the output's."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), any float dtype → (N, C', H, W), fp32."""
        bias = None if self.bias is None else self.bias.float()
        with without_autocast(x):
            return self._conv_forward(x.float(), self.weight.float(), bias)


class Fp32Linear(nn.Linear):
    """A linear layer that runs in fp32, whatever dtype its weights were cast to."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, C), any float dtype → (…, C'), fp32."""
        with without_autocast(x):
            return F.linear(x.float(), self.weight.float(), self.bias.float())


# ----------------------------------------------------------------------------------------------------------------
# Matrix products
# ----------------------------------------------------------------------------------------------------------------


class Linear(nn.Linear):
    """A linear layer that takes oneDNN for fp32 inference on CPUs.

    torch's own choice there is MKL, which on AMD processors runs at less than half of oneDNN's rate
    (`benchmarks/linear.py`); in half precision torch takes oneDNN by itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C')."""
        if _takes_onednn(x, self.weight):
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's linear layer, which has no gradient and is unknown to tracers, can and should be taken.

    Weights of a subclass (quantised, sharded) bring their own linear layer; some builds of torch lack oneDNN's.
    """
    return (
        type(weight) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


# ----------------------------------------------------------------------------------------------------------------
# Log-SNR conditioning
# ----------------------------------------------------------------------------------------------------------------


class LogSNREmbedding(nn.Module):
    """λ (B,) → (B, C): sines and cosines of λ, then two linear layers; in fp32 whatever the rest runs in."""

    num_frequencies = 64

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear_1 = Fp32Linear(2 * self.num_frequencies, channels)
        self.linear_2 = Fp32Linear(channels, channels)

    def forward(self, logsnr: Tensor) -> Tensor:
        """(B,) → (B, C), fp32."""
        # Periods from 2π/8 to 2π·40: λ spans about ±15, its fine structure about 1.
        exponents = torch.linspace(math.log(1 / 40), math.log(8), self.num_frequencies, device=logsnr.device)
        angles = logsnr.float()[:, None] * exponents.exp()
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.linear_2(F.silu(self.linear_1(waves)))


# ----------------------------------------------------------------------------------------------------------------
# Convolutional blocks
# ----------------------------------------------------------------------------------------------------------------


class _ResidualLayers(nn.Module):
    """The layers of a residual block."""

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_1 = ChannelNorm(channels)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_2 = ChannelNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv_2.weight)


class EncoderResidualBlock(_ResidualLayers):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        h = self.conv_1(F.silu(self.norm_1(x)))
        return x + self.conv_2(self.dropout(F.silu(self.norm_2(h))))


class DecoderResidualBlock(_ResidualLayers):
    """The residual block with its second norm scaled and shifted by the log-SNR embedding."""

    def __init__(self, channels: int, embedding_channels: int, dropout: float = 0.0) -> None:
        super().__init__(channels, dropout)
        self.modulation = nn.Linear(embedding_channels, 2 * channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(N, C, H, W), (N, E) → (N, C, H, W)."""
        modulation = self.modulation(embedding.to(self.modulation.weight.dtype)).to(x.dtype)
        scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
        h = self.norm_2(self.conv_1(F.silu(self.norm_1(x))))
        h = F.silu(torch.addcmul(shift, h, 1 + scale))
        return x + self.conv_2(self.dropout(h))


class Downsample(nn.Conv2d):
    """Halves height and width: a 2×2 convolution of stride 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2)


class Upsample(nn.Module):
    """Doubles height and width: a 1×1 convolution to four channels each, laid out as 2×2 pixels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', 2H, 2W)."""
        return F.pixel_shuffle(self.conv(x), 2).contiguous(memory_format=torch.channels_last)


# ----------------------------------------------------------------------------------------------------------------
# Transformer
# ----------------------------------------------------------------------------------------------------------------


def rotary_table(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (L, head_dim/2) fp32, of rotary positions in three axes; grid is (T, H, W), L = T·H·W.

    A quarter of the pairs turns with time, the rest in halves with height and width.
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


def apply_rotary(x_BxLxNxD: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turns the pairs (x_i, x_{i + D/2}) of every head by the position's angles."""
    cos, sin = (table[None, :, None, :].to(x_BxLxNxD.dtype) for table in rotary)
    a, b = x_BxLxNxD.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class RotaryAttnProcessor:
    """Self-attention on (B, L, heads, head_dim) through diffusers' dispatch, so that `set_attention_backend` works."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attn: RotaryAttention, x_BxLxC: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Attends within x; shapes in and out are (B, L, C)."""
        if attn.fused_projections:
            query, key, value = attn.to_qkv(x_BxLxC).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(x_BxLxC), attn.to_k(x_BxLxC), attn.to_v(x_BxLxC)
        query, key, value = (p.unflatten(-1, (attn.heads, attn.head_dim)) for p in (query, key, value))
        query = apply_rotary(attn.norm_q(query), rotary)
        key = apply_rotary(attn.norm_k(key), rotary)
        return attn.to_out(self._attend(query, key, value).flatten(2).to(x_BxLxC.dtype))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention on (B, L, heads, head_dim) by the chosen backend."""

        def attend(*tensors: Tensor) -> Tensor:
            return dispatch_attention_fn(
                *tensors, backend=self._attention_backend, parallel_config=self._parallel_config
            )

        # On CPUs the backward pass of half-precision attention takes two to ten times as long as that of fp32.
        if query.device.type == "cpu" and query.requires_grad:
            with torch.autocast("cpu", enabled=False):
                return attend(query.float(), key.float(), value.float())
        return attend(query, key, value)


class RotaryAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention with normalised queries and keys and rotary positions."""

    _default_processor_cls = RotaryAttnProcessor
    _available_processors = [RotaryAttnProcessor]
    use_bias = False
    to_qkv: nn.Linear  # where the projections are fused
    processor: RotaryAttnProcessor
    set_processor: Callable[[RotaryAttnProcessor], None]

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        if channels % head_dim or head_dim % 2:
            raise ValueError(f"attention head_dim must be even and divide the {channels} channels, got {head_dim}.")
        self.heads, self.head_dim = channels // head_dim, head_dim
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(channels, channels, bias=False)
        self.to_v = Linear(channels, channels, bias=False)
        self.norm_q = TokenNorm(head_dim)
        self.norm_k = TokenNorm(head_dim)
        self.to_out = Linear(channels, channels, bias=False)
        self.set_processor(RotaryAttnProcessor())

    def forward(self, x_BxLxC: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """(B, L, C) → (B, L, C)."""
        return self.processor(self, x_BxLxC, rotary)


class FeedForward(nn.Module):
    """C → 4C → C with SiLU, which costs a quarter of a tanh GELU on CPUs."""

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

    The modulation is one projection shared by all blocks of a stage plus a learned table per block
    (PixArt-α's adaLN-single), which keeps a block at 12 C² weights.
    """

    def __init__(self, channels: int, head_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_1 = TokenNorm(channels, elementwise_affine=False)
        self.attn = RotaryAttention(channels, head_dim)
        self.norm_2 = TokenNorm(channels, elementwise_affine=False)
        self.feed_forward = FeedForward(channels, dropout)
        self.dropout = nn.Dropout(dropout)
        self.modulation_table = nn.Parameter(torch.randn(6, channels) / math.sqrt(channels))

    def forward(self, x_BxLxC: Tensor, modulation_Bx6xC: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """(B, L, C), (B, 6, C) → (B, L, C)."""
        modulation = (modulation_Bx6xC + self.modulation_table).to(x_BxLxC.dtype)
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = modulation[:, :, None].unbind(1)
        h = self.attn(torch.addcmul(shift_1, self.norm_1(x_BxLxC), 1 + scale_1), rotary)
        x_BxLxC = torch.addcmul(x_BxLxC, gate_1, self.dropout(h))
        h = self.feed_forward(torch.addcmul(shift_2, self.norm_2(x_BxLxC), 1 + scale_2))
        return torch.addcmul(x_BxLxC, gate_2, self.dropout(h))


class TransformerStage(nn.Module):
    """A run of transformer blocks at one width, with the projection of the conditioning that they share."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(self, channels: int, num_layers: int, head_dim: int, embedding_channels: int, dropout: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.modulation = nn.Linear(embedding_channels, 6 * channels)
        self.blocks = nn.ModuleList([TransformerBlock(channels, head_dim, dropout) for _ in range(num_layers)])
        nn.init.zeros_(self.modulation.weight)
        with torch.no_grad():  # gates start open, as in a plain pre-norm transformer
            self.modulation.bias.zero_().unflatten(0, (6, channels))[[2, 5]] = 1.0

    def forward(self, x_BxLxC: Tensor, embedding: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """(B, L, C), (B, E) → (B, L, C); `grid` is (T, H, W) with T·H·W = L."""
        modulation = self.modulation(embedding.to(self.modulation.weight.dtype)).unflatten(-1, (6, -1))
        rotary = rotary_table(grid, self.head_dim, x_BxLxC.device)
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x_BxLxC = self._gradient_checkpointing_func(block, x_BxLxC, modulation, rotary)
            else:
                x_BxLxC = block(x_BxLxC, modulation, rotary)
        return x_BxLxC
