"""Labelled images in memory, as 8-bit values like in a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ul_tokenizer.progress import track
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.sources.folder import FolderSource

MIN_SIDE, MAX_SIDE = 8, 128  # pixels: the classifier is a small network, and the whole data set is held in memory


def grey_of(rgb: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, 1, H, W), both uint8, bit for bit as Pillow converts to mode L."""
    red, green, blue = rgb.int().split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8)


@dataclass
class LabelledImages:
    """The images of a folder with one subfolder for each class; they are decoded when first used.

    Args:
        root: The folder.

    Attributes:
        class_names: Names of the subfolders, sorted.

    Raises:
        ValueError: There are fewer than two classes, or images that lie in no subfolder.
    """

    root: Path

    def __post_init__(self) -> None:
        self._source = FolderSource(self.root, keep_duplicates=True)
        self._images = DecodedImages(self._source)
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
        """sha256 of the list of relative paths and file sizes; no file is read."""
        source = self._source
        lines = (f"{source.id(i)}\t{source.open(i).stat().st_size}\n" for i in range(len(source)))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @cached_property
    def labels(self) -> Tensor:
        """(N,) int64, indices into `class_names`.

        Raises:
            ValueError: An image has no label.
        """
        labels = [self._images.label(index) for index in range(len(self))]
        if None in labels:
            raise ValueError(f"images must all have a label, got none for {self._source.id(labels.index(None))}.")
        return torch.tensor(labels)

    @cached_property
    def images(self) -> Tensor:
        """(N, C, H, W), uint8; C = 1 if every image is grey, else 3.

        Raises:
            ValueError: An image can't be read, isn't square, or has another size than the first.
        """
        arrays = [self._read(index) for index in track(range(len(self)), f"reading {self.root}", len(self), "images")]
        odd = next((i for i, array in enumerate(arrays) if array.shape != arrays[0].shape), None)
        if odd is not None:
            raise ValueError(
                f"images must all have one size, got {self._source.id(0)} with {_size(arrays[0])} and "
                f"{self._source.id(odd)} with {_size(arrays[odd])} below {self.root}."
            )
        rgb = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        is_grey = bool((rgb == rgb[:, :1]).all())
        return (rgb[:, :1] if is_grey else rgb).contiguous()

    def _read(self, index: int) -> np.ndarray:
        array = np.asarray(self._images.read(index))
        height, width, _ = array.shape
        if height != width or not MIN_SIDE <= height <= MAX_SIDE:
            raise ValueError(
                f"images must be squares of {MIN_SIDE} to {MAX_SIDE} pixels a side, got {self._source.id(index)} "
                f"with {_size(array)}."
            )
        return array


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}×{array.shape[0]} (width×height)"


def check_alike(train: LabelledImages, test: LabelledImages) -> None:
    """Checks that two data sets have the same classes.

    Raises:
        ValueError: They don't; the message has the classes that only one of them has.
    """
    only_train = sorted(set(train.class_names) - set(test.class_names))
    only_test = sorted(set(test.class_names) - set(train.class_names))
    if only_train or only_test:
        raise ValueError(
            f"test must have the classes of train, got {only_test} only in {test.root} and {only_train} only in "
            f"{train.root}."
        )
