"""Videos in and out: exact frames, odd files, and bad ones."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ul_tokenizer.media.videos import (
    UnreadableVideoError,
    VideoWriter,
    count_frames,
    expected_frames,
    probe,
    read_frames,
)


def number(n: int, size: tuple[int, int] = (32, 48)) -> Any:
    """A frame that shows its number: the grey of its blocks in binary."""
    frame = np.full((*size, 3), 128, np.uint8)
    for bit in range(8):
        frame[8:24, 6 * bit : 6 * bit + 6] = 235 if n >> bit & 1 else 16
    return frame


def numbers(frames: Any) -> list[int]:
    """What frames show."""
    return [sum((frame[14, 6 * bit + 3].mean() > 128) << bit for bit in range(8)) for frame in frames]


def write(
    path: Path,
    count: int = 60,
    rate: int = 30,
    times: list[int] | None = None,
    options: dict[str, str] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    size: tuple[int, int] = (32, 48),
) -> Path:
    """A file whose frames show their numbers; `times` in 1/rate seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {"crf": "10", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], pixels
        stream.codec_context.time_base = Fraction(1, rate)
        for n in range(count):
            frame = av.VideoFrame.from_ndarray(number(n, size), format="rgb24")
            frame.pts, frame.time_base = (times[n] if times else n), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


# ---------------------------------------------------------------- exact frames


def test_every_frame_comes_once_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")
    assert numbers(read_frames(path)) == list(range(60))
    assert count_frames(path) == 60
    info = probe(path)
    assert (info.width, info.height, info.fps, info.seconds, info.has_audio) == (48, 32, 30.0, 2.0, False)


@pytest.mark.parametrize("start", [0, 1, 11, 12, 13, 119, 120, 121, 200])
def test_seeking_is_exact_to_the_frame(tmp_path: Path, start: int) -> None:
    """Among keyframes every 12 frames, with frames that depend on later ones."""
    path = write(tmp_path / "a.mp4", count=240)
    assert numbers(read_frames(path, start=start / 30, num_frames=3)) == [start, start + 1, start + 2]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])  # counting in 1/15360 s, in milliseconds, in frames
@pytest.mark.parametrize(("fps", "step"), [(15, 2), (10, 3), (30, 1)])
def test_a_lower_rate_takes_the_frame_that_is_shown(tmp_path: Path, fps: float, step: int, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}")
    assert numbers(read_frames(path, fps=fps)) == list(range(0, 60, step))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".flv"])
def test_a_video_ends_where_it_ends_from_wherever_it_is_read(tmp_path: Path, suffix: str) -> None:
    """What is read after a seek doesn't know how many frames there were before."""
    path = write(tmp_path / f"a{suffix}", count=120)
    for fps, step in ((None, 1), (30, 1), (15, 2)):
        for start in (0, 1, 3, 3.9):
            assert numbers(read_frames(path, start=start, fps=fps)) == list(range(round(start * 30), 120, step))
        assert list(read_frames(path, start=4, fps=fps)) == []


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".ts"])
def test_seeking_is_exact_with_few_keyframes(tmp_path: Path, suffix: str) -> None:
    """MPEG-TS is put behind the place, and AVI's times are in the order of decoding."""
    path = write(tmp_path / f"a{suffix}", count=240, options={"crf": "10", "g": "150", "keyint_min": "150"})
    for start in (70, 149, 150, 151, 238):
        assert numbers(read_frames(path, start=start / 30, num_frames=2)) == [start, start + 1]


@pytest.mark.parametrize("fps", [None, 30])
def test_between_two_frames_the_first_of_them_is_shown(tmp_path: Path, fps: float | None) -> None:
    path = write(tmp_path / "a.mp4", count=120)
    for start in (0.5, 1.5, 70.9, 119.9):
        assert numbers(read_frames(path, start=start / 30, num_frames=1, fps=fps)) == [int(start)]


def test_a_higher_rate_repeats_frames(tmp_path: Path) -> None:
    assert numbers(read_frames(write(tmp_path / "a.mp4", count=4), fps=60)) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_rates_that_vary_are_evened_out_by_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", count=6, times=[0, 1, 2, 30, 31, 60])
    assert numbers(read_frames(path)) == list(range(6))
    at_ten = numbers(read_frames(path, fps=10))
    assert at_ten[:10] == [0, *[2] * 9]
    assert at_ten[10:20] == [3, *[4] * 9]
    assert at_ten[20] == 5
    assert expected_frames(path, 10) == len(at_ten) and expected_frames(path) == 6


