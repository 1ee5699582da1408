"""Parquet files and hub data sets, which the library `datasets` reads, as sources of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ul_tokenizer.data.images import UnreadableImageError
from ul_tokenizer.data.samples import RESERVED, SkippedSample


class TableSamples:
    """Rows of a table that the library `datasets` loads: parquet files, or a data set of the hub.

    Args:
        rows: a `datasets.Dataset`.
        name: what ids begin with.
        image_column: the column with the images.

    Raises:
        ValueError: no such column, or one that holds no images.
    """

    def __init__(self, rows: Any, name: str, image_column: str = "image") -> None:
        import datasets

        if image_column not in rows.column_names:
            raise ValueError(f"image_column must be one of {rows.column_names}, got {image_column!r}.")
        feature = rows.features[image_column]
        if not _may_hold_images(feature):
            raise ValueError(f"image_column must hold images, got {image_column!r} with {feature}.")
        # Undecoded, so that a damaged image is one that we name and not an exception inside `datasets`.
        self._rows = rows.cast_column(image_column, datasets.Image(decode=False))
        self._others = rows.remove_columns([image_column])
        self._name, self._column = name, image_column
        names = getattr(rows.features.get("label"), "names", None)
        self.class_names = tuple(names or ())
        self.skipped: list[SkippedSample] = []

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def id(self, index: int) -> str:
        """Name and number of the row."""
        return f"{self._name}[{index}]"

    def open(self, index: int) -> Path | bytes:
        """The image's bytes, or its file."""
        cell = self._rows[index][self._column]
        if not cell or not (cell.get("bytes") or cell.get("path")):
            raise UnreadableImageError(self.id(index), "the row holds no image")
        return cell["bytes"] or Path(cell["path"])

    def columns(self, index: int) -> dict[str, Any]:
        """The other columns, as far as JSON holds them."""
        row = self._others[index]
        return {key: value for key, value in row.items() if key not in RESERVED and _is_plain(value)}


def _may_hold_images(feature: Any) -> bool:
    """An image, its bytes, or the struct that images are stored as."""
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary")
    return isinstance(feature, dict) and {"bytes", "path"} <= set(feature)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def load_table(*arguments: Any, **options: Any) -> Any:
    """`datasets.load_dataset`, with what goes wrong in one sentence.

    Raises:
        ValueError: it can't be loaded.
        ImportError: the extra `data` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Parquet files and data sets of the hub need an extra: pip install ul_tokenizer[data]."
        ) from error
    try:
        return datasets.load_dataset(*arguments, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ValueError(f"SRC {arguments[0]} can't be loaded: {reason}.") from error
