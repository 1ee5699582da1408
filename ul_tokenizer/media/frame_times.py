"""Which frames a video shows: every frame from a given time on, or the frames at evenly spaced times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

EXACT = 1e-6  # seconds; smaller differences between times come from floating-point arithmetic
Frame = np.ndarray[Any, np.dtype[np.uint8]]  # (H, W, 3)


@dataclass(eq=False)
class Timed:
    """A frame with its time; the pixels are converted only if they are used."""

    time: float  # seconds since the first one
    render: Callable[[], Frame]
    slack: float = EXACT  # seconds by which the container may have rounded the time up

    @cached_property
    def pixels(self) -> Frame:
        """The frame's pixels, (H, W, 3) RGB."""
        return self.render()


def rounding(tick: float, period: float) -> float:
    """By how many seconds the difference between two frames' times may be off.

    Matroska and WebM store whole milliseconds: at 30 frames per second the times are 0, 33, 67 and 100 ms. Compared
    exactly, the frame at 67 ms would not be visible at 2/30 s. In AVI a tick lasts as long as a frame, so times are
    exact.

    Args:
        tick: Length of the unit in which the container counts time, in seconds.
        period: Time from one frame to the next, in seconds.
    """
    return EXACT if tick >= 0.9 * period else max(EXACT, min(tick, period / 4))


def shown_from(frames: Iterator[Timed], start: float, period: float) -> Iterator[Timed]:
    """Yields every frame once, starting with the one that is visible at `start`.

    Args:
        frames: All frames of a file from its first one on, or from any frame at or before `start`, by time.
        start: Seconds since the file's first frame.
        period: How many seconds a file's only frame is visible.
    """
    first: Timed | None = None
    shown: Timed | None = None
    seen = 0
    for frame in frames:
        first, seen = first or frame, seen + 1
        if frame.time - frame.slack > start:
            if shown is not None:
                yield shown
                shown = None
            yield frame
        else:
            shown = frame
    if first is not None and shown is not None and start < _end(first, shown, seen, period):
        yield shown


def shown_at(frames: Iterator[Timed], start: float, fps: float) -> Iterator[Timed]:
    """Yields the frame that is visible at start, at start + 1 / fps, at start + 2 / fps and so on.

    The last frame is visible for as long as the frames before it on average. A frame may be repeated or left out.

    Args:
        frames: As in `shown_from`.
        start: Seconds since the file's first frame.
        fps: Frames per second of the result.
    """
    first: Timed | None = None
    shown: Timed | None = None
    n, seen = 0, 0
    for frame in frames:
        first = first or frame
        while shown is not None and start + n / fps < frame.time - frame.slack:
            yield shown
            n += 1
        shown, seen = frame, seen + 1
    if first is None or shown is None:
        return
    end = _end(first, shown, seen, 1 / fps)
    while start + n / fps < end:
        yield shown
        n += 1


def _end(first: Timed, last: Timed, count: int, period: float) -> float:
    """When the last of `count` frames ends: it lasts as long as the others on average, a single one for `period`."""
    return last.time + ((last.time - first.time) / (count - 1) - last.slack if count > 1 else period)
