"""The sizes of all images of a source, from their headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ul_tokenizer.media.clips import ClipPart
from ul_tokenizer.media.images import UnreadableImageError, image_size
from ul_tokenizer.sources.base import Source, StampedSource
from ul_tokenizer.sources.facts import StoredFacts

Sizes = np.ndarray[Any, np.dtype[np.int32]]


def image_sizes(source: Source, origin: str, folder: Path | None = None) -> Sizes:
    """Finds out the size of each image, upright, and stores all sizes for the next run.

    Args:
        source: The images. Those in archives and tables are read for their headers, the first time.
        origin: What the source was opened from: a path or the id of a data set.
        folder: Folder of the stored sizes; None is the cache folder.

    Returns:
        (N, 2), width and height; zeros for images that can't be read.
    """
    names = [source.id(n) for n in range(len(source))]
    stored = StoredFacts("image-sizes", origin, folder)
    facts = stored.of(names, lambda n: _stamp(source, n), lambda n: _size(source, n), "images")
    return np.array([fact if fact is not None else (0, 0) for fact in facts], np.int32).reshape(-1, 2)


def _stamp(source: Source, index: int) -> str:
    try:
        return source.stamp(index) if isinstance(source, StampedSource) else ""
    except OSError:  # the file was deleted
        return ""


def _size(source: Source, index: int) -> tuple[int, int] | None:
    try:
        encoded = source.open(index)
        return None if isinstance(encoded, ClipPart) else image_size(encoded)
    except (UnreadableImageError, OSError, ValueError):
        return None
