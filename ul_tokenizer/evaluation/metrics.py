"""PSNR with two kinds of mean, and grids of pictures for comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.media.pixels import to_image

PEAK_TO_PEAK = 2.0  # of pixels in [−1, 1]


def mean_squared_errors(reference: Tensor, reconstruction: Tensor) -> Tensor:
    """MSE per sample (B,), of pixels (B, …) in [−1, 1]; the reconstruction is clamped to that range first."""
    difference = reconstruction.float().clamp(-1, 1) - reference.float()
    return difference.square().flatten(1).mean(1)


def psnr_of_mean_mse(reference: Tensor, reconstruction: Tensor) -> float:
    """PSNR in dB of the mean MSE of all samples. It is dominated by the worst samples, so it is the stricter mean."""
    return _psnr(float(mean_squared_errors(reference, reconstruction).mean()))


def mean_psnr(reference: Tensor, reconstruction: Tensor) -> float:
    """Mean over samples of their PSNR in dB."""
    errors = mean_squared_errors(reference, reconstruction).tolist()
    return sum(map(_psnr, errors)) / len(errors)


def _psnr(mse: float) -> float:
    return 10 * math.log10(PEAK_TO_PEAK**2 / mse) if mse > 0 else math.inf


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
