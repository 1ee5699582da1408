"""Reads the frames of videos and writes videos, with PyAV; errors are one sentence about what is wrong with a file."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image, ImageSequence, UnidentifiedImageError

from ul_tokenizer.files import temporary_path
from ul_tokenizer.media.frame_times import Frame, Timed, rounding, shown_at, shown_from
from ul_tokenizer.media.images import UnreadableImageError, find_images, read_image

if TYPE_CHECKING:
    from typing_extensions import Self

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ogv", ".ts", ".wmv", ".flv", ".3gp", ".y4m")
)
ANIMATION_SUFFIXES = frozenset((".gif", ".webp", ".apng"))
DEFAULT_FPS = 25.0  # for files that have no rate
SEQUENCE_FPS = DEFAULT_FPS  # for folders of images
MAX_FPS, MAX_SECONDS = 1000.0, 48 * 3600.0  # larger values in a header are taken for errors
MAX_GAP = 600.0  # seconds between two frames; a longer pause is removed
MAX_PIXELS = 64_000_000  # of a frame
MAX_CORRUPT = 1000  # damaged packets in a row after which reading stops


class UnreadableVideoError(ValueError):
    """No frame of a video can be read.

    Attributes:
        path: The file.
        reason: Why it can't be read, without a full stop.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"Video {path} can't be read: {reason}.")
        self.path, self.reason = Path(path), reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Makes the error picklable."""
        return type(self), (self.path, self.reason)


class VideoInfo(NamedTuple):
    """What a video's headers say; values that are missing or absurd are None."""

    width: int
    height: int  # both after rotation
    fps: float | None
    seconds: float | None
    pixel_format: str
    has_audio: bool

    @property
    def rate(self) -> float:
        """Frames per second: `fps`, or `DEFAULT_FPS` if it is unknown."""
        return self.fps or DEFAULT_FPS


# ---------------------------------------------------------------- reading


def probe(path: str | Path) -> VideoInfo:
    """Reads a video's headers and its first frame.

    Raises:
        UnreadableVideoError: The file doesn't exist, has no video stream, or its beginning is damaged.
    """
    if Path(path).is_dir():
        height, width = next(_sequence(Path(path))).pixels.shape[:2]
        return VideoInfo(width, height, SEQUENCE_FPS, None, "RGB", False)
    if Path(path).suffix.lower() in ANIMATION_SUFFIXES:
        with _animation(path) as image:
            image.load()  # WebP has the duration of a frame only after it is read
            fps = 1000 / image.info["duration"] if image.info.get("duration") else None
            return VideoInfo(image.width, image.height, fps, None, image.mode, False)
    with _opened(path) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        width, height = _upright_size(next(_decoded(container, path, [])))
        seconds = float(container.duration / av.time_base) if container.duration else None
        return VideoInfo(
            width,
            height,
            _believable(_rate(stream), MAX_FPS),
            _believable(seconds, MAX_SECONDS),
            context.pix_fmt or "unknown",
            bool(container.streams.audio),
        )


