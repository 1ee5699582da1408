"""Clips: frames of a video that make one sample, and whether a new scene begins within them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ul_tokenizer.media.frame_times import Frame
from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.media.videos import UnreadableVideoError, read_frames

CUT = 0.18  # mean absolute change from frame to frame, of the range, above which a new scene begins


class ClipPart(NamedTuple):
    """Frames of a video that are one sample."""

    path: Path
    first: int  # frame, at the rate of the clips
    num_frames: int
    fps: float
    without_cuts: bool

    def read(self) -> list[Frame]:
        """Its frames (H, W, 3).

        Raises:
            UnreadableImageError: fewer than that can be read, or there is a cut in it.
        """
        try:
            frames = list(read_frames(self.path, self.first / self.fps, self.num_frames, self.fps, threads=1))
        except UnreadableVideoError as error:
            raise UnreadableImageError(self.path, error.reason) from error
        if len(frames) < self.num_frames:
            raise UnreadableImageError(self.path, f"only {len(frames)} of {self.num_frames} frames can be read")
        if self.without_cuts and has_cut(np.stack(frames)):
            raise UnreadableImageError(self.path, "a new scene begins in it")
        return frames


def has_cut(frames: Frame) -> bool:
    """Whether a new scene begins within (T, H, W, 3)."""
    small = frames[:, ::4, ::4].astype(np.float32) / 255
    return bool(len(small) > 1 and np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3)).max() > CUT)
