"""Video folders as sources of clips: every file is cut into clips of one length."""

from __future__ import annotations

import bisect
from pathlib import Path
from typing import Any, NamedTuple

from ul_tokenizer.media.clips import ClipPart
from ul_tokenizer.media.videos import VIDEO_SUFFIXES, UnreadableVideoError
from ul_tokenizer.sources.base import SkippedSample
from ul_tokenizer.sources.video_lengths import MeasuredVideo, measure_videos


class _Video(NamedTuple):
    """A file with at least one clip."""

    path: Path
    fps: float
    first_clip: int  # number of its first clip among those of all files


class VideoSource:
    """The clips of all videos below a folder, with classes by subfolder.

    The number of clips in a file follows from the times in it, without decoding, and is stored for the next run. A
    clip that damage cuts short is found, and reported as unreadable, only when it is read.

    Args:
        root: The folder, or a single file.
        num_frames: Frames of a clip. Frames at the end of a file that don't fill a clip are not used.
        stride: Frames from the start of one clip to the start of the next; None is `num_frames`.
        fps: Frames per second of the clips; None is each file's own rate.
        without_cuts: Whether to report clips in which a new scene begins as unreadable.

    Attributes:
        settings: The arguments above, as a latent data set's header stores them.

    Raises:
        ValueError: `num_frames` or `stride` is not positive, or no video is long enough for a clip.
    """

    def __init__(
        self,
        root: str | Path,
        num_frames: int,
        stride: int | None = None,
        fps: float | None = None,
        without_cuts: bool = False,
    ) -> None:
        if num_frames < 1 or (stride is not None and stride < 1):
            raise ValueError(f"num_frames and stride must be at least 1, got {num_frames} and {stride}.")
        self._num_frames, self._stride, self._without_cuts = num_frames, stride or num_frames, without_cuts
        self.settings = {"frames": num_frames, "stride": self._stride, "fps": fps, "without_cuts": without_cuts}
        self._root = Path(root)
        self._is_file = self._root.is_file()
        self.skipped: list[SkippedSample] = []
        self._videos: list[_Video] = []
        self._num_clips = 0
        paths = [self._root] if self._is_file else sorted(p for p in self._root.rglob("*") if p.is_file())
        videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
        measured = dict(zip(videos, measure_videos(videos, self._root, fps, evenly=True), strict=True))
        for path in paths:
            self._add(path, measured.get(path))
        if not self._videos:
            reasons = "; ".join(f"{skip.id}: {skip.reason}" for skip in self.skipped[:3]) or "no video"
            raise ValueError(
                f"root must hold a video with at least {num_frames} frames, got none in {root}: {reasons}."
            )
        folders = [Path(self._name(video.path)).parts[:-1] for video in self._videos]
        self.class_names: tuple[str, ...] = tuple(sorted({f[0] for f in folders})) if all(folders) else ()

    def _add(self, path: Path, video: MeasuredVideo | UnreadableVideoError | None) -> None:
        if video is None:
            self._skip(path, f"{path.suffix or 'no suffix'} is not the suffix of a video")
            return
        if isinstance(video, UnreadableVideoError):
            self._skip(path, video.reason)
            return
        clips = len(range(0, video.num_frames - self._num_frames + 1, self._stride))
        if not clips:
            self._skip(path, f"it has {video.num_frames} frames, fewer than {self._num_frames}")
            return
        self._videos.append(_Video(path, video.fps, self._num_clips))
        self._num_clips += clips

    def _skip(self, path: Path, reason: str) -> None:
        self.skipped.append(SkippedSample(self._name(path), reason))

    def _name(self, path: Path) -> str:
        return path.name if self._is_file else path.relative_to(self._root).as_posix()

    def __len__(self) -> int:
        """Number of clips."""
        return self._num_clips

    def id(self, index: int) -> str:
        """The file's path below the folder, an @, and the number of the clip's first frame."""
        clip = self.open(index)
        return f"{self._name(clip.path)}@{clip.first}"

    def open(self, index: int) -> ClipPart:
        """The clip's place in its file."""
        video = self._videos[bisect.bisect_right(self._videos, index, key=lambda video: video.first_clip) - 1]
        first = (index - video.first_clip) * self._stride
        return ClipPart(video.path, first, self._num_frames, video.fps, self._without_cuts)

    def columns(self, index: int) -> dict[str, Any]:
        """The class under "label", if there are classes, and the clip's first frame, length and rate."""
        clip = self.open(index)
        place = {"first_frame": clip.first, "num_frames": clip.num_frames, "fps": clip.fps}
        if not self.class_names:
            return place
        return {"label": self.class_names.index(Path(self._name(clip.path)).parts[0]), **place}