def read_frames(
    path: str | Path,
    start: float = 0.0,
    num_frames: int | None = None,
    fps: float | None = None,
    *,
    threads: int = 0,
    notes: list[str] | None = None,
) -> Iterator[Frame]:
    """Decodes frames in the order of their times.

    Rotation is applied, and transparency is composited on white. Frames of another size than the first one are scaled
    to its size.

    Args:
        path: A video file, an animated GIF, WebP or PNG, or a folder of images. Images are sorted by name and read at
            `SEQUENCE_FPS`.
        start: Seconds since the first frame. The result begins with the frame that is visible at this time.
        num_frames: The largest number of frames to yield; None has no limit.
        fps: Frames per second of the result: frame n is the one visible at start + n / fps. None yields every frame
            once.
        threads: Threads of the decoder. 0 lets FFmpeg choose; use 1 if several processes decode at once.
        notes: A list to which a sentence is appended for each problem that could be worked around.

    Yields:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: `fps` is not positive and finite.
        UnreadableVideoError: Not a single frame can be read.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be positive and finite, got {fps}.")
    shown = _shown(path, start, fps, threads, [] if notes is None else notes)
    yield from (frame.pixels for frame in itertools.islice(shown, num_frames))


def count_frames(path: str | Path, fps: float | None = None) -> int:
    """Number of frames that `read_frames` yields; all are decoded, since headers are often wrong."""
    return sum(1 for _ in _shown(path, 0.0, fps, 0, []))


def expected_frames(path: str | Path, fps: float | None = None) -> int:
    """Number of frames that `read_frames` yields if the file is undamaged, from the packets' times without decoding.

    Raises:
        UnreadableVideoError: Nothing in the file can be read.
    """
    if Path(path).is_dir() or Path(path).suffix.lower() in ANIMATION_SUFFIXES:
        return count_frames(path, fps)
    with _opened(path) as container:
        stream = container.streams.video[0]
        try:
            packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
            times = sorted(float(packet.pts * packet.time_base) for packet in packets)
        except (FFmpegError, OSError, TypeError):  # damage, or no times
            return count_frames(path, fps)
        slack = _slack(stream)
    if not times or max(np.diff(times), default=0) > MAX_GAP:
        return count_frames(path, fps)
    if fps is None:
        return len(times)
    return sum(1 for _ in shown_at((Timed(time - times[0], _not_rendered, slack) for time in times), 0.0, fps))


def _not_rendered() -> Frame:
    raise AssertionError("frames are only counted")


def _shown(path: str | Path, start: float, fps: float | None, threads: int, notes: list[str]) -> Iterator[Timed]:
    frames = _timed(path, start, threads, notes)
    return shown_from(frames, start, 1 / DEFAULT_FPS) if fps is None else shown_at(frames, start, fps)


def _timed(path: str | Path, start: float, threads: int, notes: list[str]) -> Iterator[Timed]:
    """All frames from the first one on, or from a keyframe before `start` on, with their times."""
    if Path(path).is_dir():
        yield from _sequence(Path(path))
        return
    if Path(path).suffix.lower() in ANIMATION_SUFFIXES:
        yield from _animated(path)
        return
    with _opened(path) as container:
        stream = container.streams.video[0]
        if threads:
            stream.codec_context.thread_count = threads
        else:
            stream.thread_type = "AUTO"
        frames = _decoded(container, path, notes)
        first = next(frames)
        frames = itertools.chain([first], frames)
        origin, period, slack = _stamp(first, stream), _period(stream), _slack(stream)
        if start > 2 and origin is not None:  # below two seconds, decoding is faster than seeking
            try:
                frames = _sought(container, path, origin + start + slack, notes)
            except (FFmpegError, UnreadableVideoError):
                raise UnreadableVideoError(path, f"it can't be read from second {start:g} on") from None
        origin, size = origin or 0.0, _upright_size(first)
        before: float | None = None
        for frame in frames:
            stamp = _stamp(frame, stream)
            if stamp is None:
                stamp = origin if before is None else origin + before + period
            time = stamp - origin
            if before is not None and time - before > MAX_GAP:  # a wrong time would otherwise repeat a frame for hours
                notes.append(f"{path}: a pause of {time - before:.0f} seconds was removed.")
                origin += time - before - period
                time = before + period
            before = time
            yield Timed(time, partial(_pixels, frame, size, notes), slack)


def _sought(container: Any, path: str | Path, stamp: float, notes: list[str]) -> Iterator[av.VideoFrame]:
    """Frames from a keyframe at or before `stamp` on. If a seek ends too late (MPEG-TS), earlier times are tried."""
    stream = container.streams.video[0]
    for back in (0.0, 1.0, 4.0, 16.0, stamp):
        container.seek(int(max(0.0, stamp - back) / stream.time_base), stream=stream, backward=True)
        frames = _decoded(container, path, notes)
        try:
            first = next(frames)
        except UnreadableVideoError:  # the seek ended after the last keyframe
            continue
        found = _stamp(first, stream)
        if found is None or found <= stamp:
            return itertools.chain([first], frames)
    raise UnreadableVideoError(path, "there is no keyframe before that")


def _decoded(container: Any, path: str | Path, notes: list[str]) -> Iterator[av.VideoFrame]:
    """Frames of the first video stream; packets that can't be decoded are skipped."""
    count, corrupt, in_a_row = 0, 0, 0
    packets = container.demux(container.streams.video[0])
    while in_a_row < MAX_CORRUPT:
        try:
            packet = next(packets, None)
            if packet is None:
                break
            for frame in packet.decode():
                count, in_a_row = count + 1, 0
                yield frame
        except (FFmpegError, EOFError, OSError) as error:
            corrupt, in_a_row = corrupt + 1, in_a_row + 1
            if isinstance(error, EOFError):
                break
    if not count:
        raise UnreadableVideoError(path, "none of its frames can be decoded")
    if corrupt:
        notes.append(f"{path}: {corrupt} damaged parts were skipped; {count} frames could be read.")


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    if not Path(path).is_file():
        raise UnreadableVideoError(path, "there is no such file")
    try:
        container = av.open(str(path))
    except (FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UnreadableVideoError(path, f"{reason}".rstrip(".")) from error
    with container:
        if not container.streams.video:
            raise UnreadableVideoError(path, "there is no video stream in it")
        context = container.streams.video[0].codec_context
        if context.width * context.height > MAX_PIXELS:
            raise UnreadableVideoError(path, f"its frames of {context.width}×{context.height} pixels are too large")
        yield container


def _stamp(frame: av.VideoFrame, stream: Any) -> float | None:
    """A frame's time in seconds. AVI stores the order of decoding only, from which FFmpeg makes `dts`."""
    ticks = frame.dts if stream.container.format.name == "avi" else frame.pts
    return None if ticks is None or not frame.time_base else float(ticks * frame.time_base)


def _period(stream: Any) -> float:
    """Seconds from frame to frame according to the header, but at most one second, since headers are often wrong."""
    return min(1.0, 1 / (_believable(_rate(stream), MAX_FPS) or DEFAULT_FPS))


def _slack(stream: Any) -> float:
    return rounding(float(stream.time_base or 0), _period(stream))


def _rate(stream: Any) -> float | None:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    return float(rate) if rate else None


def _believable(value: float | None, most: float) -> float | None:
    return value if value is not None and 0 < value <= most else None


def _pixels(frame: av.VideoFrame, size: tuple[int, int], notes: list[str]) -> Frame:
    """The frame as RGB, rotated upright and scaled to `size`, (width, height)."""
    if any(component.is_alpha for component in frame.format.components):
        rgba = frame.to_ndarray(format="rgba").astype(np.float32)
        alpha = rgba[..., 3:] / 255
        pixels: Any = np.round(rgba[..., :3] * alpha + 255 * (1 - alpha))
    else:
        pixels = frame.to_ndarray(format="rgb24")
    pixels = np.rot90(pixels, _quarter_turns(frame)).astype(np.uint8, copy=False)
    if (pixels.shape[1], pixels.shape[0]) != size:
        note = (
            f"frames of {pixels.shape[1]}×{pixels.shape[0]} pixels were scaled to the {size[0]}×{size[1]} of the first."
        )
        if note not in notes:
            notes.append(note)
        pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC))
    return np.ascontiguousarray(pixels)


