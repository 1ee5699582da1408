"""Sizes of equal area but different aspect ratios, and which of them suits an image."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ul_tokenizer.sources.sizes import Sizes
from ul_tokenizer.training.draws.geometry import Size

LARGEST_RATIO = 2.0  # of the longer side to the shorter one; longer images are cropped

Numbers = np.ndarray[Any, np.dtype[np.int64]]


class AspectBuckets(NamedTuple):
    """The sizes of crops, and which one each image has."""

    sizes: tuple[Size, ...]
    of_image: Numbers  # (N,), the number of each image's size

    @classmethod
    def of(cls, images: Sizes, resolution: int, multiple: int) -> AspectBuckets:
        """Chooses for each image the size whose aspect ratio is the nearest.

        Args:
            images: (N, 2), width and height; images that can't be read, with zeros, get a square.
            resolution: Side of the square, whose area all sizes have about.
            multiple: Sides are multiples of this.

        Raises:
            ValueError: The resolution is not a multiple.
        """
        sizes = bucket_sizes(resolution, multiple)
        ratios = np.array([np.log(width / height) for width, height in sizes])
        readable = np.where(images > 0, images, 1).astype(np.float64)
        wanted = np.log(readable[:, 0] / readable[:, 1])
        middles = (ratios[1:] + ratios[:-1]) / 2
        return cls(sizes, np.searchsorted(middles, wanted).astype(np.int64))

    def size_of(self, image: int) -> Size:
        """Width and height of an image's crops."""
        return self.sizes[self.of_image[image]]


def bucket_sizes(resolution: int, multiple: int) -> tuple[Size, ...]:
    """All sizes with about `resolution`² pixels, sides that are multiples and ratios up to 2, from narrow to wide.

    Raises:
        ValueError: The resolution is not a multiple.
    """
    if resolution % multiple:
        raise ValueError(f"resolution must be a multiple of {multiple}, got {resolution}.")
    found: dict[float, Size] = {}  # by aspect ratio, so that each is there once
    for long in range(resolution, int(LARGEST_RATIO * resolution) + 1, multiple):
        short = round(resolution**2 / long / multiple) * multiple
        if short and long <= LARGEST_RATIO * short:
            found[long / short], found[short / long] = (long, short), (short, long)
    return tuple(size for _, size in sorted(found.items()))
