"""Videos to frames and back, on PyAV: exact frames, odd files, and what is wrong with them in one sentence."""

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

from ul_tokenizer.media.frame_times import Frame, Timed, rounding, shown_at, shown_from
from ul_tokenizer.media.images import UnreadableImageError, find_images, read_image

if TYPE_CHECKING:
    from typing_extensions import Self

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ogv", ".ts", ".wmv", ".flv", ".3gp", ".y4m")
)
ANIMATION_SUFFIXES = frozenset((".gif", ".webp", ".apng"))
DEFAULT_FPS = 25.0  # of what says nothing of it
SEQUENCE_FPS = DEFAULT_FPS  # of images in a folder
MAX_FPS, MAX_SECONDS = 1000.0, 48 * 3600.0  # beyond these a header is not believed
MAX_GAP = 600.0  # seconds between frames
MAX_PIXELS = 64_000_000  # of a frame
MAX_CORRUPT = 1000  # packets in a row


class UnreadableVideoError(ValueError):
    """A file that gives no frames; `reason` says why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"Video {path} can't be read: {reason}.")
        self.path, self.reason = Path(path), reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Exceptions travel from worker processes."""
        return type(self), (self.path, self.reason)


class VideoInfo(NamedTuple):
    """What a file's headers say; what they don't, or absurdly, is None."""

    width: int
    height: int  # both after rotation
    fps: float | None
    seconds: float | None
    pixel_format: str
    has_audio: bool

    @property
    def rate(self) -> float:
        """Frames per second: fps, or DEFAULT_FPS where nothing is said of it."""
        return self.fps or DEFAULT_FPS


# ---------------------------------------------------------------- reading


def probe(path: str | Path) -> VideoInfo:
    """What the headers say.

    Raises:
        UnreadableVideoError: no such file, no video in it, or a damaged beginning.
    """
    if Path(path).is_dir():
        height, width = next(_sequence(Path(path))).pixels.shape[:2]
        return VideoInfo(width, height, SEQUENCE_FPS, None, "RGB", False)
    if Path(path).suffix.lower() in ANIMATION_SUFFIXES:
        with _animation(path) as image:
            image.load()  # WebP says how long a frame lasts when it has read it
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
    """Frames in the order of their times.

    Frames of another size than the first one are scaled to it, rotation is applied, transparency is put on white.

    Args:
        path: a video file, an animated GIF, WebP or PNG, or a folder of images, whose names give their order, at
            SEQUENCE_FPS.
        start: seconds from the first frame; the first that is given is the one shown then.
        num_frames: at most so many.
        fps: of the result: frame n is the one shown at start + n / fps, so times that vary are evened out; None gives
            every frame once.
        threads: of the decoder; 0 leaves it to FFmpeg, 1 is right where processes run side by side.
        notes: takes a sentence for each thing that was wrong and could be passed over.

    Yields:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: an fps that is not positive and finite.
        UnreadableVideoError: not a single frame can be read.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be positive and finite, got {fps}.")
    shown = _shown(path, start, fps, threads, [] if notes is None else notes)
    yield from (frame.pixels for frame in itertools.islice(shown, num_frames))


def count_frames(path: str | Path, fps: float | None = None) -> int:
    """How many frames `read_frames` gives, by decoding all; headers lie."""
    return sum(1 for _ in _shown(path, 0.0, fps, 0, []))


def expected_frames(path: str | Path, fps: float | None = None) -> int:
    """How many frames `read_frames` gives of a file without damage, by the times in its packets: nothing is decoded.

    Raises:
        UnreadableVideoError: nothing in it can be read.
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
    """All frames from the keyframe before `start` on, at least."""
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
        if start > 2 and origin is not None:  # nearer than that, decoding is quicker than seeking
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
            if before is not None and time - before > MAX_GAP:  # else evening out the rate would never end
                notes.append(f"{path}: a pause of {time - before:.0f} seconds was taken out.")
                origin += time - before - period
                time = before + period
            before = time
            yield Timed(time, partial(_pixels, frame, size, notes), slack)


def _sought(container: Any, path: str | Path, stamp: float, notes: list[str]) -> Iterator[av.VideoFrame]:
    """Frames from a keyframe at `stamp` or before on. In MPEG-TS a seek may end behind its aim; then it aims lower."""
    stream = container.streams.video[0]
    for back in (0.0, 1.0, 4.0, 16.0, stamp):
        container.seek(int(max(0.0, stamp - back) / stream.time_base), stream=stream, backward=True)
        frames = _decoded(container, path, notes)
        try:
            first = next(frames)
        except UnreadableVideoError:  # behind the last keyframe
            continue
        found = _stamp(first, stream)
        if found is None or found <= stamp:
            return itertools.chain([first], frames)
    raise UnreadableVideoError(path, "there is no keyframe before that")


def _decoded(container: Any, path: str | Path, notes: list[str]) -> Iterator[av.VideoFrame]:
    """Frames of the first video stream, past packets that can't be decoded."""
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
        raise UnreadableVideoError(path, "there is no frame in it that can be decoded")
    if corrupt:
        notes.append(f"{path}: {corrupt} damaged parts were passed over; {count} frames could be read.")


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
    """Seconds. AVI knows no times of presentation: what FFmpeg makes of it is the order of decoding."""
    ticks = frame.dts if stream.container.format.name == "avi" else frame.pts
    return None if ticks is None or not frame.time_base else float(ticks * frame.time_base)


def _period(stream: Any) -> float:
    """Seconds from frame to frame, by the header; a second at most, as headers lie."""
    return min(1.0, 1 / (_believable(_rate(stream), MAX_FPS) or DEFAULT_FPS))


def _slack(stream: Any) -> float:
    return rounding(float(stream.time_base or 0), _period(stream))


def _rate(stream: Any) -> float | None:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    return float(rate) if rate else None


def _believable(value: float | None, most: float) -> float | None:
    return value if value is not None and 0 < value <= most else None


def _pixels(frame: av.VideoFrame, size: tuple[int, int], notes: list[str]) -> Frame:
    """RGB, upright, of the size (width, height)."""
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
    """Width and height."""
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
    """The images of a folder, as frames."""
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
    """Writes H.264 in MP4, under a temporary name until it is whole.

    Args:
        path: the file, .mp4.
        fps: frames per second.
        audio_from: a file whose first audio stream is copied, if MP4 takes it.
        crf: quality of H.264; 0 is lossless, 18 hardly visible, 51 the worst.

    Raises:
        ValueError: an fps that is not positive, or another suffix.
        OSError: the file can't be written.
    """

    def __init__(self, path: str | Path, fps: float, audio_from: str | Path | None = None, crf: int = 16) -> None:
        self.path, self.fps, self.audio_from, self.crf = Path(path), fps, audio_from, crf
        if self.path.suffix != ".mp4":
            raise ValueError(f"path must end in .mp4, got {path}.")
        if not 0 < fps <= MAX_FPS:
            raise ValueError(f"fps must be above 0 and at most {MAX_FPS:g}, got {fps}.")
        self._temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}.tmp.mp4")
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
        """Appends a frame (H, W, 3) uint8; odd sizes get their last row or column twice, as the codec wants."""
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
    """Copies the first audio stream of another file into this one, if there is one that MP4 takes."""
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
        return  # a codec that MP4 doesn't know: the video is worth more without sound than not at all
    finally:
        both.unlink(missing_ok=True)
