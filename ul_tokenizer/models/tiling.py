"""Spatial tiling: overlapping tiles, blended with linear ramps onto one canvas, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """Tiles of one axis: evenly spread, overlapping by at least `overlap`, covering [0, length) exactly.

    All numbers are in units of the latent grid, so that a tile means the same pixels and latents.
    """

    length: int
    tile: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 <= 2 * self.overlap < self.tile:
            raise ValueError(
                f"the tile overlap must be at least 0 and below half of the tile, got {self.overlap} of {self.tile}."
            )

    @property
    def starts(self) -> list[int]:
        """First position of every tile."""
        free = self.length - self.tile
        if free <= 0:
            return [0]
        steps = math.ceil(free / (self.tile - self.overlap))
        return [round(i * free / steps) for i in range(steps + 1)]

    @property
    def spans(self) -> list[slice]:
        """The tiles, as slices."""
        return [slice(start, min(start + self.tile, self.length)) for start in self.starts]

    def weights(self, scale: int, device: torch.device) -> list[Tensor]:
        """Blending weight of every tile, (tile · scale,) fp32 each: ramps over `overlap` that sum to 1 everywhere."""
        position = (torch.arange(self.length * scale, device=device) + 0.5) / scale
        ramp_width = max(self.overlap, 0.5 / scale)
        ramps = []
        for span in self.spans:
            rising = (position - span.start) / ramp_width if span.start else torch.ones_like(position)
            falling = (span.stop - position) / ramp_width if span.stop < self.length else torch.ones_like(position)
            ramps.append(torch.minimum(rising, falling).clamp(0, 1))
        total = torch.stack(ramps).sum(0)
        return [
            (ramp / total)[span.start * scale : span.stop * scale] for ramp, span in zip(ramps, self.spans, strict=True)
        ]


def blend_tiles(function: Callable[[slice, slice], Tensor], rows: Axis, columns: Axis, scale: int) -> Tensor:
    """Runs `function` on every tile and blends its outputs.

    Args:
        function: maps the (rows, columns) slices of a tile to its output (…, tile height · scale, tile width · scale).
        rows: the vertical tiles.
        columns: the horizontal tiles.
        scale: output positions per unit of the axes.

    Returns:
        (…, rows.length · scale, columns.length · scale), in the dtype of the outputs.
    """
    canvas: Tensor | None = None
    for row, row_weight in zip(rows.spans, _weights(rows, scale), strict=True):
        for column, column_weight in zip(columns.spans, _weights(columns, scale), strict=True):
            output = function(row, column)
            if canvas is None:
                canvas = output.new_zeros(*output.shape[:-2], rows.length * scale, columns.length * scale)
            weight = (row_weight[:, None] * column_weight).to(output)
            target = canvas[..., _scaled(row, scale), _scaled(column, scale)]
            target += output * weight
    assert canvas is not None  # an axis has at least one tile
    return canvas


def _weights(axis: Axis, scale: int) -> list[Tensor]:
    return axis.weights(scale, torch.device("cpu"))


def _scaled(span: slice, scale: int) -> slice:
    return slice(span.start * scale, span.stop * scale)


# ---------------------------------------------------------------- for a network


class TilingMixin:
    """`enable_tiling` with the arguments of diffusers' autoencoders."""

    use_tiling: bool
    spatial_compression_ratio: int
    tile_sample_min_height: int
    tile_sample_min_width: int
    tile_overlap_factor: float

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_overlap_factor: float | None = None,
    ) -> None:
        """Encodes and decodes pictures larger than a tile in overlapping, blended tiles, in the memory of one tile.

        Args:
            tile_sample_min_height: height of a tile in pixels; rounded down to the compression ratio.
            tile_sample_min_width: width of a tile in pixels; likewise.
            tile_overlap_factor: smallest overlap of two tiles as a fraction of a tile, in [0, 0.5).

        Raises:
            ValueError: a tile smaller than the compression ratio, or an overlap outside [0, 0.5).
        """
        height = self.tile_sample_min_height if tile_sample_min_height is None else tile_sample_min_height
        width = self.tile_sample_min_width if tile_sample_min_width is None else tile_sample_min_width
        overlap = self.tile_overlap_factor if tile_overlap_factor is None else tile_overlap_factor
        if min(height, width) < self.spatial_compression_ratio:
            raise ValueError(
                f"tile_sample_min_height and tile_sample_min_width must be at least {self.spatial_compression_ratio}, "
                f"got {height} and {width}."
            )
        if not 0 <= overlap < 0.5:
            raise ValueError(f"tile_overlap_factor must be at least 0 and below 0.5, got {overlap}.")
        self.tile_sample_min_height, self.tile_sample_min_width = height, width
        self.tile_overlap_factor = overlap
        self.use_tiling = True

    def _axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        """The tiles of an (h, w) latent grid."""
        ratio = self.spatial_compression_ratio
        tiles = (self.tile_sample_min_height // ratio, self.tile_sample_min_width // ratio)
        rows, columns = (
            Axis(length, tile, int(tile * self.tile_overlap_factor))
            for length, tile in zip((height, width), tiles, strict=True)
        )
        return rows, columns
