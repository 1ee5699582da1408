"""Tables that the library `datasets` finds and loads: data sets of the hub, and copies of rows for random access."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ul_tokenizer.sources.base import SkippedSample


class LoadedRows:
    """The rows of a `datasets.Dataset`, which maps its files into memory; see `Rows`. Any order of rows is fast.

    Args:
        rows: The data set.
        skipped: Files that it lacks.
    """

    def __init__(self, rows: Any, skipped: Sequence[SkippedSample] = ()) -> None:
        self.features: Any = rows.features
        self.skipped = list(skipped)
        self._rows = self._images = self._values = rows
        self._image_column, self._columns = "", list[str]()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def select(self, image_column: str, columns: list[str]) -> None:
        """Chooses which columns `image` and `values` read."""
        import datasets

        images = self._rows.select_columns([image_column])
        # Our own reader decodes, so that a damaged image is a sample with a name and not an error within `datasets`.
        self._images = images.cast_column(image_column, datasets.Image(decode=False))
        self._image_column, self._columns = image_column, columns
        self._values = self._rows.select_columns(columns or [image_column])

    def image(self, index: int) -> Path | bytes | None:
        """The bytes of a row's image, or its file."""
        cell = self._images[index][self._image_column] or {}
        if cell.get("bytes"):
            return bytes(cell["bytes"])
        return Path(cell["path"]) if cell.get("path") else None

    def values(self, index: int) -> dict[str, Any]:
        """The chosen columns of a row."""
        return dict(self._values[index]) if self._columns else {}

    def column(self, name: str) -> list[Any]:
        """All values of one column."""
        return list(self._rows[name])

    def block_sizes(self) -> list[int]:
        """One per row: any order of rows is fast."""
        return [1] * len(self)

    def keep_blocks(self, count: int) -> None:
        """Does nothing: the files are mapped into memory."""

    def stamp(self, index: int) -> str:
        """Size of the whole data set and number of its rows."""
        return f"{self._rows.info.dataset_size}-{len(self)}"


def find_parquet_files(name: str, config: str | None, split: str, revision: str | None) -> list[str] | None:
    """Finds the parquet files of a data set.

    Args:
        name: Id on the hub, or a local folder in the same layout.
        config: Configuration of the data set.
        split: Part of the data set.
        revision: Branch, tag or commit on the hub.

    Returns:
        Paths, or addresses at one commit; None if the data set has another format.

    Raises:
        ValueError: The data set can't be found, or has no such split.
        ImportError: The extra `data` is not installed.
    """
    datasets = need_datasets()
    with _one_sentence(name):
        builder = datasets.load_dataset_builder(name, config, revision=revision)
    files = builder.config.data_files or {}
    if "packaged_modules.parquet" not in type(builder).__module__:
        return None
    if split not in files:
        raise ValueError(f"split must be one of {', '.join(files)}, got {split}.")
    return [str(file) for file in files[split]]


def load_rows(name: str, config: str | None, split: str, revision: str | None) -> LoadedRows:
    """Downloads a data set and maps it into memory; arguments and errors as in `find_parquet_files`."""
    datasets = need_datasets()
    with _one_sentence(name):
        return LoadedRows(datasets.load_dataset(name, config, split=split, revision=revision))


def load_parquet_rows(files: Sequence[str], name: str, skipped: Sequence[SkippedSample]) -> LoadedRows:
    """Copies parquet files to the cache of `datasets` and maps them into memory.

    Args:
        files: Paths.
        name: What error messages call the table.
        skipped: Files that were left out.

    Raises:
        ValueError: The files can't be loaded.
        ImportError: The extra `data` is not installed.
    """
    datasets = need_datasets()
    with _one_sentence(name):
        return LoadedRows(datasets.load_dataset("parquet", data_files=list(files), split="train"), skipped)


def need_datasets() -> Any:
    """The library `datasets`.

    Raises:
        ImportError: The extra `data` is not installed; the message has the command that installs it.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Parquet files and data sets of the hub need an extra: pip install ul_tokenizer[data]."
        ) from error
    return datasets


@contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """Turns the library's errors into a ValueError of one sentence."""
    datasets = need_datasets()
    try:
        yield
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ValueError(f"source {name} can't be loaded: {reason}.") from error
