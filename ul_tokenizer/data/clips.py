"""Training clips: parts of videos, and pans over photographs, each a pure function of the number of its draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ul_tokenizer.data.crops import NO_LABEL, Crop, RandomCropDataset, index_of_draw
from ul_tokenizer.data.images import UnreadableImageError, to_tensor
from ul_tokenizer.data.videos import VIDEO_SUFFIXES, Frame, UnreadableVideoError, read_frames

TRIES = 8  # for a part without a cut
CUT = 0.18  # mean absolute change from frame to frame, of the range, above which a new scene begins
MAX_SPEED, MAX_ZOOM = 2.0, 0.01  # of pans: pixels, and relative change of scale, a frame
_KIND, _CLIP = 7, 8  # streams of random numbers, beside those of crops and of training


class Film(NamedTuple):
    """A decoded video."""

    name: str
    frames: np.ndarray[Any, np.dtype[np.uint8]]  # (T, H, W, 3)


class VideoFolder:
    """All videos below a folder, decoded once and kept, as small as training wants them.

    Args:
        root: the folder, or a single file.
        short_side: frames are scaled to at most so many pixels on their shorter side.
        fps: to which rates are evened out; None leaves them.
        min_frames: shorter videos are left out.
        max_bytes: of all frames together.

    Attributes:
        skipped: "name: reason" of each file that was left out.

    Raises:
        ValueError: no video that can be used, or more than `max_bytes`.
    """

    def __init__(
        self,
        root: str | Path,
        short_side: int,
        fps: float | None = None,
        min_frames: int = 1,
        max_bytes: int = 4_000_000_000,
    ) -> None:
        root = Path(root)
        paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
        self.skipped: list[str] = []
        self.films: list[Film] = []
        for path in paths:
            film = self._film(path, short_side, fps)
            if film is not None and len(film.frames) < min_frames:
                self.skipped.append(f"{path.name}: it has {len(film.frames)} frames, fewer than {min_frames}")
            elif film is not None:
                self.films.append(film)
            if sum(film.frames.nbytes for film in self.films) > max_bytes:
                raise ValueError(
                    f"root must hold videos of at most {max_bytes:,} bytes when decoded, got more in {root}."
                )
        if not self.films:
            reasons = "; ".join(self.skipped[:3]) or "no file with the suffix of a video"
            raise ValueError(f"root must hold at least one video, got none in {root}: {reasons}.")

    def _film(self, path: Path, short_side: int, fps: float | None) -> Film | None:
        try:
            frames = [_scaled(frame, short_side) for frame in read_frames(path, fps=fps, notes=self.skipped)]
        except UnreadableVideoError as error:
            self.skipped.append(f"{path.name}: {error.reason}")
            return None
        return Film(path.name, np.stack(frames))

    def part(self, num_frames: int, stride: int, random: np.random.Generator) -> Frame:
        """Frames (T, H, W, 3) of a random part, of a film by its length, without a cut if one is found."""
        lengths = np.array([len(film.frames) for film in self.films], float)
        part = self.films[0].frames[:num_frames]
        for _ in range(TRIES):
            frames = self.films[int(random.choice(len(self.films), p=lengths / lengths.sum()))].frames
            step = max(1, min(stride, (len(frames) - 1) // max(1, num_frames - 1)))
            start = int(random.integers(0, len(frames) - step * (num_frames - 1)))
            part = frames[start : start + step * (num_frames - 1) + 1 : step]
            if not has_cut(part):
                break
        return part


def _scaled(frame: Frame, short_side: int) -> Frame:
    height, width = frame.shape[:2]
    scale = short_side / min(height, width)
    if scale >= 1:
        return frame
    size = (max(short_side, round(width * scale)), max(short_side, round(height * scale)))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))


def has_cut(frames: Frame) -> bool:
    """Whether a new scene begins within (T, H, W, 3)."""
    small = frames[:, ::4, ::4].astype(np.float32) / 255
    return bool(len(small) > 1 and np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3)).max() > CUT)


class RandomClipDataset(Dataset[Crop]):
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

    def __getitem__(self, n: int) -> Crop:
        """Draw n: `pixel_values` (3, T, r, r), or (3, r, r) in steps of single crops."""
        step = np.random.default_rng(
            np.random.SeedSequence(self.crops.seed, spawn_key=(_KIND, n // self.draws_per_step))
        )
        if step.random() < self.image_fraction:
            return self.crops[n]
        return self.clip(n)

    def clip(self, n: int) -> Crop:
        """A clip, by draw n."""
        random = np.random.default_rng(np.random.SeedSequence(self.crops.seed, spawn_key=(_CLIP, n)))
        skipped: tuple[str, ...] = ()
        if self.videos is None or random.random() < self.pan_fraction:
            frames, skipped = self._pan(n, random)
        else:
            stride = int(random.integers(1, self.max_stride + 1))
            part = self.videos.part(self.num_frames, stride, random)
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
                failures.append(f"{source.name(index)}: {error.reason}")
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
    return torch.stack([to_tensor(frame) for frame in frames], dim=1)
