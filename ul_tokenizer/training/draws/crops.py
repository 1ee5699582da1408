"""Random crops as a pure function of the seed and the number of the draw.

A resumed run therefore continues with the crops that it would have drawn, and processes never draw the same one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.media.pixels import frame_to_uint8
from ul_tokenizer.randomness import Stream, numpy_generator
from ul_tokenizer.training.draws.aspect_ratios import AspectBuckets
from ul_tokenizer.training.draws.geometry import (
    Chance,
    Scaling,
    Size,
    decoded_side,
    mirrored,
    native_crop,
    short_side_crop,
)

SUBSTITUTES = 100  # other images that are tried in place of an unreadable one
NO_LABEL = -1


class CropSample(TypedDict):
    """One training sample."""

    pixel_values: Tensor  # (3, [T,] h, w), uint8, which `media.pixels.to_float` converts on the device
    class_label: int  # NO_LABEL if the image has none
    caption: str | None
    skipped: tuple[str, ...]  # "id: reason" of each unreadable image that this one replaces


class CropBatch(TypedDict):
    """A batch of samples, made by `collate_crops`."""

    pixel_values: Tensor  # (B, 3, [T,] h, w), uint8
    class_labels: Tensor  # (B,) int64
    captions: list[str | None]
    skipped: list[str]  # of all samples


class CropSource(Protocol):
    """Numbered images to crop: `DecodedImages`, or the frames of videos."""

    def __len__(self) -> int:
        """Number of images, including those that turn out to be unreadable."""
        ...

    def id(self, index: int) -> str:
        """A name for messages."""
        ...

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """The image as 8-bit RGB; arguments and errors as those of `DecodedImages.read`."""
        ...

    def label_and_caption(self, index: int) -> tuple[int | None, str | None]:
        """The image's class and its caption, each None if it has none."""
        ...


class Order(Protocol):
    """Which sample each draw takes, as a pure function of the draw's number."""

    def __len__(self) -> int:
        """Number of draws in an epoch."""
        ...

    def index(self, n: int) -> int:
        """The sample of draw n, which has no upper limit."""
        ...


