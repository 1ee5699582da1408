"""The pixels that are measured: which images of a data set, scaled and cropped in a stated way.

Sample k is the same image and the same pixels in every run, on any number of processes. Several crops of one image
belong to one group, because they are no independent samples.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.media.clips import ClipPart
from ul_tokenizer.media.images import UnreadableImageError, read_image
from ul_tokenizer.media.pixels import frame_to_uint8
from ul_tokenizer.randomness import EvaluationStream, numpy_generator
from ul_tokenizer.sources.base import Source
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.sources.video import VideoSource

Crop = Literal["center", "random", "none"]
Frames = list[Image.Image]


@dataclass(frozen=True)
class Crops:
    """How pixels are taken from the images or clips of a data set.

    Args:
        resolution: length of the shorter side after scaling (Lanczos, antialiased), in pixels; None doesn't scale.
        crop: "center" and "random" cut out a square, "none" takes the whole image.
        crop_size: side of the square in pixels; None for `resolution`.
        num_samples: number of samples; None takes every image once. Fewer than there are images are drawn from them by
            the seed; more need the crop "random", which then takes several crops of an image.
        seed: seed of the choice of images and of the places of crops.

    Raises:
        ValueError: an argument out of its range, or a square without a size.
    """

    resolution: int | None = None
    crop: Crop = "none"
    crop_size: int | None = None
    num_samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.crop not in get_args(Crop):
            raise ValueError(f"crop must be one of {', '.join(get_args(Crop))}, got {self.crop!r}.")
        for name in ("resolution", "crop_size", "num_samples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}.")
        if self.crop == "none" and self.crop_size is not None:
            raise ValueError(f"crop_size needs the crop center or random, got {self.crop_size} with none.")
        if self.crop != "none" and self.side is None:
            raise ValueError(f"resolution or crop_size must be given for the crop {self.crop!r}, got neither.")
        if self.resolution is not None and self.crop_size is not None and self.crop_size > self.resolution:
            raise ValueError(f"crop_size must be at most the resolution {self.resolution}, got {self.crop_size}.")

    @property
    def side(self) -> int | None:
        """Side of the square that is cut out; None for whole images."""
        return None if self.crop == "none" else self.crop_size or self.resolution


class Sample(NamedTuple):
    """One sample."""

    id: str  # of the image, with #k for its crop number k > 0
    pixels: Tensor  # uint8, (3, H, W) of an image or (3, T, H, W) of a clip


class EvaluationSamples:
    """The samples of a source under a protocol.

    Args:
        source: the images or clips.
        crops: how pixels are taken from them.
        name: what the data set is called in results.
        archives: what tells the archives or tables that hold the samples from others; another text is other data.

    Raises:
        ValueError: an empty source, or more samples than images without random crops.
    """

    def __init__(self, source: Source, crops: Crops, name: str = "", archives: str = "") -> None:
        if not len(source):
            raise ValueError("data must hold at least one image, got none.")
        self.source, self.crops, self.name, self._archives = source, crops, name, archives
        self.groups = _chosen_images(len(source), crops)  # (N,), number of the image of each sample
        self._draws = _numbers_within(self.groups)
        self._last: tuple[int, Frames] | None = None  # all crops of an image are neighbours: it is decoded once

    def __len__(self) -> int:
        """Number of samples, including those that turn out to be unreadable."""
        return len(self.groups)

    @property
    def num_images(self) -> int:
        """Number of different images or clips."""
        return len(np.unique(self.groups))

    @property
    def has_clips(self) -> bool:
        """Whether the samples are clips of videos."""
        return isinstance(self.source.open(int(self.groups[0])), ClipPart)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first sample that can be read.

        Raises:
            ValueError: none can.
        """
        for number in range(len(self)):
            with suppress(UnreadableImageError):
                return tuple(self.read(number).pixels.shape)
        raise ValueError(f"{self.name or 'data'} must hold images that can be read, got none among {len(self)}.")

    @cached_property
    def listing_sha256(self) -> str:
        """Hash of the ids of the samples and of the sizes of the files that hold them; no image is decoded."""
        digest = hashlib.sha256(self._archives.encode())
        for image in np.unique(self.groups).tolist():
            digest.update(f"{self.source.id(image)}\t{_size_of(self.source, image)}\n".encode())
        return digest.hexdigest()

    def id(self, number: int) -> str:
        """Id of a sample."""
        draw, name = int(self._draws[number]), self.source.id(int(self.groups[number]))
        return f"{name}#{draw}" if draw else name

    def label(self, number: int) -> int | None:
        """Class of a sample's image; None if it has none."""
        label = self.source.columns(int(self.groups[number])).get("label")
        return label if isinstance(label, int) else None

    def read(self, number: int) -> Sample:
        """Reads, scales and crops a sample; one thread may read at a time.

        Raises:
            UnreadableImageError: the image can't be read, or is smaller than the crop.
        """
        frames = self._frames(int(self.groups[number]))
        box = self._box(number, frames[0].size)
        parts = [frame_to_uint8(frame if box is None else frame.crop(box)) for frame in frames]
        return Sample(self.id(number), torch.stack(parts, 1) if self._is_clip else parts[0])

    def facts(self) -> dict[str, Any]:
        """The protocol, as a result file states it."""
        crops = asdict(self.crops)
        del crops["num_samples"]
        clip = self.source.open(int(self.groups[0]))
        return {
            "data": self.name,
            "source_sha256": self.listing_sha256,
            "num_samples": len(self),
            "num_images": self.num_images,
            **crops,
            "clip_frames": clip.num_frames if isinstance(clip, ClipPart) else None,
            "rounding": "uint8",
        }

    def _frames(self, image: int) -> Frames:
        if self._last is None or self._last[0] != image:
            self._last = None  # frees the last image before the next one is decoded
            self._last = image, [self._scaled(frame) for frame in self._decoded(image)]
        return self._last[1]

    def _decoded(self, image: int) -> Frames:
        try:
            encoded = self.source.open(image)
            self._is_clip = isinstance(encoded, ClipPart)
            if isinstance(encoded, ClipPart):
                return [Image.fromarray(frame) for frame in encoded.read()]
            return [read_image(encoded)]
        except UnreadableImageError as error:
            raise UnreadableImageError(self.source.id(image), error.reason) from error
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise UnreadableImageError(self.source.id(image), reason) from error

    def _scaled(self, frame: Image.Image) -> Image.Image:
        shorter = self.crops.resolution
        if shorter is None or min(frame.size) == shorter:
            return frame
        width, height = (max(shorter, round(side * shorter / min(frame.size))) for side in frame.size)
        return frame.resize((width, height), Image.Resampling.LANCZOS)

    def _box(self, number: int, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
        """(left, top, right, bottom) of the crop; None for the whole image."""
        side = self.crops.side
        if side is None:
            return None
        spare = size[0] - side, size[1] - side
        if min(spare) < 0:
            raise UnreadableImageError(self.id(number), f"{size[0]}×{size[1]} is smaller than the crop of {side}")
        if self.crops.crop == "center":
            left, top = spare[0] // 2, spare[1] // 2
        else:
            keys = int(self.groups[number]), int(self._draws[number])
            random = numpy_generator(self.crops.seed, EvaluationStream.CROP, *keys)
            left, top = (int(random.integers(0, room + 1)) for room in spare)
        return left, top, left + side, top + side


def _chosen_images(available: int, crops: Crops) -> np.ndarray:
    """Number of the image of each sample, rising."""
    wanted = available if crops.num_samples is None else crops.num_samples
    if wanted > available and crops.crop != "random":
        raise ValueError(
            f"num_samples must be at most the {available} images unless crops are random, got {crops.num_samples}."
        )
    if wanted < available:
        random = numpy_generator(crops.seed, EvaluationStream.CHOICE)
        return np.sort(random.choice(available, wanted, replace=False))
    return np.sort(np.arange(wanted) % available)


def _numbers_within(groups: np.ndarray) -> np.ndarray:
    """0, 1, … within each group of equal neighbours."""
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
    return np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))


def _size_of(source: Source, image: int) -> int | str:
    """Size of the sample's own file; empty for those in archives and tables, where opening a sample reads it."""
    if not isinstance(source, (FolderSource, VideoSource)):
        return ""
    encoded = source.open(image)
    path = encoded.path if isinstance(encoded, ClipPart) else encoded
    return path.stat().st_size if isinstance(path, Path) else ""
