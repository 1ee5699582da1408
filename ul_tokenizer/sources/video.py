"""Video folders as sources of clips: each file is cut into parts of one length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ul_tokenizer.media.clips import ClipPart
from ul_tokenizer.media.videos import (
    VIDEO_SUFFIXES,
    UnreadableVideoError,
    expected_frames,
    probe,
)
from ul_tokenizer.sources.base import SkippedSample


class VideoSamples:
    """Clips of the videos below a folder, with classes by subfolder.

    How many clips a file has follows from the times in it, without decoding; clips that damage cuts short are skipped.

    Args:
        root: the folder, or a single file.
        num_frames: of a clip; what is left at a file's end is no clip.
        stride: frames from the start of a clip to that of the next; None for `num_frames`.
        fps: of the clips; None for each file's own.
        without_cuts: skip clips in which a new scene begins.

    Raises:
        ValueError: numbers that are not positive, or no video with a whole clip.
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
            raise ValueError(f"clips must have at least one frame and step, got {num_frames} and {stride}.")
        self.settings = {"frames": num_frames, "stride": stride or num_frames, "fps": fps, "without_cuts": without_cuts}
        self._root = Path(root)
        self._is_file = self._root.is_file()
        self.skipped: list[SkippedSample] = []
        self._clips: list[ClipPart] = []
        files = [self._root] if self._is_file else sorted(p for p in self._root.rglob("*") if p.is_file())
        for path in files:
            self._add(path, num_frames, stride or num_frames, fps, without_cuts)
        if not self._clips:
            reasons = "; ".join(f"{skip.id}: {skip.reason}" for skip in self.skipped[:3]) or "no video"
            raise ValueError(f"SRC must hold a video with at least {num_frames} frames, got none in {root}: {reasons}.")
        folders = [Path(self._name(clip.path)).parts[:-1] for clip in self._clips]
        self.class_names: tuple[str, ...] = tuple(sorted({f[0] for f in folders})) if all(folders) else ()

    def _add(self, path: Path, num_frames: int, stride: int, fps: float | None, without_cuts: bool) -> None:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            self.skipped.append(SkippedSample(self._name(path), f"{path.suffix or 'no suffix'} is not a video's"))
            return
        try:
            rate = fps or probe(path).rate
            count = expected_frames(path, rate)
        except UnreadableVideoError as error:
            self.skipped.append(SkippedSample(self._name(path), error.reason))
            return
        firsts: Sequence[int] = range(0, count - num_frames + 1, stride)
        if not firsts:
            reason = f"it has {count} frames, fewer than {num_frames}"
            self.skipped.append(SkippedSample(self._name(path), reason))
        self._clips += [ClipPart(path, first, num_frames, rate, without_cuts) for first in firsts]

    def _name(self, path: Path) -> str:
        return path.name if self._is_file else path.relative_to(self._root).as_posix()

    def __len__(self) -> int:
        """Number of clips."""
        return len(self._clips)

    def id(self, index: int) -> str:
        """File, and first frame."""
        clip = self._clips[index]
        return f"{self._name(clip.path)}@{clip.first}"

    def open(self, index: int) -> ClipPart:
        """Where its frames are."""
        return self._clips[index]

    def columns(self, index: int) -> dict[str, Any]:
        """The class, the frames and their rate."""
        clip = self._clips[index]
        place = {"first_frame": clip.first, "num_frames": clip.num_frames, "fps": clip.fps}
        if not self.class_names:
            return place
        return {"label": self.class_names.index(Path(self._name(clip.path)).parts[0]), **place}
