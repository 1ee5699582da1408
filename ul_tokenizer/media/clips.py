"""Clips: the frames of a video that form one sample, and the detection of cuts between scenes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ul_tokenizer.media.frame_times import Frame
from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.media.videos import UnreadableVideoError, read_frames

CUT = 0.18  # a larger mean absolute change between two frames, as a fraction of the range, is a cut


class ClipPart(NamedTuple):
    """The place of a clip in a video file."""

    path: Path
    first: int  # number of its first frame, counted at `fps`
    num_frames: int
    fps: float
    without_cuts: bool  # whether a clip with a cut counts as unreadable

    def read(self) -> list[Frame]:
        """Decodes the clip's frames, each (H, W, 3).

        Raises:
            UnreadableImageError: Fewer than `num_frames` can be read, or there is a cut and `without_cuts` is set.
        """
        try:
            frames = list(read_frames(self.path, self.first / self.fps, self.num_frames, self.fps, threads=1))
        except UnreadableVideoError as error:
            raise UnreadableImageError(self.path, error.reason) from error
        if len(frames) < self.num_frames:
            raise UnreadableImageError(self.path, f"only {len(frames)} of {self.num_frames} frames can be read")
        if self.without_cuts and has_cut(np.stack(frames)):
            raise UnreadableImageError(self.path, "there is a cut in it")
        return frames


def has_cut(frames: Frame) -> bool:
    """Whether a new scene begins within the frames (T, H, W, 3)."""
    small = frames[:, ::4, ::4].astype(np.float32) / 255
    return bool(len(small) > 1 and np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3)).max() > CUT)
