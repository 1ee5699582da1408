"""Pictures for comparison: originals and reconstructions in a grid, and their difference."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.media.pixels import to_image

GREY = 128  # where a reconstruction is exact


def comparison_grid(rows: Sequence[Tensor], columns: int, gap: int = 2) -> Image.Image:
    """Arranges pictures in a grid: line k shows rows[k].

    Args:
        rows: tensors (B, 3, H, W) in [−1, 1], e.g. originals and reconstructions.
        columns: pictures per line; further pictures are left out.
        gap: width of the white lines between pictures, in pixels.

    Returns:
        an RGB image.
    """
    strips = [torch.nn.functional.pad(row[:columns].float().cpu(), (0, gap, 0, gap), value=1.0) for row in rows]
    lines = [torch.cat(list(strip), dim=-1) for strip in strips]
    return to_image(torch.cat(lines, dim=-2))


def difference_picture(reference: Tensor, reconstruction: Tensor, gain: float = 4) -> Image.Image:
    """Shows where a reconstruction differs: grey where it is exact, brighter where it is too bright.

    Args:
        reference: (3, H, W), uint8.
        reconstruction: the same shape and dtype.
        gain: factor of the difference; what leaves the range of 8 bits is clamped.

    Returns:
        an RGB image of 128 + gain · (reconstruction − reference).

    Raises:
        ValueError: another shape or dtype.
    """
    for name, picture in (("reference", reference), ("reconstruction", reconstruction)):
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3:
            raise ValueError(f"{name} must be (3, H, W) in uint8, got {tuple(picture.shape)} in {picture.dtype}.")
    if reference.shape != reconstruction.shape:
        shapes = tuple(reference.shape), tuple(reconstruction.shape)
        raise ValueError(f"reconstruction must have the reference's shape {shapes[0]}, got {shapes[1]}.")
    difference = reconstruction.cpu().float() - reference.cpu().float()
    pixels = (GREY + gain * difference).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
