"""Which frame is shown when: every frame from a moment on, or those at even times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

EXACT = 1e-6  # seconds; less than this, times differ by arithmetic only
Frame = np.ndarray[Any, np.dtype[np.uint8]]  # (H, W, 3)


@dataclass(eq=False)
class Timed:
    """A frame and its time."""

    time: float  # seconds since the first one
    render: Callable[[], Frame]
    slack: float = EXACT  # seconds by which the container may have rounded the time

    @cached_property
    def pixels(self) -> Frame:
        """Converted when they are asked for: of many frames only some are wanted."""
        return self.render()


def rounding(tick: float, period: float) -> float:
    """By how many seconds the difference of two frames' times may be off.

    Matroska and WebM count milliseconds, so that frames at 30 a second lie at 0, 33, 67, 100: taken at its word, the
    frame at 67 would not be there yet at 2/30 s. A tick as long as a frame (AVI) rounds nothing.

    Args:
        tick: seconds of the unit that times are counted in.
        period: seconds from frame to frame.
    """
    return EXACT if tick >= 0.9 * period else max(EXACT, min(tick, period / 4))


def shown_from(frames: Iterator[Timed], start: float, period: float) -> Iterator[Timed]:
    """Every frame once, from the one that is shown at `start` on; a file's only frame lasts one period."""
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
    """The frame that is shown at each start + n / fps; the last one lasts as long as those before on average."""
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
    """When the last of so many frames is over: it lasts as long as those before on average, the only one a period."""
    return last.time + ((last.time - first.time) / (count - 1) - last.slack if count > 1 else period)
