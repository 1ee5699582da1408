"""Conversion between 8-bit pixels and floats in [−1, 1]. No other module does this conversion.

An 8-bit value p is the float x = p / 127.5 − 1. Floats are rounded to the nearest 8-bit value and clamped to the range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_float(pixels: Tensor) -> Tensor:
    """uint8 of any shape → a new float32 tensor in [−1, 1]."""
    return pixels.to(torch.float32, copy=True).div_(127.5).sub_(1)


def to_uint8(pixels: Tensor) -> Tensor:
    """Floats in [−1, 1], of any shape → uint8; values outside are clamped."""
    return pixels.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def frame_to_uint8(frame: np.ndarray[Any, np.dtype[np.uint8]] | Image.Image) -> Tensor:
    """An 8-bit RGB frame, as an array (H, W, 3) or a Pillow image → (3, H, W) uint8."""
    return torch.from_numpy(np.array(frame)).permute(2, 0, 1).contiguous()


def frame_to_float(frame: np.ndarray[Any, np.dtype[np.uint8]] | Image.Image) -> Tensor:
    """An 8-bit frame, as an array (H, W, 3) or a Pillow image of any mode → (3, H, W) float32 in [−1, 1]."""
    if isinstance(frame, Image.Image) and frame.mode != "RGB":
        frame = frame.convert("RGB")
    return to_float(frame_to_uint8(frame))


def to_image(tensor: Tensor) -> Image.Image:
    """(3, H, W) floats in [−1, 1] → 8-bit image; the inverse of `frame_to_float`.

    Raises:
        ValueError: The tensor has another shape.
    """
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(f"tensor must have the shape (3, H, W), got {tuple(tensor.shape)}.")
    return Image.fromarray(to_uint8(tensor).permute(1, 2, 0).contiguous().cpu().numpy())
