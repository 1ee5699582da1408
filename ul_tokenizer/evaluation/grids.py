"""Pictures for comparison: originals and reconstructions in a grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.media.pixels import to_image


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