# ---------------------------------------------------------------- odd files


@pytest.mark.parametrize(
    ("codec", "pixels", "suffix", "options"),
    [
        ("libx264", "yuv422p", ".mp4", {"crf": "8"}),
        ("libx264", "yuv444p", ".mkv", {"crf": "8"}),
        ("libx264", "yuv420p10le", ".mp4", {"crf": "8"}),
        ("libx264", "yuv422p10le", ".mov", {"crf": "8"}),
        ("prores_ks", "yuv422p10le", ".mov", {"profile": "3"}),
        ("mpeg4", "yuv420p", ".avi", {"qscale": "2", "b": "4000000"}),
        ("ffv1", "bgra", ".mkv", {"g": "1"}),
    ],
)
def test_other_codecs_and_formats_give_the_same_frames(
    tmp_path: Path, codec: str, pixels: str, suffix: str, options: dict[str, str]
) -> None:
    path = write(tmp_path / f"a{suffix}", 20, codec=codec, pixels=pixels, options=options)
    frames = list(read_frames(path))
    assert numbers(frames) == list(range(20))
    assert {(frame.dtype, frame.shape) for frame in frames} == {(np.dtype(np.uint8), (32, 48, 3))}
    for fps in (None, 7, 30, 41.5):
        assert expected_frames(path, fps) == count_frames(path, fps)


@pytest.mark.parametrize("name", ["hevc-10-bit.mp4", "vp9.webm", "vp8.webm", "av1.mp4"])
def test_codecs_of_the_web_give_the_same_frames(name: str) -> None:
    """Files of 20 frames at 30 a second, a keyframe every 8; they lie here, as not every PyAV writes these codecs."""
    path = Path(__file__).parent / "videos" / name
    frames = list(read_frames(path))
    assert numbers(frames) == list(range(20)) and frames[0].shape == (64, 64, 3)
    for start in range(20):
        assert numbers(read_frames(path, start=start / 30, num_frames=1)) == [start]
    assert numbers(read_frames(path, fps=15)) == list(range(0, 20, 2))
    for fps in (None, 7, 30, 41.5):
        assert expected_frames(path, fps) == count_frames(path, fps)


def test_rotation_is_applied(tmp_path: Path) -> None:
    plain, turned = write(tmp_path / "a.mp4", 4), tmp_path / "turned.mp4"
    with av.open(str(plain)) as source, av.open(str(turned), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV can't write a rotation")
        stream.set_display_rotation(90)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert next(read_frames(turned)).shape == (48, 32, 3)


def test_transparent_frames_are_put_on_white(tmp_path: Path) -> None:
    images = [Image.new("RGBA", (16, 16), (255, 0, 0, alpha)) for alpha in (0, 255)]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], duration=50, lossless=True)
    first, second = read_frames(tmp_path / "a.webp")
    assert (first == 255).all()
    assert (second[8, 8] == (255, 0, 0)).all()


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_are_videos(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(number(n)) for n in range(5)]
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], duration=100, loop=0)
    assert numbers(read_frames(tmp_path / f"a{suffix}")) == list(range(5))
    assert probe(tmp_path / f"a{suffix}").fps == 10
    assert numbers(read_frames(tmp_path / f"a{suffix}", fps=5)) == [0, 2, 4]


def test_a_folder_of_images_is_a_video(tmp_path: Path) -> None:
    for n in range(6):
        Image.fromarray(number(n)).save(tmp_path / f"{n:03d}.png")
    assert numbers(read_frames(tmp_path)) == list(range(6))
    assert numbers(read_frames(tmp_path, start=2 / 25, num_frames=2)) == [2, 3]
    assert (probe(tmp_path).width, probe(tmp_path).fps) == (48, 25.0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnreadableVideoError, match="there is no image in the folder"):
        probe(tmp_path / "empty")


