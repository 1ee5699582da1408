"""Spatial tiling: overlapping tiles, blended with linear ramps onto one canvas, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """Tiles of one axis: evenly spread, overlapping by at least `overlap`, covering [0, length) exactly.

    All numbers are in units of the latent grid, so that a tile covers the same area of pixels and of latents.

    Raises:
        ValueError: an overlap that is negative or not below half of the tile.
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
    def is_one_tile(self) -> bool:
        """Whether a single tile covers the axis."""
        return self.length <= self.tile

    @property
    def starts(self) -> list[int]:
        """First position of every tile."""
        if self.is_one_tile:
            return [0]
        free = self.length - self.tile
        steps = math.ceil(free / (self.tile - self.overlap))
        return [round(i * free / steps) for i in range(steps + 1)]

    @property
    def spans(self) -> list[slice]:
        """The tiles, as slices."""
        return [slice(start, min(start + self.tile, self.length)) for start in self.starts]

    def weights(self, scale: int) -> list[Tensor]:
        """Blending weight of every tile, (scale · L,) fp32 for length L: ramps over `overlap` that sum to 1."""
        position = (torch.arange(self.length * scale, device="cpu") + 0.5) / scale
        ramp_width = max(self.overlap, 0.5 / scale)
        ramps = []
        for span in self.spans:
            rising = (position - span.start) / ramp_width if span.start else torch.ones_like(position)
            falling = (span.stop - position) / ramp_width if span.stop < self.length else torch.ones_like(position)
            ramps.append(torch.minimum(rising, falling).clamp(0, 1))
        total = torch.stack(ramps).sum(0)
        return [(ramp / total)[_scaled(span, scale)] for ramp, span in zip(ramps, self.spans, strict=True)]


@dataclass(frozen=True)
class Tile:
    """A rectangle of the latent grid."""

    rows: slice
    columns: slice

    def of(self, picture: Tensor, scale: int = 1) -> Tensor:
        """Cuts the tile (…, scale · H, scale · W) out of a picture with `scale` positions per latent."""
        return picture[..., _scaled(self.rows, scale), _scaled(self.columns, scale)]


WHOLE = Tile(slice(None), slice(None))  # without numbers, so that a compiled network does not depend on the size


@dataclass(frozen=True)
class TileGrid:
    """The tiles that cover an (h, w) latent grid, row by row."""

    rows: Axis
    columns: Axis

    @classmethod
    def whole(cls, height: int, width: int) -> TileGrid:
        """A single tile."""
        return cls(Axis(height, height, 0), Axis(width, width, 0))

    @classmethod
    def overlapping(cls, size: tuple[int, int], tile: tuple[int, int], overlap_factor: float) -> TileGrid:
        """Tiles of (height, width) `tile` that overlap by at least `overlap_factor` of a tile."""
        height, width = (Axis(size[i], tile[i], int(tile[i] * overlap_factor)) for i in range(2))
        return cls(height, width)

    @property
    def is_one_tile(self) -> bool:
        """Whether a single tile covers the grid."""
        return self.rows.is_one_tile and self.columns.is_one_tile

    @property
    def tiles(self) -> list[Tile]:
        """All tiles."""
        if self.is_one_tile:
            return [WHOLE]
        return [Tile(rows, columns) for rows in self.rows.spans for columns in self.columns.spans]

    def blend(self, outputs: Iterable[Tensor], scale: int) -> Tensor:
        """Blends a network's outputs for all tiles.

        Args:
            outputs: one output (…, tile height · scale, tile width · scale) per tile, in the order of `tiles`. If they
                are computed lazily, only one of them is in memory at a time.
            scale: output positions per unit of the latent grid.

        Returns:
            (…, h · scale, w · scale), in the dtype of the outputs. The output of a single tile is returned as it is.
        """
        if self.is_one_tile:
            (output,) = outputs
            return output
        canvas: Tensor | None = None
        for tile, weight, output in zip(self.tiles, self._weights(scale), outputs, strict=True):
            if canvas is None:
                canvas = output.new_zeros(*output.shape[:-2], self.rows.length * scale, self.columns.length * scale)
            tile.of(canvas, scale).add_(output * weight.to(output))
        assert canvas is not None  # a grid has at least one tile
        return canvas

    def _weights(self, scale: int) -> Iterable[Tensor]:
        """Blending weights (tile height · scale, tile width · scale) of all tiles, one at a time."""
        columns = self.columns.weights(scale)
        return (row[:, None] * column for row in self.rows.weights(scale) for column in columns)


def _scaled(span: slice, factor: int) -> slice:
    return span if span == slice(None) else slice(span.start * factor, span.stop * factor)
