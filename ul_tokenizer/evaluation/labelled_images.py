"""Labelled pictures in memory, 8-bit as a file would hold them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ul_tokenizer.media.pixels import to_float, to_uint8
from ul_tokenizer.progress import track
from ul_tokenizer.sources.image_folder import ImageFolder

MIN_SIDE, MAX_SIDE = 8, 128  # pixels; all of a set is held in memory, and the classifier is a small one


def to_stored(pixels: Tensor, grey: bool) -> Tensor:
    """What a picture's file would hold.

    Args:
        pixels: (B, 3, H, W) floats in [−1, 1]; what lies outside is clamped.
        grey: one channel, by Pillow's weights for mode L, instead of three.

    Returns:
        (B, 1 or 3, H, W), uint8.
    """
    rgb = to_uint8(pixels)
    return grey_of(rgb) if grey else rgb


def grey_of(rgb: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, 1, H, W), both uint8, to the bit as Pillow converts to mode L."""
    red, green, blue = rgb.int().split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8)


def to_rgb_floats(images: Tensor) -> Tensor:
    """uint8 (B, 1 or 3, H, W) → RGB floats (B, 3, H, W) in [−1, 1], as an autoencoder takes them."""
    return to_float(images.expand(-1, 3, -1, -1))


@dataclass
class LabelledImages:
    """A folder with a subfolder for each class; nothing is decoded before it is asked for.

    Args:
        root: the folder.

    Raises:
        ValueError: fewer than two classes or images, or images beside the subfolders.
    """

    root: Path

    def __post_init__(self) -> None:
        self._source = ImageFolder(self.root)
        self.class_names = self._source.class_names
        if len(self.class_names) < 2:
            raise ValueError(
                f"root must hold a subfolder of images for each of at least two classes, and no image beside them, "
                f"got {self.root} with {len(self.class_names)} classes."
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self._source)

    @cached_property
    def digest(self) -> str:
        """sha256 of the listing: relative paths and sizes of the files, so that no file need be read."""
        source = self._source
        lines = (f"{source.name(i)}\t{source.path(i).stat().st_size}\n" for i in range(len(source)))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @cached_property
    def labels(self) -> Tensor:
        """(N,) int64, classes in sorted order."""
        return torch.tensor([self._source.label(index) for index in range(len(self))])

    @cached_property
    def images(self) -> Tensor:
        """(N, C, H, W), uint8; C = 1 if every picture is grey, else 3.

        Raises:
            ValueError: an image that can't be read, isn't square, or has another size than the first.
        """
        arrays = [self._read(index) for index in track(range(len(self)), f"reading {self.root}", len(self), "images")]
        odd = next((i for i, array in enumerate(arrays) if array.shape != arrays[0].shape), None)
        if odd is not None:
            raise ValueError(
                f"images must all have one size, got {self._source.name(0)} with {_size(arrays[0])} and "
                f"{self._source.name(odd)} with {_size(arrays[odd])} below {self.root}."
            )
        rgb = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        is_grey = bool((rgb == rgb[:, :1]).all())
        return (rgb[:, :1] if is_grey else rgb).contiguous()

    def _read(self, index: int) -> np.ndarray:
        array = np.asarray(self._source.read(index))
        height, width, _ = array.shape
        if height != width or not MIN_SIDE <= height <= MAX_SIDE:
            raise ValueError(
                f"images must be squares of {MIN_SIDE} to {MAX_SIDE} pixels a side, got {self._source.name(index)} "
                f"with {_size(array)}."
            )
        return array


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}×{array.shape[0]} (width×height)"


def check_alike(train: LabelledImages, test: LabelledImages) -> None:
    """Raises a ValueError if two sets don't have the same classes."""
    if train.class_names != test.class_names:
        only_train, only_test = set(train.class_names) - set(test.class_names), set(test.class_names)
        only_test -= set(train.class_names)
        raise ValueError(
            f"test must have the classes of train, got {sorted(only_test)} in {test.root} alone and "
            f"{sorted(only_train)} in {train.root} alone."
        )
