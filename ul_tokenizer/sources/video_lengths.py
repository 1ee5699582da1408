"""The sizes, rates and lengths of all videos below a folder, found out once and stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ul_tokenizer.media.videos import UnreadableVideoError, expected_frames, probe
from ul_tokenizer.sources.base import stamp_of_file
from ul_tokenizer.sources.facts import Facts, StoredFacts


class MeasuredVideo(NamedTuple):
    """A video with what its headers and packets say."""

    path: Path
    width: int
    height: int
    fps: float  # its own rate, or the one that was asked for
    num_frames: int  # at this rate, if the file is undamaged


def measure_videos(
    paths: Sequence[Path],
    root: Path,
    fps: float | None = None,
    *,
    evenly: bool = False,
    folder: Path | None = None,
) -> list[MeasuredVideo | UnreadableVideoError]:
    """Measures videos without decoding more than their first frames, in several threads.

    Args:
        paths: The files.
        root: The folder that holds all of them, or the only file.
        fps: Frames per second at which frames are counted; None counts every frame once.
        evenly: Whether to count frames at each file's own rate if `fps` is None. In files with uneven times, that
            repeats or leaves out some.
        folder: Folder of the stored lengths; None is the cache folder.

    Returns:
        For each file the video, or why it can't be read.
    """
    origin = f"{root.resolve()} at {fps or ('its own rate' if evenly else 'every frame')}"
    names = [str(path.relative_to(root)) for path in paths]
    stored = StoredFacts("video-lengths", origin, folder)
    facts = stored.of(names, lambda n: _stamp(paths[n]), lambda n: _measure(paths[n], fps, evenly), "videos")
    return [_video(path, fact) for path, fact in zip(paths, facts, strict=True)]


def _stamp(path: Path) -> str:
    try:
        return stamp_of_file(path)
    except OSError:
        return ""


def _measure(path: Path, fps: float | None, evenly: bool) -> Facts:
    """Width, height, rate and number of frames; a text if the video can't be read."""
    try:
        info = probe(path)
        rate = fps or info.rate
        return info.width, info.height, rate, expected_frames(path, rate if evenly else fps)
    except UnreadableVideoError as error:
        return error.reason


def _video(path: Path, facts: Facts) -> MeasuredVideo | UnreadableVideoError:
    if isinstance(facts, str):
        return UnreadableVideoError(path, facts)
    return MeasuredVideo(path, *facts)
