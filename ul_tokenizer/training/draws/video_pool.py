"""Videos below a folder, of which parts are asked for: kept decoded while they fit into memory, else read in place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ul_tokenizer.media.clips import has_cut
from ul_tokenizer.media.frame_times import Frame
from ul_tokenizer.media.videos import (
    VIDEO_SUFFIXES,
    UnreadableVideoError,
    expected_frames,
    probe,
    read_frames,
)

TRIES = 8  # for a part without a cut


class Film(NamedTuple):
    """A video."""

    path: Path
    num_frames: int
    fps: float
    short_side: int
    frames: Frame | None = None  # (T, H, W, 3), all of them, if they are kept

    def part(self, first: int, num_frames: int, step: int) -> Frame:
        """Frames (T, H, W, 3), every `step`th from `first` on.

        Raises:
            UnreadableVideoError: there are fewer of them.
        """
        if self.frames is not None:
            return self.frames[first : first + step * (num_frames - 1) + 1 : step]
        found = read_frames(self.path, first / self.fps, num_frames, self.fps / step, threads=1)
        frames = [scaled(frame, self.short_side) for frame in found]
        if len(frames) < num_frames:
            raise UnreadableVideoError(
                self.path, f"only {len(frames)} of {num_frames} frames are there from {first} on"
            )
        return np.stack(frames)


class VideoFolder:
    """All videos below a folder, as small as training wants them.

    If all of them fit into `max_bytes`, they are decoded once and kept. Else each part is read from its file, for which
    worker processes are worth their memory.

    Args:
        root: the folder, or a single file.
        short_side: frames are scaled to at most so many pixels on their shorter side.
        fps: to which rates are evened out; None leaves them.
        min_frames: shorter videos are left out.
        max_bytes: of decoded frames, per process.

    Attributes:
        films: the videos.
        skipped: "name: reason" of each file that was left out.
        is_in_memory: whether the frames are kept.

    Raises:
        ValueError: no video that can be used.
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
        total = 0
        for path in paths:
            try:
                info = probe(path)
                film = Film(path, expected_frames(path, fps), fps or info.rate, short_side)
            except UnreadableVideoError as error:
                self.skipped.append(f"{path.name}: {error.reason}")
                continue
            if self._add(film, min_frames):
                total += film.num_frames * 3 * math.prod(_scaled_size(info.width, info.height, short_side))
        self.is_in_memory = total <= max_bytes
        if self.is_in_memory:
            listed, self.films = self.films, []
            for film in listed:
                self._add(self._decoded(film, fps), min_frames)
        if not self.films:
            reasons = "; ".join(self.skipped[:3]) or "no file with the suffix of a video"
            raise ValueError(f"root must hold at least one video, got none in {root}: {reasons}.")

    def _add(self, film: Film, min_frames: int) -> bool:
        """Whether it is long enough."""
        if film.num_frames < min_frames:
            self.skipped.append(f"{film.path.name}: it has {film.num_frames} frames, fewer than {min_frames}")
            return False
        self.films.append(film)
        return True

    def _decoded(self, film: Film, fps: float | None) -> Film:
        frames = [scaled(frame, film.short_side) for frame in read_frames(film.path, fps=fps, notes=self.skipped)]
        return film._replace(num_frames=len(frames), frames=np.stack(frames))

    def part(self, num_frames: int, stride: int, random: np.random.Generator) -> tuple[Frame, tuple[str, ...]]:
        """Frames (T, H, W, 3) of a random part, of a film by its length, without a cut if one is found.

        Also "name: reason" of each part that could not be read, for which another one stands in.

        Raises:
            UnreadableVideoError: none of some that were tried can be read.
        """
        lengths = np.array([film.num_frames for film in self.films], float)
        part: Frame | None = None
        failures: list[UnreadableVideoError] = []
        for _ in range(TRIES):
            film = self.films[int(random.choice(len(self.films), p=lengths / lengths.sum()))]
            step = max(1, min(stride, (film.num_frames - 1) // max(1, num_frames - 1)))
            first = int(random.integers(0, film.num_frames - step * (num_frames - 1)))
            try:
                part = film.part(first, num_frames, step)
            except UnreadableVideoError as error:
                failures.append(error)
                continue
            if not has_cut(part):
                break
        if part is None:
            raise failures[-1]
        return part, tuple(f"{error.path.name}: {error.reason}" for error in failures)


def _scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    scale = short_side / min(height, width)
    if scale >= 1:
        return width, height
    return max(short_side, round(width * scale)), max(short_side, round(height * scale))


def scaled(frame: Frame, short_side: int) -> Frame:
    """A frame with at most so many pixels on its shorter side."""
    height, width = frame.shape[:2]
    size = _scaled_size(width, height, short_side)
    if size == (width, height):
        return frame
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
