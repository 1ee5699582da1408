"""Which frames are shown, against a definition that looks at all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ul_tokenizer.media.frame_times import EXACT, Frame, Timed, rounding, shown_at, shown_from

PERIOD = 0.04

# Milliseconds from frame to frame. Starts lie at odd tenths of a millisecond, so that none is a frame's time itself.
gaps = st.lists(st.integers(1, 200), max_size=12)
starts = st.integers(0, 1500).map(lambda n: n / 1000 + 0.0003)
rates = st.sampled_from([1.0, 3.0, 7.0, 24.0, 30.0, 144.0])


def timed(gaps: list[int], slack: float = EXACT) -> list[Timed]:
    times = np.concatenate([[0], np.cumsum(gaps)]) / 1000
    return [Timed(float(time), lambda: np.zeros((1, 1, 3), np.uint8), slack) for time in times]


def end_of(frames: list[Timed], period: float) -> float:
    """When the last frame ends: it lasts as long as those before on average, the only one a period."""
    if len(frames) == 1:
        return frames[0].time + period
    return frames[-1].time + (frames[-1].time - frames[0].time) / (len(frames) - 1)


def visible(frames: list[Timed], time: float) -> Timed:
    """By definition: the last frame whose time has come, or the first one."""
    return [frame for frame in frames if frame.time <= time or frame is frames[0]][-1]


@settings(deadline=None)
@given(gaps, starts)
def test_from_a_moment_on_every_frame_comes_once_and_in_order(gaps: list[int], start: float) -> None:
    frames = timed(gaps)
    expected: list[Timed] = []
    if start < end_of(frames, PERIOD) - EXACT:
        expected = frames[frames.index(visible(frames, start)) :]
    assert list(shown_from(iter(frames), start, PERIOD)) == expected


@settings(deadline=None)
@given(gaps, starts, rates)
def test_at_even_times_each_frame_is_the_one_that_is_visible_then(gaps: list[int], start: float, fps: float) -> None:
    frames = timed(gaps)
    end = end_of(frames, 1 / fps)
    count = max(0, math.ceil((end - start) * fps + 1e-9) + 1)
    times = [start + n / fps for n in range(count) if start + n / fps < end - (EXACT if len(frames) > 1 else 0)]
    assert list(shown_at(iter(frames), start, fps)) == [visible(frames, time) for time in times]


@settings(deadline=None)
@given(gaps, starts, rates)
def test_the_number_of_frames_is_the_time_that_is_left_times_the_rate(
    gaps: list[int], start: float, fps: float
) -> None:
    frames = timed(gaps)
    left = max(0.0, end_of(frames, 1 / fps) - start)
    assert abs(len(list(shown_at(iter(frames), start, fps))) - left * fps) <= 1


@settings(deadline=None)
@given(gaps, starts, rates)
def test_a_reader_that_begins_at_an_earlier_frame_shows_the_same(gaps: list[int], start: float, fps: float) -> None:
    """As after a seek; the average length of a frame, which ends the last one, is then that of the others read."""
    frames = timed([*gaps, 40, 40])
    key = frames.index(visible(frames, start))
    for shown, rest in (
        (shown_from(iter(frames), start, PERIOD), shown_from(iter(frames[key:]), start, PERIOD)),
        (shown_at(iter(frames), start, fps), shown_at(iter(frames[key:]), start, fps)),
    ):
        before_the_last = [frame for frame in shown if frame is not frames[-1]]
        assert [frame for frame in rest if frame is not frames[-1]] == before_the_last


@settings(deadline=None)
@given(st.integers(2, 40), st.sampled_from([10, 24, 25, 30, 50, 60]))
def test_times_in_whole_milliseconds_show_every_frame_once_at_the_files_own_rate(count: int, fps: int) -> None:
    slack = rounding(0.001, 1 / fps)
    frames = [Timed(round(n / fps, 3), _black, slack) for n in range(count)]
    assert list(shown_at(iter(frames), 0.0, fps)) == frames


def _black() -> Frame:
    return np.zeros((1, 1, 3), np.uint8)


@pytest.mark.parametrize("fps", [1.0, 30.0])
def test_no_frames_show_nothing(fps: float) -> None:
    nothing: Iterator[Timed] = iter(())
    assert list(shown_from(nothing, 0.0, PERIOD)) == list(shown_at(nothing, 0.0, fps)) == []


@settings(deadline=None)
@given(st.floats(1e-6, 1.0), st.floats(1e-3, 1.0))
def test_a_rounding_is_never_more_than_a_quarter_of_a_frame(tick: float, period: float) -> None:
    assert EXACT <= rounding(tick, period) <= max(EXACT, period / 4)


def test_pixels_are_converted_only_when_they_are_used() -> None:
    def refuse() -> Frame:
        raise AssertionError("converted")

    frames = [Timed(n / 10, refuse) for n in range(5)]
    assert len(list(shown_at(iter(frames), 0.0, 10.0))) == 5
