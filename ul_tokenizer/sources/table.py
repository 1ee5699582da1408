"""Tables with a column of images as sources: what their columns mean, wherever the rows are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.sources.base import RESERVED, SkippedSample

LABEL = "label"
_PLAIN_DTYPES = ("bool", "int", "uint", "float", "string", "large_string")


class Rows(Protocol):
    """The rows of a table, stored in parquet files or loaded by the library `datasets`."""

    @property
    def features(self) -> Any:
        """The columns' types, as `datasets.Features`."""
        ...

    @property
    def skipped(self) -> list[SkippedSample]:
        """Files of the table that can't be read."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def select(self, image_column: str, columns: list[str]) -> None:
        """Chooses which columns `image` and `values` read; called once, before both."""
        ...

    def image(self, index: int) -> Path | bytes | None:
        """The encoded image in a row, or None if there is none."""
        ...

    def values(self, index: int) -> dict[str, Any]:
        """The chosen columns of a row."""
        ...

    def column(self, name: str) -> list[Any]:
        """All values of one column."""
        ...

    def block_sizes(self) -> list[int]:
        """Numbers of rows that are read together."""
        ...

    def keep_blocks(self, count: int) -> None:
        """Keeps this number of such blocks in memory."""
        ...

    def stamp(self, index: int) -> str:
        """A text that changes when the table changes."""
        ...


class TableSource:
    """The rows of a table, with an image each.

    Args:
        rows: The table.
        name: What the ids begin with.
        image_column: The column with the images.
        label_column: The column with the classes, which must be a `ClassLabel` of `datasets`; the samples have it
            under "label". None takes a column "label", if there is one, as it is.

    Raises:
        ValueError: There is no such column, or it doesn't hold images or class labels.
    """

    def __init__(self, rows: Rows, name: str, image_column: str = "image", label_column: str | None = None) -> None:
        self._rows, self._name, self._label_column = rows, name, label_column
        self._check_images(image_column)
        names = getattr(rows.features.get(label_column or LABEL), "names", None)
        self.class_names: tuple[str, ...] = tuple(names or ())
        if label_column is not None:
            self._check_labels(label_column)
        plain = [column for column, feature in rows.features.items() if _is_plain(feature)]
        self._column_names = [column for column in plain if column not in RESERVED or column == label_column]
        rows.select(image_column, self._column_names)

    def _check_images(self, image_column: str) -> None:
        features = self._rows.features
        if image_column not in features:
            raise ValueError(f"image_column must be one of {list(features)}, got {image_column!r}.")
        if not _may_hold_images(features[image_column]):
            raise ValueError(f"image_column must hold images, got {image_column!r} with {features[image_column]}.")

    def _check_labels(self, label_column: str) -> None:
        features = self._rows.features
        if label_column not in features:
            raise ValueError(f"label_column must be one of {list(features)}, got {label_column!r}.")
        if not self.class_names:
            raise ValueError(
                f"label_column must hold class labels, got {label_column!r} with {features[label_column]}."
            )
        for label in self._rows.column(label_column):
            if label is None or not 0 <= label < len(self.class_names):
                raise ValueError(f"label_column must hold labels from 0 to {len(self.class_names) - 1}, got {label}.")

    @property
    def skipped(self) -> list[SkippedSample]:
        """Files of the table that can't be read."""
        return self._rows.skipped

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def id(self, index: int) -> str:
        """The table's name with the number of the row in brackets."""
        return f"{self._name}[{index}]"

    def open(self, index: int) -> Path | bytes:
        """The image's bytes, or its file.

        Raises:
            UnreadableImageError: The row has no image.
            OSError: The data can't be read.
            ValueError: The data is damaged.
        """
        content = self._rows.image(index)
        if content is None:
            raise UnreadableImageError(self.id(index), "the row holds no image")
        return content

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of the columns that `columns` returns."""
        return tuple(self._column_names)

    def block_sizes(self) -> list[int]:
        """Numbers of rows that are read together."""
        return self._rows.block_sizes()

    def keep_blocks(self, count: int) -> None:
        """Keeps this number of such blocks in memory."""
        self._rows.keep_blocks(count)

    def stamp(self, index: int) -> str:
        """A text that changes when the table changes."""
        return self._rows.stamp(index)

    def columns(self, index: int) -> dict[str, Any]:
        """The columns that hold numbers, texts or truth values."""
        values = self._rows.values(index)
        if self._label_column is not None:
            values[LABEL] = values.pop(self._label_column)
        return values


def _may_hold_images(feature: Any) -> bool:
    """Whether a type is an image, bytes, or the struct that images are stored as."""
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, dict) and {"bytes", "path"} <= set(feature)


def _is_plain(feature: Any) -> bool:
    """Whether JSON can hold the values of a type."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return True
    return isinstance(feature, datasets.Value) and feature.dtype.rstrip("0123456789") in _PLAIN_DTYPES
