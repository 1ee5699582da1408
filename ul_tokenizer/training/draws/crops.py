"""Random crops as a pure function of the seed and the number of the draw.

A resumed run therefore continues with the crops that it would have drawn, and processes never draw the same one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.media.pixels import frame_to_float
from ul_tokenizer.randomness import Stream, numpy_generator
from ul_tokenizer.sources.decoded import DecodedImages

SUBSTITUTES = 100  # other images that are tried in place of an unreadable one
NO_LABEL = -1


class CropSample(TypedDict):
    """One training sample."""

    pixel_values: Tensor  # (3, r, r), float32, [-1, 1]
    class_label: int  # NO_LABEL if the image has none
    caption: str | None
    skipped: tuple[str, ...]  # "id: reason" of each unreadable image that this one replaces


class CropBatch(TypedDict):
    """A batch of samples, made by `collate_crops`."""

    pixel_values: Tensor  # (B, 3, r, r), float32, [-1, 1]
    class_labels: Tensor  # (B,) int64
    captions: list[str | None]
    skipped: list[str]  # of all samples


class RandomCropDataset(Dataset[CropSample]):
    """Square crops at random places and scales; item n is draw n since the start of the training.

    Every epoch, n // len(source), draws each image once, in a new order. An unreadable image is replaced by another
    one and reported in `skipped`.

    Args:
        source: The images.
        resolution: Side r of a crop, in pixels.
        seed: Seed of the order and of all crops.
        scale: Lowest and highest factor by which an image is scaled before it is cropped, drawn log-uniformly. The
            factor is raised if the crop would not fit otherwise; only images smaller than the crop are enlarged.
        random_flip: Whether to mirror half of the crops.
        center_crop: Whether to crop at the centre; the scale is still random.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        source: DecodedImages,
        resolution: int,
        seed: int = 0,
        scale: tuple[float, float] = (1.0, 1.0),
        random_flip: bool = False,
        center_crop: bool = False,
    ) -> None:
        if resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {resolution}.")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}.")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be (lowest, highest) with 0 < lowest <= highest <= 1, got {scale}.")
        self.source, self.resolution, self.seed = source, resolution, seed
        self.scale, self.random_flip, self.center_crop = scale, random_flip, center_crop

    def __len__(self) -> int:
        """Number of draws in an epoch; n itself has no upper limit."""
        return len(self.source)

    def __getitem__(self, n: int) -> CropSample:
        """The crop of draw n; draws may be read in any order.

        Raises:
            ValueError: n is negative, or no readable image was found.
        """
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}.")
        random = numpy_generator(self.seed, Stream.CROP, n)
        return self._sample(*self.read(n, random), random)

    def crop_of(self, index: int) -> CropSample:
        """The crop of image `index` of the source, with the random numbers of draw number `index`.

        Raises:
            UnreadableImageError: The image can't be read; it is not replaced by another one.
        """
        random = numpy_generator(self.seed, Stream.CROP, index)
        return self._sample(self.source.read(index), index, (), random)

    def _sample(
        self, image: Image.Image, index: int, skipped: tuple[str, ...], random: np.random.Generator
    ) -> CropSample:
        label, caption = self.source.label(index), self.source.source.columns(index).get("caption")
        return {
            "pixel_values": frame_to_float(self._crop(image, random)),
            "class_label": NO_LABEL if label is None else label,
            "caption": None if caption is None else str(caption),
            "skipped": skipped,
        }

    def read(self, n: int, random: np.random.Generator) -> tuple[Image.Image, int, tuple[str, ...]]:
        """The image of draw n, its index, and "id: reason" of each image that was tried before it.

        Raises:
            ValueError: No readable image was found.
        """
        index = index_of_draw(n, len(self.source), self.seed)
        failures: list[str] = []
        for _ in range(1 + SUBSTITUTES):
            try:
                return self.source.read(index), index, tuple(failures)
            except UnreadableImageError as error:
                failures.append(f"{self.source.id(index)}: {error.reason}")
                index = int(random.integers(len(self.source)))
        raise ValueError(f"source must hold readable images, got none in {len(failures)} tries, last {failures[-1]}.")

    def _crop(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        draw_scale, draw_x, draw_y, draw_flip = random.random(4)
        lowest, highest = self.scale
        scale = max(lowest * (highest / lowest) ** draw_scale, self.resolution / min(image.size))
        side = min(self.resolution / scale, *image.size)  # of the box in the image; min() guards against rounding
        if self.center_crop:
            draw_x = draw_y = 0.5
        # The corner is a whole pixel, so that a crop at scale 1 is not interpolated.
        left = int(draw_x * (int(image.width - side) + 1))
        top = int(draw_y * (int(image.height - side) + 1))
        box = (left, top, left + side, top + side)
        size = (self.resolution, self.resolution)
        crop = image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        mirrored = self.random_flip and draw_flip < 0.5
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop


def index_of_draw(n: int, length: int, seed: int) -> int:
    """Which of `length` samples draw n takes.

    Every epoch, n // length, takes each sample once, in a new random order.
    """
    epoch, position = divmod(n, length)
    return int(_permutation(length, seed, epoch)[position])


@lru_cache(maxsize=4)  # workers and processes reach the next epoch at different times
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return numpy_generator(seed, Stream.EPOCH_ORDER, epoch).permutation(length)


class DrawSampler(Sampler[int]):
    """The draws of one process: every `num_processes`-th number from `start + process_index` on, below `stop`.

    Args:
        start: First draw of all processes together. A resumed run starts where the earlier one ended.
        stop: The draws end before this one.
        num_processes: Number of processes that share the draws.
        process_index: Number of this process.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, start: int, stop: int, num_processes: int = 1, process_index: int = 0) -> None:
        if not 0 <= start <= stop:
            raise ValueError(f"start and stop must be 0 <= start <= stop, got {start} and {stop}.")
        if not 0 <= process_index < num_processes:
            raise ValueError(f"process_index must be below num_processes, got {process_index} and {num_processes}.")
        self.draws = range(start + process_index, stop, num_processes)

    def __iter__(self) -> Iterator[int]:
        """The numbers of this process's draws, in ascending order."""
        return iter(self.draws)

    def __len__(self) -> int:
        """Number of draws of this process."""
        return len(self.draws)


def collate_crops(crops: Sequence[CropSample]) -> CropBatch:
    """Stacks samples of the same shape into a batch."""
    return {
        "pixel_values": torch.stack([crop["pixel_values"] for crop in crops]),
        "class_labels": torch.tensor([crop["class_label"] for crop in crops]),
        "captions": [crop["caption"] for crop in crops],
        "skipped": [reason for crop in crops for reason in crop["skipped"]],
    }