class ShuffledOrder:
    """Every epoch takes each of `length` samples once, in a new random order; see `Order`."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        """Number of draws in an epoch."""
        return self.length

    def index(self, n: int) -> int:
        """The sample of draw n."""
        return index_of_draw(n, self.length, self.seed)


class RandomCropDataset(Dataset[CropSample]):
    """Crops at random places and scales; item n is draw n since the start of the training.

    An unreadable image is replaced by another one and reported in `skipped`.

    Args:
        source: The images.
        resolution: Side r of a square crop, in pixels.
        seed: Seed of the order and of all crops.
        scale: Lowest and highest factor by which an image is scaled before it is cropped, drawn log-uniformly; see
            `native_crop`. With the scaling "short_side", the lowest and highest fraction of the image that a crop
            covers; see `short_side_crop`. The highest must be 1 then.
        random_flip: Whether to mirror half of the crops.
        center_crop: Whether to crop at the centre; the scale is still random.
        scaling: "native" takes windows of the image at its own scale, "short_side" first scales the image to the crop.
        order: Which image each draw takes; None is `ShuffledOrder`.
        buckets: Sizes of the crops by image, for the scaling "short_side"; None makes squares. The order must take
            images of one size in each step.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        source: CropSource,
        resolution: int,
        seed: int = 0,
        scale: tuple[float, float] = (1.0, 1.0),
        random_flip: bool = False,
        center_crop: bool = False,
        *,
        scaling: Scaling = "native",
        order: Order | None = None,
        buckets: AspectBuckets | None = None,
    ) -> None:
        if resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {resolution}.")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}.")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be (lowest, highest) with 0 < lowest <= highest <= 1, got {scale}.")
        if scaling == "short_side" and scale[1] != 1:
            raise ValueError(f"scale must go up to 1 with the scaling short_side, got {scale}.")
        if scaling == "native" and buckets is not None:
            raise ValueError("buckets need the scaling short_side, got native.")
        self.source, self.resolution, self.seed = source, resolution, seed
        self.scale, self.random_flip, self.center_crop = scale, random_flip, center_crop
        self.scaling, self.buckets = scaling, buckets
        self.order: Order = ShuffledOrder(len(source), seed) if order is None else order

    def __len__(self) -> int:
        """Number of draws in an epoch; n itself has no upper limit."""
        return len(self.order)

    def __getitem__(self, n: int) -> CropSample:
        """The crop of draw n; draws may be read in any order.

        Raises:
            ValueError: n is negative, or no readable image was found.
        """
        if n < 0:
            raise ValueError(f"n must not be negative, got {n}.")
        random = numpy_generator(self.seed, Stream.CROP, n)
        if self.scaling == "native":
            image, index, skipped = self.read(n, random)
            return self._sample(self._native(image, random), index, skipped)
        size, chance = self._size_of(self.order.index(n)), Chance.of(random, self.center_crop)
        image, index, skipped = self.read(n, random, decoded_side(size, self.scale[0], chance))
        return self._sample(self._scaled(image, size, chance), index, skipped)

    def crop_of(self, index: int) -> CropSample:
        """The crop of image `index` of the source, with the random numbers of draw number `index`.

        Raises:
            UnreadableImageError: The image can't be read; it is not replaced by another one.
        """
        random = numpy_generator(self.seed, Stream.CROP, index)
        if self.scaling == "native":
            return self._sample(self._native(self.source.read(index), random), index, ())
        size, chance = self._size_of(index), Chance.of(random, self.center_crop)
        image = self.source.read(index, decoded_side(size, self.scale[0], chance))
        return self._sample(self._scaled(image, size, chance), index, ())

    def factors(self, image: Image.Image) -> tuple[float, float]:
        """Lowest and highest factor by which an image is scaled to a square crop."""
        if self.scaling == "native":
            return self.scale
        least = self.resolution / min(image.size)
        return least, least / self.scale[0]

    def _native(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        chance = Chance.of(random, self.center_crop)
        return self._mirrored(native_crop(image, self.resolution, self.scale, chance), chance)

    def _scaled(self, image: Image.Image, size: Size, chance: Chance) -> Image.Image:
        return self._mirrored(short_side_crop(image, size, self.scale[0], chance), chance)

    def _mirrored(self, crop: Image.Image, chance: Chance) -> Image.Image:
        return mirrored(crop, chance) if self.random_flip else crop

    def _size_of(self, index: int) -> Size:
        return (self.resolution, self.resolution) if self.buckets is None else self.buckets.size_of(index)

    def _sample(self, crop: Image.Image, index: int, skipped: tuple[str, ...]) -> CropSample:
        label, caption = self.source.label_and_caption(index)
        return {
            "pixel_values": frame_to_uint8(crop),
            "class_label": NO_LABEL if label is None else label,
            "caption": caption,
            "skipped": skipped,
        }

    def read(
        self, n: int, random: np.random.Generator, shorter_side: int | None = None
    ) -> tuple[Image.Image, int, tuple[str, ...]]:
        """The image of draw n, its index, and "id: reason" of each image that was tried before it.

        Args:
            n: Number of the draw.
            random: Source of the choice of other images.
            shorter_side: As in `DecodedImages.read`.

        Raises:
            ValueError: No readable image was found.
        """
        index = self.order.index(n)
        failures: list[str] = []
        for _ in range(1 + SUBSTITUTES):
            try:
                return self.source.read(index, shorter_side), index, tuple(failures)
            except UnreadableImageError as error:
                failures.append(f"{self.source.id(index)}: {error.reason}")
                index = int(random.integers(len(self.source)))
        raise ValueError(f"source must hold readable images, got none in {len(failures)} tries, last {failures[-1]}.")


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
