"""Training clips: parts of videos, and pans over photographs, each a pure function of the number of its draw."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.media.pixels import frame_to_float
from ul_tokenizer.randomness import Stream, numpy_generator
from ul_tokenizer.training.draws.crops import NO_LABEL, CropSample, RandomCropDataset, index_of_draw
from ul_tokenizer.training.draws.video_pool import VideoFolder

MAX_SPEED, MAX_ZOOM = 2.0, 0.01  # of pans: pixels, and relative change of scale, a frame


class RandomClipDataset(Dataset[CropSample]):
    """Clips of random parts of videos and of pans over images, in turns with single crops; item n is draw n.

    All draws of a step are of one kind, so that they can be stacked.

    Args:
        crops: of the images; single crops come from it, and pans over the same images.
        videos: None for pans only.
        num_frames: of a clip.
        draws_per_step: of the training.
        image_fraction: of the steps, that have single crops.
        pan_fraction: of the clips, that are pans although there are videos.
        max_stride: frames of a video that a clip may step over, less one.
    """

    def __init__(
        self,
        crops: RandomCropDataset,
        videos: VideoFolder | None,
        num_frames: int,
        draws_per_step: int,
        image_fraction: float = 0.25,
        pan_fraction: float = 0.5,
        max_stride: int = 2,
    ) -> None:
        self.crops, self.videos, self.num_frames = crops, videos, num_frames
        self.draws_per_step, self.image_fraction = draws_per_step, image_fraction
        self.pan_fraction, self.max_stride = 1.0 if videos is None else pan_fraction, max_stride

    def __len__(self) -> int:
        """Draws of an epoch, which is one through the images."""
        return len(self.crops)

    def __getitem__(self, n: int) -> CropSample:
        """Draw n: `pixel_values` (3, T, r, r), or (3, r, r) in steps of single crops."""
        step = numpy_generator(self.crops.seed, Stream.CLIP_KIND, n // self.draws_per_step)
        if step.random() < self.image_fraction:
            return self.crops[n]
        return self.clip(n)

    def clip(self, n: int) -> CropSample:
        """A clip, by draw n."""
        random = numpy_generator(self.crops.seed, Stream.CLIP, n)
        if self.videos is None or random.random() < self.pan_fraction:
            frames, skipped = self._pan(n, random)
        else:
            stride = int(random.integers(1, self.max_stride + 1))
            part, skipped = self.videos.part(self.num_frames, stride, random)
            frames = _cropped([Image.fromarray(frame) for frame in part], self.crops.resolution, random)
        if random.random() < 0.5 and self.crops.random_flip:
            frames = frames.flip(-1)
        return {"pixel_values": frames, "class_label": NO_LABEL, "skipped": skipped}

    def _pan(self, n: int, random: np.random.Generator) -> tuple[Tensor, tuple[str, ...]]:
        source = self.crops.source
        failures: list[str] = []
        index = index_of_draw(n, len(source), self.crops.seed)
        for _ in range(100):
            try:
                image = source.read(index)
                return pan(image, self.crops.resolution, self.num_frames, self.crops.scale, random), tuple(failures)
            except UnreadableImageError as error:
                failures.append(f"{source.id(index)}: {error.reason}")
                index = int(random.integers(len(source)))
        raise ValueError(f"source must hold readable images, got none in {len(failures)} tries, last {failures[-1]}.")


def _cropped(frames: Sequence[Image.Image], side: int, random: np.random.Generator) -> Tensor:
    """(3, T, side, side): one square for all frames, of a random scale between the crop's size and the whole height."""
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
    """(3, T, side, side): a square that moves and grows over an image at a steady rate, within its borders."""
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
    return torch.stack([frame_to_float(frame) for frame in frames], dim=1)
