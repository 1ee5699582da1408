"""Images as training reads them: a numbered source, a folder, a hub data set, a subset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ul_tokenizer.media.images import MAX_PIXELS, UnreadableImageError, find_images, read_image


class ImageSource(Protocol):
    """A numbered collection of images, each with a name to report it by."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def name(self, index: int) -> str:
        """What to call an image in messages."""
        ...

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB, not to be changed; raises `UnreadableImageError`."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the labels stand for; empty where images have none."""
        ...

    def label(self, index: int) -> int | None:
        """The image's class, below `len(class_names)`; None where images have none."""
        ...


class ImageFolder:
    """All images below a folder; where each lies in a subfolder, the subfolders' names are classes, in sorted order.

    Args:
        root: the folder, or a single image.
        cache_bytes: how much memory decoded images may take; each worker process has its own cache.
        max_pixels: as in `read_image`.

    Attributes:
        skipped: the files that have no image's suffix.
        class_names: of the subfolders; empty where images lie in the folder itself.

    Raises:
        ValueError: if there is no image.
    """

    def __init__(self, root: str | Path, *, cache_bytes: int = 0, max_pixels: int = MAX_PIXELS) -> None:
        self.root, self.cache_bytes, self.max_pixels = Path(root), cache_bytes, max_pixels
        paths, self.skipped = find_images(root)
        if not paths:
            raise ValueError(f"root must hold at least one image, got {root} with {len(self.skipped)} other files.")
        self._is_file = paths == [self.root]
        # Strings, since millions of `Path`s would be gigabytes.
        self._names = [p.name if self._is_file else p.relative_to(self.root).as_posix() for p in paths]
        folders = {name.partition("/")[0] if "/" in name else "" for name in self._names}
        self.class_names = () if "" in folders else tuple(sorted(folders))
        self._cache: dict[int, Image.Image] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        """Number of images, readable or not."""
        return len(self._names)

    def name(self, index: int) -> str:
        """Path relative to the folder."""
        return self._names[index]

    def path(self, index: int) -> Path:
        """The file."""
        return self.root if self._is_file else self.root / self._names[index]

    def label(self, index: int) -> int | None:
        """The class of its subfolder, if subfolders are classes."""
        if not self.class_names:
            return None
        return self.class_names.index(self._names[index].partition("/")[0])

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB, not to be changed; raises `UnreadableImageError`."""
        if index in self._cache:
            return self._cache[index]
        image = read_image(self.path(index), max_pixels=self.max_pixels)
        size = 4 * image.width * image.height  # Pillow stores RGB in four bytes
        if self._cached_bytes + size <= self.cache_bytes:
            self._cache[index] = image
            self._cached_bytes += size
        return image


class HubImages:
    """The images of a dataset of the Hugging Face Hub (or of a local one that `datasets` can load).

    Args:
        name: as in `datasets.load_dataset`.
        config: the dataset's configuration.
        split: which part of it.
        image_column: the column with the images.
        label_column: the column with their classes, a `ClassLabel` of `datasets`.
        revision: branch, tag or commit.
        max_pixels: as in `read_image`.

    Raises:
        ImportError: if the extra `data` is not installed.
        ValueError: if the dataset has no such column.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        *,
        split: str = "train",
        image_column: str = "image",
        label_column: str | None = None,
        revision: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        try:
            import datasets
        except ImportError as error:
            raise ImportError("Datasets of the Hub need an extra: pip install ul_tokenizer[data].") from error
        rows = datasets.load_dataset(name, config, split=split, revision=revision)
        if image_column not in rows.column_names:
            raise ValueError(f"image_column must be one of {rows.column_names}, got {image_column!r}.")
        self.class_names, self._labels = _classes(rows, label_column)
        # Undecoded, so that a damaged image is one that we name and not an exception inside `datasets`.
        self._rows: Any = rows.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
        self._name, self._column, self.max_pixels = f"{name}/{split}", image_column, max_pixels

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def name(self, index: int) -> str:
        """Dataset, split and number of the row."""
        return f"{self._name}[{index}]"

    def label(self, index: int) -> int | None:
        """The class in the label column, if one was named."""
        return self._labels[index] if self.class_names else None

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB; raises `UnreadableImageError`."""
        cell = self._rows[index][self._column]
        if not cell or not (cell["bytes"] or cell["path"]):
            raise UnreadableImageError(self.name(index), "the row holds no image")
        try:
            return read_image(cell["bytes"] or cell["path"], max_pixels=self.max_pixels)
        except UnreadableImageError as error:
            raise UnreadableImageError(self.name(index), error.reason) from error


def _classes(rows: Any, label_column: str | None) -> tuple[tuple[str, ...], list[int]]:
    """Names and labels of a hub data set's classes; both empty if no column is named."""
    if label_column is None:
        return (), []
    if label_column not in rows.column_names:
        raise ValueError(f"label_column must be one of {rows.column_names}, got {label_column!r}.")
    names = getattr(rows.features[label_column], "names", None)
    if names is None:
        raise ValueError(
            f"label_column must hold class labels, got {label_column!r} with {rows.features[label_column]}."
        )
    labels = list(rows[label_column])
    stray = [label for label in labels if label is None or not 0 <= label < len(names)]
    if stray:
        raise ValueError(f"label_column must hold labels from 0 to {len(names) - 1}, got {stray[0]}.")
    return tuple(names), labels


class SubsetOfImages:
    """Some images of another source, e.g. a held-out split.

    Args:
        source: the other source.
        indices: which of its images, in the order wanted.
    """

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self.source, self.indices = source, list(indices)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def name(self, index: int) -> str:
        """As the source calls it."""
        return self.source.name(self.indices[index])

    def read(self, index: int) -> Image.Image:
        """As the source reads it."""
        return self.source.read(self.indices[index])

    @property
    def class_names(self) -> tuple[str, ...]:
        """As the source has them."""
        return self.source.class_names

    def label(self, index: int) -> int | None:
        """As the source says."""
        return self.source.label(self.indices[index])
