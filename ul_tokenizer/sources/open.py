"""The source of samples that a name stands for."""

from __future__ import annotations

from pathlib import Path

from ul_tokenizer.sources.base import SampleSource
from ul_tokenizer.sources.folder import FolderSamples
from ul_tokenizer.sources.parquet import ParquetSamples
from ul_tokenizer.sources.table import TableSamples, find_hub_files, load_table
from ul_tokenizer.sources.tar import TarSamples
from ul_tokenizer.sources.video import VideoSamples


def open_source(
    name: str,
    *,
    image_column: str = "image",
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    keep_duplicates: bool = False,
    clip_frames: int | None = None,
    clip_stride: int | None = None,
    clip_fps: float | None = None,
    clip_without_cuts: bool = False,
) -> SampleSource:
    """The source that a name stands for.

    Args:
        name: a folder of images, of .tar archives, of .parquet files or of videos; one such file; or a hub data set's
            id.
        image_column: of parquet and hub data sets.
        split: of a hub data set.
        config: likewise.
        revision: likewise.
        keep_duplicates: as in `FolderSamples`.
        clip_frames: take videos, in clips of so many frames; None takes images.
        clip_stride: as `stride` of `VideoSamples`.
        clip_fps: likewise.
        clip_without_cuts: likewise.

    Raises:
        ValueError: nothing there, or nothing usable in it.
        ImportError: parquet or hub without the extra `data`.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if name.count("/") > 1 or name.startswith((".", "/", "~")):
            raise ValueError(f"SRC must be a folder, an archive or a hub data set, got {name}, which does not exist.")
        files = find_hub_files(name, config, split, revision)
        if files is not None:
            return ParquetSamples(files, f"{name}/{split}", image_column)
        return TableSamples(load_table(name, config, split, revision), f"{name}/{split}", image_column)
    if clip_frames is not None:
        return VideoSamples(path, clip_frames, clip_stride, clip_fps, clip_without_cuts)
    archives, tables = (_files_of(path, suffix) for suffix in (".tar", ".parquet"))
    if archives:
        return TarSamples(archives)
    if tables:
        return ParquetSamples([str(file) for file in tables], path.name, image_column)
    return FolderSamples(path, keep_duplicates)


def _files_of(path: Path, suffix: str) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == suffix else []
    return sorted(file for file in path.iterdir() if file.suffix.lower() == suffix and file.is_file())
