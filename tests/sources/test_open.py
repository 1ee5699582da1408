"""Which source a path or a hub id stands for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.hub.loopback_hub import LoopbackHub
from tests.sources.samples import png, tar, write
from ul_tokenizer.media.images import read_image
from ul_tokenizer.sources.open import open_source


def test_what_does_not_exist_is_one_sentence() -> None:
    with pytest.raises(
        ValueError,
        match="or the id of a data set on the hub, got /no/such/folder, which does not exist",
    ):
        open_source("/no/such/folder")


def test_sources_travel_to_worker_processes(tmp_path: Path) -> None:
    write(tmp_path / "folder", a_png=png())
    tar(tmp_path / "a.tar", [("1.png", png())])
    for name in ("folder", "a.tar"):
        source = pickle.loads(pickle.dumps(open_source(str(tmp_path / name))))
        assert read_image(source.open(0)).size == (8, 6)


# ---------------------------------------------------------------- clips


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("owner/videos", "which does not exist here; videos of a hub data set must be downloaded first"),
        ("a.tar", "which is an archive or a table; its videos must be unpacked first"),
        ("a.parquet", "which is an archive or a table; its videos must be unpacked first"),
        (".", r"got none in \.: a.parquet: .parquet is not the suffix of a video"),
    ],
)
def test_clips_of_anything_but_video_files_are_refused(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tar(Path("a.tar"), [("1.png", png())])
    Path("a.parquet").write_bytes(b"PAR1")
    hub.add("owner/videos", {"a.mp4": b""}, kind="dataset")
    with pytest.raises(ValueError, match=reason):
        open_source(source, clip_frames=4)


@pytest.mark.parametrize("options", [{"clip_stride": 2}, {"clip_fps": 5.0}, {"clip_without_cuts": True}])
def test_options_of_clips_need_their_length(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="need clip_frames"):
        open_source(str(write(tmp_path, a_png=png())), **options)
