"""Building blocks of the networks: norms, linear layers, residual blocks, patching, log-SNR embedding.

Shapes: spatial layers take frames folded into the batch, (B·T, C, H, W) in channels-last memory, so that time costs
nothing for an image (T = 1). Attention takes tokens (B, L, C) with L = T·H·W.

Normalisation is over the channels of each position. No statistic depends on the rest of the picture, so tiles, crops
and frames are normalised alike, and a network trained on small crops works on large images.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ul_tokenizer import _compat

# ----------------------------------------------------------------------------------------------------------------
# Shapes
# ----------------------------------------------------------------------------------------------------------------


def _copied(x: Tensor) -> Tensor:
    """A copy with the strides of its shape, which `contiguous` and `reshape` leave out for some inputs.

    Convolutions would not recognise the channels-last layout of a single frame by other strides.
    """
    return x.clone(memory_format=torch.contiguous_format)


def fold_time(x_BxCxTxHxW: Tensor) -> Tensor:
    """(B, C, T, H, W) → (B·T, C, H, W) in channels-last memory, with one copy."""
    return _copied(x_BxCxTxHxW.permute(0, 2, 3, 4, 1)).flatten(0, 1).permute(0, 3, 1, 2)


def patchify(x_BxCxTxHxW: Tensor, patch_size: int) -> Tensor:
    """(B, C, T, H, W) → (B·T, C·p², H/p, W/p) in channels-last memory.

    Channels are in the order of `pixel_unshuffle`, which only on CPUs has a kernel for this memory format. Elsewhere it
    would need two more copies than this function.
    """
    p = patch_size
    if x_BxCxTxHxW.device.type == "cpu":
        return F.pixel_unshuffle(fold_time(x_BxCxTxHxW), p)
    patches = x_BxCxTxHxW.unflatten(-2, (-1, p)).unflatten(-1, (-1, p))  # (B, C, T, H/p, p, W/p, p)
    return _copied(patches.permute(0, 2, 3, 5, 1, 4, 6)).flatten(-3).flatten(0, 1).permute(0, 3, 1, 2)


def unpatchify(x_NxCxHxW: Tensor, patch_size: int, num_frames: int) -> Tensor:
    """Patches (B·T, C·p², H/p, W/p) → a contiguous clip (B, C, T, H, W), with one copy; undoes `patchify`."""
    p = patch_size
    patches = x_NxCxHxW.unflatten(1, (-1, p, p)).unflatten(0, (-1, num_frames))  # (B, T, C, p, p, H/p, W/p)
    return _copied(patches.permute(0, 2, 1, 5, 3, 6, 4)).flatten(-2).flatten(-3, -2)


def enlarge(x_NxCxHxW: Tensor, factor: int) -> Tensor:
    """(N, C·f², H, W) → (N, C, f·H, f·W) in channels-last memory, with one copy.

    Channels are in the order of `pixel_shuffle`, which only on CPUs has a kernel for this memory format.
    """
    f = factor
    if x_NxCxHxW.device.type == "cpu":
        return F.pixel_shuffle(x_NxCxHxW, f).contiguous(memory_format=torch.channels_last)
    blocks = x_NxCxHxW.unflatten(1, (-1, f, f))  # (N, C, f, f, H, W)
    return _copied(blocks.permute(0, 4, 2, 5, 3, 1)).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def unfold_time(x_NxCxHxW: Tensor, num_frames: int) -> Tensor:
    """(B·T, C, H, W) → (B, C, T, H, W)."""
    return x_NxCxHxW.unflatten(0, (-1, num_frames)).transpose(1, 2)


def to_tokens(x_NxCxHxW: Tensor, num_frames: int) -> Tensor:
    """Frames (B·T, C, H, W) → tokens (B, T·H·W, C), without a copy if they are in channels-last memory."""
    n, c, h, w = x_NxCxHxW.shape
    return x_NxCxHxW.permute(0, 2, 3, 1).reshape(n // num_frames, num_frames * h * w, c)


def to_frames(x_BxLxC: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Tokens (B, T·H·W, C) → frames (B·T, C, H, W) in channels-last memory; `grid` is (T, H, W)."""
    t, h, w = grid
    return x_BxLxC.reshape(x_BxLxC.shape[0] * t, h, w, x_BxLxC.shape[-1]).permute(0, 3, 1, 2)


# ----------------------------------------------------------------------------------------------------------------
# Layers that always run in fp32
# ----------------------------------------------------------------------------------------------------------------

# For `_keep_in_fp32_modules`, which diffusers compares with the parts of a weight's dotted name.
FP32_MODULES = [
    *("norm_1", "norm_2", "norm_q", "norm_k", "norm_out", "norm_text", "norm_time", "norms"),
    *("logsnr_embedding", "class_embedding", "conv_out", "latent_fold"),
]


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast on the device of `x`, a tensor of any shape."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


class TokenNorm(nn.Module):
    """LayerNorm over the last dimension, computed in fp32 and returned in the dtype of its input.

    With `elementwise_affine=False` it has no weights.
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
    """A convolution that runs in fp32, for last layers, since their rounding error is that of the output."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), any float dtype → (N, C', H, W), fp32."""
        bias = None if self.bias is None else self.bias.float()
        with without_autocast(x):
            return _compat.conv2d_with(self, x.float(), self.weight.float(), bias)


class Fp32Linear(nn.Linear):
    """A linear layer that runs in fp32, whatever the dtype of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, C), any float dtype → (…, C'), fp32."""
        with without_autocast(x):
            return F.linear(x.float(), self.weight.float(), self.bias.float())


# ----------------------------------------------------------------------------------------------------------------
# Matrix products
# ----------------------------------------------------------------------------------------------------------------


class Linear(nn.Linear):
    """A linear layer that uses oneDNN for fp32 inference on CPUs.

    torch itself uses MKL there, which reaches less than half of oneDNN's speed on AMD processors
    (`benchmarks/linear.py`). In half precision torch uses oneDNN already.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, C) → (…, C')."""
        if _takes_onednn(x, self.weight):
            return _compat.onednn_linear(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's linear layer can and should be used; it has no gradient, and tracers do not know it.

    Weights of a subclass (quantised, sharded) have a linear layer of their own, and some builds of torch lack oneDNN.
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
        and _compat.onednn_linear_operator() is not None
    )


# ----------------------------------------------------------------------------------------------------------------
# Log-SNR conditioning
# ----------------------------------------------------------------------------------------------------------------


class LogSNREmbedding(nn.Module):
    """λ (B,) → (B, C): sines and cosines of λ, then two linear layers, always in fp32."""

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
    """Doubles height and width: a 1×1 convolution gives four values per channel, which become 2×2 pixels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', 2H, 2W)."""
        return enlarge(self.conv(x), 2)
