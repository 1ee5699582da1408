"""Data sets of the hub that are not parquet, which the library `datasets` fetches and reads, as sources of samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.sources.base import RESERVED, SkippedSample


class TableSamples:
    """Rows of a table that the library `datasets` loads.

    Args:
        rows: a `datasets.Dataset`.
        name: what ids begin with.
        image_column: the column with the images.

    Raises:
        ValueError: no such column, or one that holds no images.
    """

    def __init__(self, rows: Any, name: str, image_column: str = "image") -> None:
        import datasets

        self.class_names = _checked(rows.features, image_column)
        # Undecoded, so that a damaged image is one that we name and not an exception inside `datasets`.
        self._rows = rows.cast_column(image_column, datasets.Image(decode=False))
        self._others = rows.remove_columns([image_column])
        self._name, self._column = name, image_column
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


def classes_of(schema: Any, image_column: str) -> tuple[str, ...]:
    """The names of the classes under "label", of an arrow schema that has a column of images.

    Raises:
        ValueError: no such column, or one that holds no images.
    """
    import datasets

    return _checked(datasets.Features.from_arrow_schema(schema), image_column)


def _checked(features: Any, image_column: str) -> tuple[str, ...]:
    if image_column not in features:
        raise ValueError(f"image_column must be one of {list(features)}, got {image_column!r}.")
    feature = features[image_column]
    if not _may_hold_images(feature):
        raise ValueError(f"image_column must hold images, got {image_column!r} with {feature}.")
    names = getattr(features.get("label"), "names", None)
    return tuple(names or ())


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


# ---------------------------------------------------------------- the library


def need_datasets() -> Any:
    """The library `datasets`; raises ImportError where the extra is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Parquet files and data sets of the hub need an extra: pip install ul_tokenizer[data]."
        ) from error
    return datasets


def find_hub_files(name: str, config: str | None, split: str, revision: str | None) -> list[str] | None:
    """Addresses of a hub data set's parquet files, at one commit; None if it is stored otherwise.

    Raises:
        ValueError: it can't be found, or has no such split.
        ImportError: the extra `data` is not installed.
    """
    datasets = need_datasets()
    with _one_sentence(name):
        builder = datasets.load_dataset_builder(name, config, revision=revision)
    files = builder.config.data_files or {}
    if "packaged_modules.parquet" not in type(builder).__module__:
        return None
    if split not in files:
        raise ValueError(f"--split must be one of {', '.join(files)}, got {split}.")
    return [str(file) for file in files[split]]


def load_table(name: str, config: str | None, split: str, revision: str | None) -> Any:
    """`datasets.load_dataset`, with what goes wrong in one sentence.

    Raises:
        ValueError: it can't be loaded.
        ImportError: the extra `data` is not installed.
    """
    datasets = need_datasets()
    with _one_sentence(name):
        return datasets.load_dataset(name, config, split=split, revision=revision)


@contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    datasets = need_datasets()
    try:
        yield
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ValueError(f"SRC {name} can't be loaded: {reason}.") from error
