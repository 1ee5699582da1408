"""Training clips: parts of videos and pans over photographs, as a pure function of the number of the draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ul_tokenizer.media.pixels import frame_to_uint8
from ul_tokenizer.randomness import Stream, numpy_generator
from ul_tokenizer.training.draws.camera import film
from ul_tokenizer.training.draws.crops import NO_LABEL, CropSample, RandomCropDataset
from ul_tokenizer.training.draws.video_pool import VideoPool

MAX_SPEED, MAX_ZOOM = 2.0, 0.01  # of a pan, per frame: pixels, and relative change of the scale


class RandomClipDataset(Dataset[CropSample]):
    """Parts of videos, pans over images, and single crops; item n is draw n since the start of the training.

    All draws of a step have the same shape, so that they can be stacked: a step holds either clips or single crops.

    Args:
        crops: Single crops are taken from it, and pans move over its images.
        videos: The videos; None makes every clip a pan.
        num_frames: Number of frames in a clip.
        draws_per_step: Number of samples in a training step, on all processes together.
        image_fraction: Fraction of the steps that hold single crops.
        pan_fraction: Fraction of the clips that are pans, if there are videos.
        max_stride: A clip takes every frame of a video, every second one, and so on up to this number.
        epoch: Number of draws in an epoch; None is the number of images.
        pan_motion: "steady" for `pan`, "camera" for `film`.
        pan_layer_fraction: Fraction of the pans with a foreground, if `pan_motion` is "camera".
    """

    def __init__(
        self,
        crops: RandomCropDataset,
        videos: VideoPool | None,
        num_frames: int,
        draws_per_step: int,
        image_fraction: float = 0.25,
        pan_fraction: float = 0.5,
        max_stride: int = 2,
        epoch: int | None = None,
        pan_motion: Literal["steady", "camera"] = "steady",
        pan_layer_fraction: float = 0.5,
    ) -> None:
        self.crops, self.videos, self.num_frames = crops, videos, num_frames
        self.draws_per_step, self.image_fraction = draws_per_step, image_fraction
        self.pan_fraction, self.max_stride = 1.0 if videos is None else pan_fraction, max_stride
        self.pan_motion, self.pan_layer_fraction = pan_motion, pan_layer_fraction
        self._length = len(crops) if epoch is None else epoch

    def __len__(self) -> int:
        """Number of draws in an epoch."""
        return self._length

    def __getitem__(self, n: int) -> CropSample:
        """Draw n; `pixel_values` is (3, T, r, r), or (3, r, r) in steps of single crops."""
        step = numpy_generator(self.crops.seed, Stream.CLIP_KIND, n // self.draws_per_step)
        if step.random() < self.image_fraction:
            return self.crops[n]
        return self.clip(n)

    def clip(self, n: int) -> CropSample:
        """The clip of draw n, also in steps that hold single crops."""
        random = numpy_generator(self.crops.seed, Stream.CLIP, n)
        if self.videos is None or random.random() < self.pan_fraction:
            frames, skipped = self._pan(n, random)
        else:
            stride = int(random.integers(1, self.max_stride + 1))
            part, skipped = self.videos.part(self.num_frames, stride, random)
            frames = _cropped([Image.fromarray(frame) for frame in part], self.crops.resolution, random)
        if random.random() < 0.5 and self.crops.random_flip:
            frames = frames.flip(-1)
        return {"pixel_values": frames, "class_label": NO_LABEL, "caption": None, "skipped": skipped}

    def _pan(self, n: int, random: np.random.Generator) -> tuple[Tensor, tuple[str, ...]]:
        image, _, skipped = self.crops.read(n, random)
        where = image, self.crops.resolution, self.num_frames, self.crops.factors(image), random
        return pan(*where) if self.pan_motion == "steady" else film(*where, self.pan_layer_fraction), skipped


def _cropped(frames: Sequence[Image.Image], side: int, random: np.random.Generator) -> Tensor:
    """(3, T, side, side): the same random square of all frames, between `side` and the shorter side of a frame."""
    width, height = frames[0].size
    largest = min(width, height)
    box_side = side * (largest / side) ** random.random() if largest > side else largest
    left, top = random.random() * (width - box_side), random.random() * (height - box_side)
    box = (left, top, left + box_side, top + box_side)
    return _stacked(
        [frame.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0) for frame in frames]
    )


def pan(
    image: Image.Image, side: int, num_frames: int, scale: tuple[float, float], random: np.random.Generator
) -> Tensor:
    """A square that moves over an image, and grows or shrinks, at a steady rate and within the image's borders.

    Args:
        image: The image.
        side: Height and width of the result, in pixels.
        num_frames: Number of frames T.
        scale: Lowest and highest factor by which the image is scaled, as in `RandomCropDataset`.
        random: Source of place, direction, speed and zoom.

    Returns:
        (3, T, side, side), uint8.
    """
    low, high = scale
    factor = max(low * (high / low) ** random.random(), side / min(image.size))
    zoom = 1 + MAX_ZOOM * (2 * random.random() - 1)
    angle, speed = 2 * math.pi * random.random(), MAX_SPEED * random.random() ** 2
    sides = [min(min(image.size), side / factor * zoom**k) for k in range(num_frames)]
    place = random.random(2)
    boxes = []
    for k, box_side in enumerate(sides):
        shift = speed * (k - (num_frames - 1) / 2) / factor
        corners = []
        for free, at, direction in zip(image.size, place, (math.cos(angle), math.sin(angle)), strict=True):
            corner = at * (free - sides[0]) + shift * direction - (box_side - sides[0]) / 2
            corners.append(min(max(corner, 0.0), free - box_side))
        boxes.append((corners[0], corners[1], corners[0] + box_side, corners[1] + box_side))
    return _stacked([image.resize((side, side), Image.Resampling.BICUBIC, box=b, reducing_gap=2.0) for b in boxes])


def _stacked(frames: Sequence[Image.Image]) -> Tensor:
    return torch.stack([frame_to_uint8(frame) for frame in frames], dim=1)
