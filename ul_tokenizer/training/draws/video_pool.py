"""The videos below a folder, from which training draws parts; decoded videos are kept in memory if all of them fit."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from PIL import Image

from ul_tokenizer.media.clips import has_cut
from ul_tokenizer.media.frame_times import Frame
from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.media.videos import VIDEO_SUFFIXES, UnreadableVideoError, read_frames
from ul_tokenizer.sources.names import CompactNames
from ul_tokenizer.sources.video_lengths import measure_videos

FRAMES_PER_VIDEO = 8  # that `VideoFrames` has
TRIES = 8  # attempts to find a part without a cut


class PooledVideo(NamedTuple):
    """A video, decoded or not."""

    path: Path
    num_frames: int
    fps: float
    short_side: int
    frames: Frame | None = None  # (T, H, W, 3), all frames, if they are kept in memory

    def part(self, first: int, num_frames: int, step: int) -> Frame:
        """Every `step`-th frame from frame `first` on, (T, H, W, 3).

        Raises:
            UnreadableVideoError: Fewer than `num_frames` can be read.
        """
        if self.frames is not None:
            return self.frames[first : first + step * (num_frames - 1) + 1 : step]
        found = read_frames(self.path, first / self.fps, num_frames, self.fps / step, threads=1)
        frames = [scaled(frame, self.short_side) for frame in found]
        if len(frames) < num_frames:
            raise UnreadableVideoError(
                self.path, f"only {len(frames)} of {num_frames} frames can be read from frame {first} on"
            )
        return np.stack(frames)


class PooledVideos(Sequence[PooledVideo]):
    """Many videos in little memory, which forked worker processes share; see `CompactNames`.

    Args:
        root: The folder that holds all videos, or the only one.
        videos: The videos.
    """

    def __init__(self, root: Path, videos: Sequence[PooledVideo]) -> None:
        self._root = root
        self._names = CompactNames(str(video.path.relative_to(root)) for video in videos)
        self.lengths = np.array([video.num_frames for video in videos], np.int64)
        self._rates = np.array([video.fps for video in videos], np.float64)
        self._short_side = videos[0].short_side if videos else 0  # all have the same
        self._frames = [video.frames for video in videos] if any(v.frames is not None for v in videos) else None

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int, /) -> PooledVideo: ...

    @overload
    def __getitem__(self, index: slice, /) -> list[PooledVideo]: ...

    def __getitem__(self, index: int | slice, /) -> PooledVideo | list[PooledVideo]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        path, frames = self._root / self._names[index], None if self._frames is None else self._frames[index]
        return PooledVideo(path, int(self.lengths[index]), float(self._rates[index]), self._short_side, frames)

    def only(self, indices: Sequence[int]) -> PooledVideos:
        """Some of the videos."""
        return PooledVideos(self._root, [self[int(n)] for n in indices])


class VideoPool:
    """All videos below a folder, scaled down for training.

    The lengths of the videos are measured once and stored for the next run. If all decoded frames fit into
    `max_bytes`, they are decoded once and kept. Otherwise each part is read from its file, which several worker
    processes speed up.

    Args:
        root: The folder, or a single file.
        short_side: Frames with a longer shorter side are scaled down to this many pixels.
        fps: Frames per second to which all videos are converted; None keeps each video's own rate.
        min_frames: Videos with fewer frames are left out.
        max_bytes: How much memory decoded frames may take, per process.

    Attributes:
        videos: The videos.
        skipped: "name: reason" of each file that was left out.
        notes: A sentence on each problem that could be worked around.
        is_in_memory: Whether the decoded frames are kept in memory.

    Raises:
        ValueError: No video can be used.
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
        self.notes: list[str] = []
        videos: list[PooledVideo] = []
        total = 0
        for path, found in zip(paths, measure_videos(paths, root, fps), strict=True):
            if isinstance(found, UnreadableVideoError):
                self.skipped.append(f"{path.name}: {found.reason}")
            elif self._add(videos, PooledVideo(path, found.num_frames, found.fps, short_side), min_frames):
                total += found.num_frames * 3 * math.prod(_scaled_size(found.width, found.height, short_side))
        self.is_in_memory = total <= max_bytes
        if self.is_in_memory:
            listed, videos = videos, []
            for video in listed:
                self._add(videos, self._decoded(video, fps), min_frames)
        if not videos:
            reasons = "; ".join(self.skipped[:3]) or "no file with the suffix of a video"
            raise ValueError(f"root must hold at least one video, got none in {root}: {reasons}.")
        self.videos = PooledVideos(root, videos)
        self._ends = _ends(self.videos.lengths)

    def only(self, indices: Sequence[int]) -> VideoPool:
        """A pool of some of the videos, for example those held out for validation."""
        pool = copy.copy(self)
        pool.videos = self.videos.only(indices)
        pool._ends = _ends(pool.videos.lengths)
        return pool

    def _add(self, videos: list[PooledVideo], video: PooledVideo, min_frames: int) -> bool:
        """Adds a video to a list if it is long enough; returns whether it is."""
        if video.num_frames < min_frames:
            self.skipped.append(f"{video.path.name}: it has {video.num_frames} frames, fewer than {min_frames}")
            return False
        videos.append(video)
        return True

    def _decoded(self, video: PooledVideo, fps: float | None) -> PooledVideo:
        frames = [scaled(frame, video.short_side) for frame in read_frames(video.path, fps=fps, notes=self.notes)]
        return video._replace(num_frames=len(frames), frames=np.stack(frames))

    def part(self, num_frames: int, stride: int, random: np.random.Generator) -> tuple[Frame, tuple[str, ...]]:
        """Draws a random part, without a cut if `TRIES` attempts find one. Long videos are drawn more often.

        Args:
            num_frames: Number of frames T.
            stride: Take every `stride`-th frame; fewer are left out in videos that are too short for it.
            random: Source of the choice.

        Returns:
            Frames (T, H, W, 3), and "name: reason" of each part that was tried before and could not be read.

        Raises:
            ValueError: None of the parts that were tried can be read.
        """
        part: Frame | None = None
        failures: list[UnreadableVideoError] = []
        for _ in range(TRIES):
            # What random.choice with probabilities does, without adding them up in every draw.
            video = self.videos[int(np.searchsorted(self._ends, random.random(), "right"))]
            step = max(1, min(stride, (video.num_frames - 1) // max(1, num_frames - 1)))
            first = int(random.integers(0, video.num_frames - step * (num_frames - 1)))
            try:
                part = video.part(first, num_frames, step)
            except UnreadableVideoError as error:
                failures.append(error)
                continue
            if not has_cut(part):
                break
        if part is None:
            raise ValueError(f"videos must hold readable parts, got none in {TRIES} tries. {failures[-1]}")
        return part, tuple(f"{error.path.name}: {error.reason}" for error in failures)


class VideoFrames:
    """Single frames of videos as images to crop, `FRAMES_PER_VIDEO` of each video, evenly spaced."""

    def __init__(self, pool: VideoPool) -> None:
        self.pool = pool

    def __len__(self) -> int:
        """Number of frames."""
        return FRAMES_PER_VIDEO * len(self.pool.videos)

    def id(self, index: int) -> str:
        """The file's name, an @, and the number of the frame."""
        video, number = self._place(index)
        return f"{video.path.name}@{number}"

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """The frame; `shorter_side` changes nothing, since the pool scales frames down already.

        Raises:
            UnreadableImageError: The frame can't be read.
        """
        video, number = self._place(index)
        try:
            return Image.fromarray(video.part(number, 1, 1)[0])
        except UnreadableVideoError as error:
            raise UnreadableImageError(self.id(index), error.reason) from error

    def label_and_caption(self, index: int) -> tuple[int | None, str | None]:
        """Frames have neither."""
        return None, None

    def _place(self, index: int) -> tuple[PooledVideo, int]:
        video = self.pool.videos[index // FRAMES_PER_VIDEO]
        return video, (2 * (index % FRAMES_PER_VIDEO) + 1) * video.num_frames // (2 * FRAMES_PER_VIDEO)


def _ends(lengths: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Sums, up to each video, of the probabilities with which videos are drawn: in proportion to their lengths."""
    probabilities = lengths.astype(np.float64) / lengths.astype(np.float64).sum()
    sums = probabilities.cumsum()
    return sums / sums[-1]


def _scaled_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    scale = short_side / min(height, width)
    if scale >= 1:
        return width, height
    return max(short_side, round(width * scale)), max(short_side, round(height * scale))


def scaled(frame: Frame, short_side: int) -> Frame:
    """The frame (H, W, 3), scaled down so that its shorter side has at most `short_side` pixels."""
    height, width = frame.shape[:2]
    size = _scaled_size(width, height, short_side)
    if size == (width, height):
        return frame
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
