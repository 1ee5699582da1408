"""Clips of a photograph by a virtual camera that moves, turns and zooms, with something in the foreground."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.media.pixels import frame_to_uint8

# Per frame, in pixels of the clip. Small motions are drawn more often than large ones, as in real videos.
MAX_SPEED, MAX_ACCELERATION = 3.0, 0.15
MAX_TURN = math.radians(2.0)
MAX_LOG_ZOOM = 0.03
MAX_DEPTH = 3.0  # how many times faster than the background the foreground may move
BLOB_CELLS = 3  # a foreground is a few blobs of about a third of the picture
EDGE = 25.0  # steepness of its edges


class View(NamedTuple):
    """What the camera sees in a frame, in pixels of the clip."""

    shift: tuple[float, float]  # of its centre, to the right and down
    turn: float  # radians
    zoom: float  # 1 in the middle of the clip


class Motion(NamedTuple):
    """How a camera moves; all rates are per frame."""

    velocity: tuple[float, float]
    acceleration: tuple[float, float]
    turn: float
    log_zoom: float

    @classmethod
    def of(cls, random: np.random.Generator) -> Motion:
        """A random motion."""
        velocity = _in_any_direction(MAX_SPEED * random.random() ** 2, random)
        acceleration = _in_any_direction(MAX_ACCELERATION * random.random() ** 2, random)
        return cls(velocity, acceleration, MAX_TURN * _signed_cube(random), MAX_LOG_ZOOM * _signed_cube(random))

    def times(self, factor: float) -> Motion:
        """The motion of something nearer, which seems to move more; it turns and grows with the picture."""
        (vx, vy), (ax, ay) = self.velocity, self.acceleration
        return self._replace(velocity=(vx * factor, vy * factor), acceleration=(ax * factor, ay * factor))

    def views(self, num_frames: int) -> list[View]:
        """The view of each frame; the middle of the clip is where the camera stands upright."""
        times = [k - (num_frames - 1) / 2 for k in range(num_frames)]
        axes = list(zip(self.velocity, self.acceleration, strict=True))
        shifts = [tuple(v * t + a * t * t / 2 for v, a in axes) for t in times]
        return [
            View((shift[0], shift[1]), self.turn * t, math.exp(self.log_zoom * t))
            for shift, t in zip(shifts, times, strict=True)
        ]


def _in_any_direction(length: float, random: np.random.Generator) -> tuple[float, float]:
    angle = 2 * math.pi * random.random()
    return length * math.cos(angle), length * math.sin(angle)


def _signed_cube(random: np.random.Generator) -> float:
    return float((2 * random.random() - 1) ** 3)


def film(
    image: Image.Image,
    side: int,
    num_frames: int,
    scale: tuple[float, float],
    random: np.random.Generator,
    layer_fraction: float = 0.0,
) -> Tensor:
    """A clip of a camera that speeds up or slows down, turns and zooms over an image, within the image's borders.

    Args:
        image: The image.
        side: Height and width of the result, in pixels.
        num_frames: Number of frames T.
        scale: Lowest and highest factor by which the image is scaled, as in `RandomCropDataset`.
        random: Source of everything that varies.
        layer_fraction: Fraction of the clips with a foreground: blobs of another part of the image, which move in the
            same direction and faster.

    Returns:
        (3, T, side, side), uint8.
    """
    low, high = scale
    factor, motion = low * (high / low) ** random.random(), Motion.of(random)
    frames = shoot(image, side, motion.views(num_frames), factor, random)
    if random.random() < layer_fraction:
        views = motion.times(1 + (MAX_DEPTH - 1) * random.random()).views(num_frames)
        near = shoot(image, side, views, factor, random)
        masks = shoot(_blobs(side, random), side, views, 1.0, random)
        frames = [Image.composite(*parts) for parts in zip(near, frames, masks, strict=True)]
    return torch.stack([frame_to_uint8(frame) for frame in frames], dim=1)


def shoot(
    image: Image.Image, side: int, views: list[View], factor: float, random: np.random.Generator
) -> list[Image.Image]:
    """Views of a random part of an image.

    Args:
        image: The image.
        side: Height and width of a view, in pixels.
        views: What to see; the middle of all of them is a random place.
        factor: The image is scaled by it, or by more where it is too small for all views.
        random: Source of the place.
    """
    reach = max(_reach(view, side) for view in views)
    box_side = min(2 * reach / factor, *image.size)
    left, top = ((free - box_side) * random.random() for free in image.size)
    # Scaled once, for the view that shows the smallest part, and with little more than what the camera will see.
    work_side = math.ceil(2 * reach * max(view.zoom for view in views))
    box = (left, top, left + box_side, top + box_side)
    work = image.resize((work_side, work_side), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    ratio = work_side / (2 * reach)
    return [
        work.transform(
            (side, side), Image.Transform.AFFINE, _affine(view, side, ratio, work_side), Image.Resampling.BICUBIC
        )
        for view in views
    ]


def _blobs(side: int, random: np.random.Generator) -> Image.Image:
    """A mask of smooth random shapes, of twice the picture's side, so that the camera has room to move."""
    cells = random.standard_normal((2 * BLOB_CELLS, 2 * BLOB_CELLS)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(cells).resize((2 * side, 2 * side), Image.Resampling.BICUBIC))
    height = np.clip(EDGE * (smooth - 0.4), -20, 20)
    return Image.fromarray((255.5 / (1 + np.exp(-height))).astype(np.uint8))


def _reach(view: View, side: int) -> float:
    """Half the side of an upright square around the middle that holds all of a view and the pixels next to it."""
    half = side / 2 * (abs(math.cos(view.turn)) + abs(math.sin(view.turn))) / view.zoom
    return half + max(map(abs, view.shift)) + 2


def _affine(view: View, side: int, ratio: float, work_side: int) -> tuple[float, ...]:
    """Pillow's coefficients, from pixels of a frame to those of the scaled image."""
    cos, sin = (ratio / view.zoom * part for part in (math.cos(view.turn), math.sin(view.turn)))
    x, y = (work_side / 2 + ratio * shift for shift in view.shift)
    middle = side / 2
    return cos, -sin, x - middle * (cos - sin), sin, cos, y - middle * (sin + cos)
