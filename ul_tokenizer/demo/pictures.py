"""Pictures of what can't be seen: where a reconstruction is wrong, and what the channels of a latent hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.media.pixels import to_uint8

ERROR_LEVELS = 48  # the mean absolute error, of 255, that has the last colour
LATENT_RANGE = 3.0  # values of a latent from black to white; latents are near unit scale
GAP, PAPER = 2, 255


def error_map(original: Tensor, again: Tensor) -> Image.Image:
    """Mean absolute error of the channels of two images (3, H, W) uint8, from black (none) to yellow."""
    from matplotlib import colormaps

    error = (original.int() - again.int()).abs().float().mean(0).div(ERROR_LEVELS).clamp(0, 1)
    colours = colormaps["inferno"](error.numpy(), bytes=True)
    return Image.fromarray(np.ascontiguousarray(colours[..., :3]))


def channel_grid(latent: Tensor, side: int = 512) -> Image.Image:
    """The channels of a latent (c, h, w) as grey pictures: black is −3, grey is 0 and white is 3.

    Args:
        latent: z_clean.
        side: the longer side in pixels that each channel is enlarged towards, divided by the number of columns.
    """
    columns = math.ceil(math.sqrt(len(latent)))
    grey = to_uint8(latent.float().cpu() / LATENT_RANGE)
    scale = max(1, side // (columns * max(grey.shape[-2:])))
    tiles = grey.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    return grid([Image.fromarray(tile.numpy()) for tile in tiles], columns)


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Images of one size in rows, with white lines between them."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    size = columns * (width + GAP) - GAP, rows * (height + GAP) - GAP
    sheet = Image.new(images[0].mode, size, PAPER if images[0].mode == "L" else (PAPER,) * 3)
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * (width + GAP), number // columns * (height + GAP)))
    return sheet


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """A small image, enlarged by a whole number towards a side; its pixels stay visible."""
    scale = max(1, side // max(image.size))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def as_image(pixels: Tensor) -> Image.Image:
    """(3, H, W) uint8 → image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def generator(seed: int) -> list[torch.Generator]:
    """The generator of all noise for a batch of one."""
    return [torch.Generator().manual_seed(seed)]
