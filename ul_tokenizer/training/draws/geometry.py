"""Which part of an image becomes a crop: a window at the image's own scale, or a part of the scaled-down image."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

Size = tuple[int, int]
"""Width and height, in pixels."""
Scaling = Literal["native", "short_side"]
# JPEGs are decoded at no less than this times the size to which they are then scaled. `encode-dataset` leaves twice
# the size; the difference between the two was 41 dB for noise with the spectrum of photographs.
DECODED_GAP = 1.0


class Chance(NamedTuple):
    """What is random about a crop: four numbers, uniform between 0 and 1."""

    scale: float
    x: float
    y: float
    flip: float

    @classmethod
    def of(cls, random: np.random.Generator, center: bool) -> Chance:
        """Draws the numbers; a crop at the centre has a random scale only."""
        scale, x, y, flip = random.random(4)
        return cls(scale, 0.5, 0.5, flip) if center else cls(scale, x, y, flip)


def native_crop(image: Image.Image, side: int, scale: tuple[float, float], chance: Chance) -> Image.Image:
    """A square window of the image, scaled by a factor between two bounds.

    Args:
        image: The image.
        side: Height and width of the result, in pixels.
        scale: Lowest and highest factor, drawn log-uniformly. The factor is raised if the crop would not fit
            otherwise; only images smaller than the crop are enlarged.
        chance: Place and factor.
    """
    lowest, highest = scale
    factor = max(lowest * (highest / lowest) ** chance.scale, side / min(image.size))
    box_side = min(side / factor, *image.size)  # in the image; min() guards against rounding
    # The corner is a whole pixel, so that a crop at scale 1 is not interpolated.
    left = int(chance.x * (int(image.width - box_side) + 1))
    top = int(chance.y * (int(image.height - box_side) + 1))
    box = (left, top, left + box_side, top + box_side)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)


def short_side_crop(image: Image.Image, size: Size, lowest: float, chance: Chance) -> Image.Image:
    """A part of the image, which is scaled so that the crop covers a fraction s of what it could cover at most.

    With s = 1, the crop of a square has the whole shorter side of the image, and its pixels are those that
    `encode-dataset` encodes, unless the image is a JPEG of at least twice the size; see `decoded_side`.

    Args:
        image: The image, which may be reduced already.
        size: Size of the result.
        lowest: Lowest s, which is drawn log-uniformly between this and 1.
        chance: Place and s.
    """
    width, height = size
    scale = max(width / image.width, height / image.height) / _fraction(lowest, chance)
    scaled = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = _corner(chance.x, scaled[0] - width), _corner(chance.y, scaled[1] - height)
    if lowest == 1:
        whole = image
        if scaled != image.size:
            whole = image.resize(scaled, Image.Resampling.LANCZOS, reducing_gap=3.0)
        return whole.crop((left, top, left + width, top + height))
    # Only what the crop shows is scaled.
    across, down = image.width / scaled[0], image.height / scaled[1]
    right, bottom = min((left + width) * across, image.width), min((top + height) * down, image.height)
    box = (left * across, top * down, right, bottom)
    return image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)


def decoded_side(size: Size, lowest: float, chance: Chance) -> int:
    """The `shorter_side` at which `read_image` leaves enough pixels for `short_side_crop`."""
    return math.ceil(DECODED_GAP * min(size) / _fraction(lowest, chance) / 2)


def mirrored(crop: Image.Image, chance: Chance) -> Image.Image:
    """The crop, mirrored with probability 0.5."""
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if chance.flip < 0.5 else crop


def _fraction(lowest: float, chance: Chance) -> float:
    """s, between `lowest` and 1."""
    return float(lowest**chance.scale)


def _corner(place: float, free: int) -> int:
    """A whole number from 0 to `free`; for a place of 0.5 it is rounded down, as `encode-dataset` rounds."""
    return max(0, math.ceil(place * (free + 1)) - 1)