def test_a_header_that_says_absurd_things_is_not_believed(tmp_path: Path) -> None:
    """A duration of years, as a last frame that lies far off makes it."""
    path = write(tmp_path / "a.mkv", count=3, times=[0, 1, 30 * 3600 * 24 * 400])
    assert probe(path).seconds is None
    notes: list[str] = []
    assert numbers(read_frames(path, notes=notes)) == [0, 1, 2]
    assert "was removed" in notes[0]
    assert numbers(read_frames(path, fps=30)) == [0, 1, 2]


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 1)
    assert numbers(read_frames(path)) == [0]
    assert numbers(read_frames(path, fps=10)) == [0]


def test_frames_of_another_size_are_scaled_to_the_first(tmp_path: Path) -> None:
    parts = [
        write(tmp_path / f"{n}.ts", 4, size=size, codec="mpeg2video", options={"b": "3000000"})
        for n, size in enumerate(((32, 48), (64, 96)))
    ]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    notes: list[str] = []
    frames = list(read_frames(tmp_path / "both.ts", notes=notes))
    assert {frame.shape for frame in frames} == {(32, 48, 3)}
    assert len(frames) >= 7
    assert any("scaled to the 48×32 of the first" in note for note in notes)


# ---------------------------------------------------------------- bad files


def test_a_truncated_file_gives_the_frames_that_are_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = numbers(read_frames(path))
    assert 5 < len(found) < 60
    assert found[:10] == list(range(10))
    assert found == sorted(found)  # at the cut, frames that depend on lost ones are lost, too
    assert len(found) <= expected_frames(path) < 60


def test_damaged_packets_are_passed_over_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", codec="mpeg4", options={"g": "1", "b": "3000000"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    assert len(list(read_frames(path))) > 30


@pytest.mark.parametrize("content", [b"", b"no video at all", bytes(10_000)])
def test_what_is_no_video_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    (tmp_path / "a.gif").write_bytes(content)
    for name in ("a.mp4", "a.gif", "none.mp4", "none.webp"):
        for read in (lambda path: list(read_frames(path)), probe):
            with pytest.raises(UnreadableVideoError, match=r"can't be read: ") as error:
                read(tmp_path / name)
            assert "\n" not in str(error.value)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(8000))
    with pytest.raises(UnreadableVideoError, match="there is no video stream in it"):
        probe(tmp_path / "a.wav")


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(tmp_path: Path, fps: float) -> None:
    path = write(tmp_path / "a.mp4", 2)
    with pytest.raises(ValueError, match="fps must be positive and finite"):
        list(read_frames(path, fps=fps))
    with pytest.raises(ValueError, match="fps must be above 0"):
        VideoWriter(tmp_path / "b.mp4", fps)


def test_a_start_behind_the_end_gives_nothing_and_doesnt_hang(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 30)
    try:
        assert list(read_frames(path, start=1e6)) == []
    except UnreadableVideoError as error:
        assert "from second" in str(error)


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("size", [(32, 48), (31, 47)])
def test_what_is_written_is_read_again(tmp_path: Path, size: tuple[int, int]) -> None:
    with VideoWriter(tmp_path / "deep" / "a.mp4", 24) as writer:
        for n in range(30):
            writer.write(number(n)[: size[0], : size[1]])
    assert numbers(read_frames(tmp_path / "deep" / "a.mp4"))[:30:7] == [0, 7, 14, 21, 28]
    info = probe(tmp_path / "deep" / "a.mp4")
    assert (info.fps, info.width, info.height) == (24.0, 48, 32)


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"from before")
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4", 24) as writer:
        writer.write(number(0))
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"from before"


def test_sound_is_copied_on_request(tmp_path: Path) -> None:
    source = tmp_path / "source.mp4"
    with av.open(str(source), "w") as container:
        video, sound = container.add_stream("libx264", rate=24), container.add_stream("aac", rate=44100)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        for n in range(24):
            container.mux(video.encode(av.VideoFrame.from_ndarray(number(n), format="rgb24")))
        for n in range(43):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 44100, 1024 * n
            container.mux(sound.encode(samples))
        for stream in (video, sound):
            container.mux(stream.encode())
    for audio, expected in ((source, True), (None, False), (write(tmp_path / "silent.mp4", 2), False)):
        with VideoWriter(tmp_path / "out.mp4", 24, audio) as writer:
            for n in range(24):
                writer.write(number(n))
        assert probe(tmp_path / "out.mp4").has_audio == expected
        assert count_frames(tmp_path / "out.mp4") == 24
