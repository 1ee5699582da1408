"""Random crops as a pure function of (seed, number of the draw), so that a resumed or distributed run repeats none."""

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

SUBSTITUTES = 100  # tries to find a readable image in place of an unreadable one
NO_LABEL = -1


class CropSample(TypedDict):
    """One sample."""

    pixel_values: Tensor  # (3, r, r), float32, [-1, 1]
    class_label: int  # NO_LABEL where images have none
    skipped: tuple[str, ...]  # "name: reason" of each unreadable image that this one stands in for


class CropBatch(TypedDict):
    """What `collate_crops` makes of a list of samples."""

    pixel_values: Tensor  # (B, 3, r, r), float32, [-1, 1]
    class_labels: Tensor  # (B,) int64
    skipped: list[str]  # of all samples


class RandomCropDataset(Dataset[CropSample]):
    """Square crops at random places and scales; item n is draw n since the start of the training.

    Each epoch (n // len(source)) goes once through the source in an order of its own. An unreadable image is replaced
    by another one and named in `skipped`.

    Args:
        source: where the images come from.
        resolution: side r of a crop.
        seed: of all choices.
        scale: lowest and highest factor by which an image is scaled before cropping, drawn log-uniformly; raised
            where the crop would not fit otherwise, above 1 only for images smaller than the crop.
        random_flip: whether half of the crops are mirrored.
        center_crop: whether crops are taken from the centre; their scale is still drawn.

    Raises:
        ValueError: if an argument is out of its range.
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
        """Draw n, from anywhere and in any order.

        Raises:
            ValueError: if n is negative, or no readable image could be found.
        """
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}.")
        random = numpy_generator(self.seed, Stream.CROP, n)
        return self._sample(*self._read(n, random), random)

    def crop_of(self, index: int) -> CropSample:
        """The crop of one image of the source, by draw number `index`.

        Raises:
            UnreadableImageError: it can't be read; nothing takes its place.
        """
        random = numpy_generator(self.seed, Stream.CROP, index)
        return self._sample(self.source.read(index), index, (), random)

    def _sample(
        self, image: Image.Image, index: int, skipped: tuple[str, ...], random: np.random.Generator
    ) -> CropSample:
        label = self.source.label(index)
        return {
            "pixel_values": frame_to_float(self._crop(image, random)),
            "class_label": NO_LABEL if label is None else label,
            "skipped": skipped,
        }

    def _read(self, n: int, random: np.random.Generator) -> tuple[Image.Image, int, tuple[str, ...]]:
        """An image, its index and what could not be read in its place."""
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
        side = min(self.resolution / scale, *image.size)  # of the box in the image; min() against rounding
        if self.center_crop:
            draw_x = draw_y = 0.5
        # Whole pixels, so that a crop at scale 1 is not interpolated.
        left = int(draw_x * (int(image.width - side) + 1))
        top = int(draw_y * (int(image.height - side) + 1))
        box = (left, top, left + side, top + side)
        size = (self.resolution, self.resolution)
        crop = image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        mirrored = self.random_flip and draw_flip < 0.5
        return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop


def index_of_draw(n: int, length: int, seed: int) -> int:
    """Which of `length` samples draw n is: each epoch, n // length, goes once through all in an order of its own."""
    epoch, position = divmod(n, length)
    return int(_permutation(length, seed, epoch)[position])


@lru_cache(maxsize=4)  # epochs overlap where workers or processes cross their border
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return numpy_generator(seed, Stream.EPOCH_ORDER, epoch).permutation(length)


class DrawSampler(Sampler[int]):
    """The draws of one process: `start + process_index`, every `num_processes`-th from there, below `stop`.

    Args:
        start: first draw, of all processes together; where a resumed run goes on.
        stop: the draw before which to end.
        num_processes: how many processes share the draws.
        process_index: which of them this is.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, start: int, stop: int, num_processes: int = 1, process_index: int = 0) -> None:
        if not 0 <= start <= stop:
            raise ValueError(f"start and stop must be 0 <= start <= stop, got {start} and {stop}.")
        if not 0 <= process_index < num_processes:
            raise ValueError(f"process_index must be below num_processes, got {process_index} and {num_processes}.")
        self.draws = range(start + process_index, stop, num_processes)

    def __iter__(self) -> Iterator[int]:
        """The draws, in order."""
        return iter(self.draws)

    def __len__(self) -> int:
        """How many."""
        return len(self.draws)


def collate_crops(crops: Sequence[CropSample]) -> CropBatch:
    """Stacks samples into a batch."""
    return {
        "pixel_values": torch.stack([crop["pixel_values"] for crop in crops]),
        "class_labels": torch.tensor([crop["class_label"] for crop in crops]),
        "skipped": [reason for crop in crops for reason in crop["skipped"]],
    }
