"""Opens the source that a path or a hub id stands for."""

from __future__ import annotations

from pathlib import Path

from ul_tokenizer.sources.base import Source
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.sources.hub import find_parquet_files, load_parquet_rows, load_rows
from ul_tokenizer.sources.parquet import ParquetRows, find_sound_files
from ul_tokenizer.sources.table import Rows, TableSource
from ul_tokenizer.sources.tar import TarSource
from ul_tokenizer.sources.video import VideoSource


def open_source(
    source: str | Path,
    *,
    image_column: str = "image",
    label_column: str | None = None,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    keep_duplicates: bool = False,
    random_access: bool = False,
    clip_frames: int | None = None,
    clip_stride: int | None = None,
    clip_fps: float | None = None,
    clip_without_cuts: bool = False,
) -> Source:
    """Opens the source that a path or a hub id stands for.

    Args:
        source: A folder of images, .tar archives, .parquet files or videos; a single such file; or the id of a data
            set on the hub. A folder in the layout of a hub data set (data/train-….parquet) counts as one.
        image_column: The images' column in parquet files and hub data sets.
        label_column: The classes' column there; see `TableSource`.
        split: Part of a hub data set.
        config: Configuration of a hub data set.
        revision: Branch, tag or commit of a hub data set.
        keep_duplicates: Whether to keep files with the same content; see `FolderSource`.
        random_access: Whether samples will be read in random order, as training does. Tables are then copied to the
            cache of `datasets` once, instead of being read in place.
        clip_frames: Reads videos, in clips of this many frames; None reads images.
        clip_stride: Frames from the start of one clip to the start of the next; see `VideoSource`.
        clip_fps: Frames per second of the clips; see `VideoSource`.
        clip_without_cuts: Whether to leave out clips in which a new scene begins.

    Raises:
        ValueError: The source doesn't exist, holds nothing that can be used, or can't have these options.
        ImportError: Parquet files or a hub data set without the extra `data`.
    """
    path = Path(source).expanduser()
    if clip_frames is not None:
        _check_videos(path, source)
        return VideoSource(path, clip_frames, clip_stride, clip_fps, clip_without_cuts)
    if clip_stride is not None or clip_fps is not None or clip_without_cuts:
        raise ValueError("clip_stride, clip_fps and clip_without_cuts need clip_frames, which is not given.")
    if not path.exists() or _is_hub_layout(path):
        is_here = path.exists()
        rows = _hub_rows(str(path) if is_here else _hub_id(source), config, split, revision, random_access)
        return TableSource(rows, f"{path.name if is_here else source}/{split}", image_column, label_column)
    if archives := _files_of(path, ".tar"):
        return TarSource(archives)
    if tables := _files_of(path, ".parquet"):
        rows = _local_rows([str(file) for file in tables], path.name, random_access)
        return TableSource(rows, path.name, image_column, label_column)
    return FolderSource(path, keep_duplicates)


def _files_of(path: Path, suffix: str) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == suffix else []
    return sorted(file for file in path.iterdir() if file.suffix.lower() == suffix and file.is_file())


def _check_videos(path: Path, source: str | Path) -> None:
    """Refuses what holds no video files that could be cut into clips."""
    if not path.exists():
        kind = "does not exist here; videos of a hub data set must be downloaded first"
    elif path.suffix.lower() in (".tar", ".parquet"):
        kind = "is an archive or a table; its videos must be unpacked first"
    else:
        return
    raise ValueError(f"clip_frames needs a folder of video files or one such file, got {source}, which {kind}.")


def has_splits(source: str | Path) -> bool:
    """Whether a source is divided into splits: it is a data set of the hub, or a folder in the layout of one."""
    path = Path(source).expanduser()
    return not path.exists() or _is_hub_layout(path)


def _is_hub_layout(path: Path) -> bool:
    """Whether a folder is laid out as a repository of parquet files on the hub."""
    return (path / "data").is_dir() and bool(_files_of(path / "data", ".parquet")) and not _files_of(path, ".parquet")


def _hub_id(source: str | Path) -> str:
    name = str(source)
    if isinstance(source, Path) or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ValueError(
            f"source must be a folder, an image, an archive, a parquet file or the id of a data set on the hub, got "
            f"{name}, which does not exist."
        )
    return name


def _hub_rows(name: str, config: str | None, split: str, revision: str | None, random_access: bool) -> Rows:
    files = None if random_access else find_parquet_files(name, config, split, revision)
    if files is None:
        return load_rows(name, config, split, revision)
    return ParquetRows(files, f"{name}/{split}")


def _local_rows(files: list[str], name: str, random_access: bool) -> Rows:
    if not random_access:
        return ParquetRows(files, name)
    sound, skipped = find_sound_files(files, name)
    return load_parquet_rows(sound, name, skipped)
