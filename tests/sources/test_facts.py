"""Facts about files are found out once, and again when a file changes."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.sources.samples import parquet, png, tar, write
from ul_tokenizer.media.videos import VideoWriter, expected_frames, probe
from ul_tokenizer.sources import sizes as sizes_module
from ul_tokenizer.sources import video_lengths
from ul_tokenizer.sources.facts import StoredFacts
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.sources.open import open_source
from ul_tokenizer.sources.sizes import image_sizes
from ul_tokenizer.sources.subset import Subset
from ul_tokenizer.sources.video import VideoSource
from ul_tokenizer.sources.video_lengths import MeasuredVideo, measure_videos

ONES = "111".__getitem__  # every stamp is "1"


class Finder:
    """Counts what it has to find out."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def __call__(self, n: int) -> Any:
        self.found.append(n)
        return [n, "é"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_only_new_and_changed_files_are_looked_at(tmp_path: Path) -> None:
    facts, names = StoredFacts("kind", "origin", tmp_path), ["a", "ü/b", "c"]
    for stamps, expected in ((["1", "1", "1"], [0, 1, 2]), (["1", "1", "1"], []), (["1", "2", "1"], [1])):
        find = Finder()
        assert facts.of(names, stamps.__getitem__, find) == [[0, "é"], [1, "é"], [2, "é"]]
        assert sorted(find.found) == expected
    find = Finder()
    StoredFacts("kind", "another origin", tmp_path).of(names, ONES, find)
    assert len(find.found) == 3


def test_damaged_lines_are_found_out_again(tmp_path: Path) -> None:
    facts = StoredFacts("kind", "origin", tmp_path)
    facts.of(["a", "b"], ONES, Finder())
    lines = facts.path.read_bytes().splitlines()
    facts.path.write_bytes(lines[0] + b"\n" + lines[1][:5] + b'{"x": 1}\n[1, 2]\n' + lines[1][:9])
    find = Finder()
    assert facts.of(["a", "b"], ONES, find) == [[0, "é"], [1, "é"]]
    assert find.found == [1]
    find = Finder()
    facts.of(["a", "b"], ONES, find)
    assert find.found == []


def test_a_folder_that_cannot_be_written_costs_the_memory_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    facts = StoredFacts("kind", "origin", tmp_path / "file")
    assert facts.of(["a"], ONES, Finder()) == [[0, "é"]]


# ---------------------------------------------------------------- images


def turned_jpeg() -> bytes:
    """40×30 pixels that EXIF data turn upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def refuse(*_: object) -> Any:
    raise AssertionError("a header was read again")


def test_sizes_are_upright_read_from_headers_and_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off = png(0, (50, 20))[:60]  # the header is whole
    root = write(tmp_path / "images", a_png=png(0, (8, 6)), b_png=b"junk", c_png=turned_jpeg(), d_png=cut_off)
    source = FolderSource(root)
    expected = [[8, 6], [0, 0], [30, 40], [50, 20]]
    assert image_sizes(source, "here").tolist() == expected
    monkeypatch.setattr(sizes_module, "_size", refuse)
    assert image_sizes(source, "here").tolist() == expected
    assert image_sizes(Subset(source, [3, 0]), "here").tolist() == [expected[3], expected[0]]
    (root / "a.png").write_bytes(png(0, (9, 6)))
    with pytest.raises(AssertionError, match="read again"):
        image_sizes(source, "here")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_sizes_in_archives_and_tables_are_stored_until_these_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def make(count: int) -> Path:
        pictures = [png(n, (8 + n, 6)) for n in range(count)]
        if kind == "parquet":
            return parquet(tmp_path / "a.parquet", image=pictures)
        return tar(tmp_path / "a.tar", [(f"{n}.png", content) for n, content in enumerate(pictures)])

    path = make(3)
    assert image_sizes(open_source(path), "here").tolist() == [[8, 6], [9, 6], [10, 6]]
    with monkeypatch.context() as patch:
        patch.setattr(sizes_module, "_size", refuse)
        assert image_sizes(open_source(path), "here").tolist() == [[8, 6], [9, 6], [10, 6]]
    assert len(image_sizes(open_source(make(4)), "here")) == 4


# ---------------------------------------------------------------- videos


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, count in (("a", 12), ("b", 7)):
        with VideoWriter(folder / f"{name}.mp4", 10) as writer:
            for n in range(count):
                writer.write(np.full((32, 48, 3), 10 * n, np.uint8))
    (folder / "c.mp4").write_bytes(b"junk")
    return folder


def test_videos_are_measured_once_and_broken_ones_are_remembered(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = sorted(videos.iterdir())
    for fps in (None, 5.0):
        first = measure_videos(paths, videos, fps)
        assert first[0] == MeasuredVideo(paths[0], 48, 32, fps or probe(paths[0]).rate, expected_frames(paths[0], fps))
        with monkeypatch.context() as patch:
            patch.setattr(video_lengths, "probe", refuse)
            again = measure_videos(paths, videos, fps)
        assert first[:2] == again[:2]
        assert str(first[2]) == str(again[2]) and "c.mp4 can't be read" in str(again[2])


def test_a_source_of_clips_opens_no_file_the_second_time(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = VideoSource(videos, 4)
    monkeypatch.setattr(video_lengths, "probe", refuse)
    again = VideoSource(videos, 4)
    assert [first.id(n) for n in range(len(first))] == [again.id(n) for n in range(len(again))]
    assert first.skipped == again.skipped and len(first) == 4


def test_processes_take_turns_and_find_out_each_fact_once(tmp_path: Path) -> None:
    found: list[int] = []

    def find(n: int) -> int:
        found.append(n)
        time.sleep(0.02)
        return 10 * n

    def all_facts(_: int) -> list[int]:
        return StoredFacts("squares", "here", tmp_path).of(["a", "b", "c"], lambda n: "1", find)

    with ThreadPoolExecutor(3) as pool:  # each opens the lock anew, as a process does
        assert list(pool.map(all_facts, range(3))) == [[0, 10, 20]] * 3
    assert sorted(found) == [0, 1, 2]
