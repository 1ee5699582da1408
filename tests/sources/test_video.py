"""Video folders as sources of clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.media.videos import VideoWriter, count_frames, expected_frames
from ul_tokenizer.sources.video import VideoSource


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """40 frames, whose mean grey is their number, and whose grain is new in each, so that none is small."""
    path = tmp_path / "videos" / "a.mp4"
    path.parent.mkdir()
    grain = np.random.default_rng(0).integers(-15, 16, (40, 64, 64, 1))
    with VideoWriter(path, 10) as writer:
        for n in range(40):
            writer.write((20 + 5 * n + np.tile(grain[n], 3)).astype(np.uint8))
    return path


def test_clips_are_counted_without_decoding_and_each_is_read_whole(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise AssertionError("all was decoded")

    monkeypatch.setattr("ul_tokenizer.media.videos.count_frames", refuse)
    samples = VideoSource(video.parent, 8, stride=4)
    assert len(samples) == 9
    for index in range(9):
        greys = [frame.mean() for frame in samples.open(index).read()]
        assert np.abs(np.array(greys) - (20 + 5 * (4 * index + np.arange(8)))).max() < 3


def test_a_clip_that_damage_cuts_short_is_refused_when_it_is_read(video: Path) -> None:
    content = bytearray(video.read_bytes())
    start = content.index(b"mdat") + 4
    end = content.index(b"moov") if content.index(b"moov") > start else len(content)
    middle = start + (end - start) * 2 // 3
    content[middle : end - 8] = bytes(end - 8 - middle)
    video.write_bytes(content)
    expected, there = expected_frames(video), count_frames(video)
    assert there < expected == 40
    samples = VideoSource(video.parent, 8)
    assert len(samples) == 5
    with pytest.raises(UnreadableImageError, match=r"frames can be read|can't be read"):
        samples.open(4).read()
