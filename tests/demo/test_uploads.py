"""Uploaded files: good ones are scaled to the limit, bad ones are answered with one sentence that names them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.demo.conftest import PHOTO
from ul_tokenizer.demo.uploads import Upload, UploadError, pan_over, read_clip, read_picture, read_seed
from ul_tokenizer.media.videos import VideoWriter


def upload(path: Path) -> Upload:
    return Upload(path, path.name)


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), (40 * number, 90, 90)) for number in range(3)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


def with_sound_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)


def write_clip(path: Path, frames: int = 6, size: tuple[int, int] = (64, 48)) -> Path:
    with VideoWriter(path, 10.0) as writer:
        for number in range(frames):
            writer.write(np.full((size[1], size[0], 3), 30 * number % 256, np.uint8))
    return path


BAD_PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.jpg": (lambda path: path.write_bytes(b""), "the file is empty"),
    "renamed.jpg": (lambda path: path.write_text("not a picture " * 100), "not an image of a known format"),
    "truncated.jpg": (lambda path: path.write_bytes(PHOTO.read_bytes()[:9000]), "truncated"),
    "animated.gif": (animated, "animated"),
    "huge.png": (lambda path: Image.new("1", (20_000, 20_000)).save(path), "it has more pixels than are allowed"),
    "clip.png": (lambda path: write_clip(path.with_suffix(".mp4")).rename(path), "not an image of a known format"),
}
BAD_CLIPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.mp4": (lambda path: path.write_bytes(b""), ""),
    "renamed.mp4": (lambda path: path.write_text("not a clip " * 100), ""),
    "sound.mp4": (with_sound_only, "there is no video stream in it"),
    "truncated.mp4": (lambda path: path.write_bytes(write_clip(path).read_bytes()[:300]), ""),
    "renamed.gif": (lambda path: path.write_text("not an animation"), ""),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_is_answered_with_one_sentence_with_its_name_and_no_path(name: str, tmp_path: Path) -> None:
    make, reason = BAD_PICTURES[name]
    make(tmp_path / name)
    with pytest.raises(UploadError, match=f"^“{re.escape(name)}” can't be read: .*{reason}") as error:
        read_picture(upload(tmp_path / name), 256)
    assert str(tmp_path) not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("name", BAD_CLIPS)
def test_a_bad_clip_is_answered_with_one_sentence_with_its_name_and_no_path(name: str, tmp_path: Path) -> None:
    make, reason = BAD_CLIPS[name]
    make(tmp_path / name)
    with pytest.raises(UploadError, match=f"^“{re.escape(name)}” can't be read: .*{reason}") as error:
        read_clip(upload(tmp_path / name), 128, 8)
    assert str(tmp_path) not in str(error.value)


def test_nothing_uploaded_is_answered_with_what_to_do() -> None:
    with pytest.raises(UploadError, match=r"^Please drop the first picture first\.$"):
        read_picture(None, 256, "the first picture")
    with pytest.raises(UploadError, match=r"^Please drop a clip first\.$"):
        read_clip(None, 128, 8)


def test_a_picture_of_40_megapixels_is_scaled_down_with_a_sentence(tmp_path: Path) -> None:
    Image.new("RGB", (8000, 5000), "teal").save(tmp_path / "large.jpg")
    picture = read_picture(upload(tmp_path / "large.jpg"), 256)
    assert picture.image.size == (256, 160)
    assert picture.note == "“large.jpg” has 8000×5000 pixels and was scaled down to 256×160."


def test_a_small_picture_stays_as_it_is() -> None:
    picture = read_picture(upload(PHOTO), 512)
    assert picture.image.size == (512, 384) and not picture.note


def test_a_narrow_picture_keeps_at_least_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 2)).save(tmp_path / "line.png")
    assert read_picture(upload(tmp_path / "line.png"), 256).image.size == (256, 1)


def test_a_clip_is_cut_and_scaled_with_sentences(tmp_path: Path) -> None:
    clip = read_clip(upload(write_clip(tmp_path / "clip.mp4", frames=9)), 32, 4)
    assert [frame.shape for frame in clip.frames] == [(24, 32, 3)] * 4
    assert clip.fps == 10.0
    assert clip.note == ("Only the first 4 frames of “clip.mp4” are used. Its 64×48 pixels were scaled down to 32×24.")


def test_a_clip_within_the_limits_is_whole_and_has_no_note(tmp_path: Path) -> None:
    clip = read_clip(upload(write_clip(tmp_path / "clip.mp4", frames=4)), 64, 4)
    assert len(clip.frames) == 4 and not clip.note


def test_a_pan_moves_over_the_photo() -> None:
    clip = pan_over(PHOTO, 128, 16)
    assert len(clip.frames) == 16
    assert {frame.shape for frame in clip.frames} == {(96, 128, 3)}
    assert np.abs(clip.frames[0].astype(int) - clip.frames[-1]).mean() > 10


@pytest.mark.parametrize("value", [None, -1, 2**32, 1.5, float("nan"), float("inf")])
def test_a_seed_that_is_none_is_refused(value: float | None) -> None:
    with pytest.raises(UploadError, match="whole number from 0 to 4294967295"):
        read_seed(value)