def _upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Width and height after rotation."""
    return (frame.height, frame.width) if _quarter_turns(frame) % 2 else (frame.width, frame.height)


def _quarter_turns(frame: av.VideoFrame) -> int:
    return round(getattr(frame, "rotation", 0) / 90) % 4


@contextmanager
def _animation(path: str | Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise UnreadableVideoError(path, "there is no such file") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableVideoError(path, " ".join(str(error).split()).rstrip(".")) from error


def _animated(path: str | Path) -> Iterator[Timed]:
    with _animation(path) as image:
        time = 0.0
        for frame in ImageSequence.Iterator(image):
            rgba = frame.convert("RGBA")
            whole = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
            yield Timed(time, partial(np.array, whole))
            time += (frame.info.get("duration") or 100) / 1000


def _sequence(folder: Path) -> Iterator[Timed]:
    """The images of a folder as frames."""
    paths = find_images(folder).images
    if not paths:
        raise UnreadableVideoError(folder, "there is no image in the folder")
    first = _image(paths[0])
    yield Timed(0.0, partial(np.array, first))
    for number, path in enumerate(paths[1:], 1):
        yield Timed(number / SEQUENCE_FPS, partial(_sized, path, first.size))


def _sized(path: Path, size: tuple[int, int]) -> Frame:
    image = _image(path)
    return np.array(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))


def _image(path: Path) -> Image.Image:
    try:
        return read_image(path)
    except UnreadableImageError as error:
        raise UnreadableVideoError(path, error.reason) from error


# ---------------------------------------------------------------- writing


class VideoWriter:
    """Writes an MP4 file with H.264, under a temporary name until it is complete.

    Args:
        path: The file, whose name must end in .mp4.
        fps: Frames per second.
        audio_from: A file whose first audio stream is copied, if MP4 supports its codec.
        crf: Quality of H.264: 0 is lossless, losses at 18 are hardly visible, 51 is the worst.

    Attributes:
        num_frames: Number of frames written so far.

    Raises:
        ValueError: `fps` is out of range, or `path` has another suffix.
        OSError: The file can't be written.
    """

    def __init__(self, path: str | Path, fps: float, audio_from: str | Path | None = None, crf: int = 16) -> None:
        self.path, self.fps, self.audio_from, self.crf = Path(path), fps, audio_from, crf
        if self.path.suffix != ".mp4":
            raise ValueError(f"path must end in .mp4, got {path}.")
        if not 0 < fps <= MAX_FPS:
            raise ValueError(f"fps must be above 0 and at most {MAX_FPS:g}, got {fps}.")
        self._temporary = temporary_path(self.path, ".tmp.mp4")
        self._container: Any = None
        self._stream: Any = None
        self.num_frames = 0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._container = av.open(str(self._temporary), "w")
        except FFmpegError as error:
            raise OSError(f"{self.path} can't be written: {error}") from error
        return self

    def write(self, pixels: Frame) -> None:
        """Appends a frame, (H, W, 3) uint8. In odd sizes the last row or column is repeated: H.264 needs even ones."""
        height, width = pixels.shape[:2]
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            rate = Fraction(self.fps).limit_denominator(1001)
            self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": str(self.crf)})
            self._stream.width, self._stream.height = pixels.shape[1], pixels.shape[0]
            self._stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
        self.num_frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._stream is not None:
                for packet in self._stream.encode():
                    self._container.mux(packet)
            self._container.close()
            if kind is None and self.num_frames:
                if self.audio_from is not None:
                    _add_audio(self._temporary, self.audio_from)
                os.replace(self._temporary, self.path)
        except FFmpegError as failure:
            raise OSError(f"{self.path} can't be written: {failure}") from failure
        finally:
            self._temporary.unlink(missing_ok=True)


def _add_audio(video: Path, source: str | Path) -> None:
    """Copies the first audio stream of `source` into `video`, if there is one that MP4 supports."""
    both = video.with_name(f"{video.stem}.audio.mp4")
    try:
        with av.open(str(video)) as silent, av.open(str(source)) as sound, av.open(str(both), "w") as out:
            if not sound.streams.audio:
                return
            pairs = [(c, c.streams.video[0] if c is silent else c.streams.audio[0]) for c in (silent, sound)]
            copies = [out.add_stream_from_template(stream) for _, stream in pairs]
            for (container, stream), copy in zip(pairs, copies, strict=True):
                for packet in container.demux(stream):
                    if packet.dts is not None:
                        packet.stream = copy
                        out.mux(packet)
        os.replace(both, video)
    except (FFmpegError, ValueError, OSError):
        return  # MP4 doesn't support the codec; a video without sound is better than none
    finally:
        both.unlink(missing_ok=True)
