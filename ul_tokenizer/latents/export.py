"""Exports latent data sets to formats that other libraries read: NumPy, webdataset and parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.format import open_memmap

from ul_tokenizer.files import new_folder, write_json
from ul_tokenizer.latents.dataset import LatentDataset, Sample
from ul_tokenizer.latents.manifest import HEADER

Format = Literal["npy", "webdataset", "parquet"]
INDEX = "index.jsonl"
FILE_BYTES = 256_000_000  # approximate size of an archive or a table
_AT_ONCE = 64  # samples that are read together
Progress = Callable[[int], None]
Array = np.ndarray[Any, np.dtype[Any]]


def export(dataset: LatentDataset, output: str | Path, form: Format, on_progress: Progress | None = None) -> int:
    """Writes z_clean and the columns of every sample, and the header as `header.json`, completely or not at all.

    float16 and float32 latents keep their dtype; others become float32, since NumPy has no bfloat16.

    Args:
        dataset: the data set; if it normalises, the normalised latents are written.
        output: a folder that doesn't exist.
        form: "npy" writes `latents-CxHxW.npy` for each shape, and `index.jsonl` with the file, row, id and columns of
            each sample. "webdataset" writes archives `latents-000000.tar`, … of `KEY.npy` and `KEY.json`, which holds
            id and columns; KEY is the sample's number. "parquet" writes `latents-000000.parquet`, … with `id`,
            `shape`, `latent` (a flat list) and the columns.
        on_progress: called with the number of samples that were just written.

    Returns:
        the number of samples.

    Raises:
        ValueError: the output exists, or the format is unknown.
        ImportError: webdataset or parquet without the extra `data`.
        OSError: the disk is full or can't be written; no output is left.
    """
    if form not in _WRITERS:
        raise ValueError(f"form must be one of {', '.join(_WRITERS)}, got {form!r}.")
    with new_folder(output) as folder:
        write_json(folder / HEADER, dataset.header)
        _WRITERS[form](dataset, folder, on_progress or (lambda _: None))
    return len(dataset)


def _dtype(dataset: LatentDataset) -> np.dtype[Any]:
    return np.dtype(np.float16 if dataset.header["dtype"] == "float16" and not dataset.normalize else np.float32)


def _samples(dataset: LatentDataset, on_progress: Progress) -> Iterator[tuple[Sample, Array]]:
    """Yields each sample in order, and its latent in the dtype that is written."""
    dtype = _dtype(dataset)
    for start in range(0, len(dataset), _AT_ONCE):
        samples = dataset.__getitems__(range(start, min(start + _AT_ONCE, len(dataset))))
        for sample in samples:
            yield sample, sample["latent"].numpy().astype(dtype)
        on_progress(len(samples))


def _without_latent(sample: Sample) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if name != "latent"}


# ---------------------------------------------------------------- NumPy


def _write_npy(dataset: LatentDataset, folder: Path, on_progress: Progress) -> None:
    files = {shape: f"latents-{'x'.join(map(str, shape))}.npy" for shape in dataset.shapes}
    arrays = {
        shape: open_memmap(folder / files[shape], "w+", _dtype(dataset), (count, *shape))
        for shape, count in dataset.shapes.items()
    }
    rows = dict.fromkeys(files, 0)
    with (folder / INDEX).open("w", encoding="utf-8") as index:
        for sample, latent in _samples(dataset, on_progress):
            row = rows[latent.shape]
            arrays[latent.shape][row] = latent
            line = {"file": files[latent.shape], "row": row, **_without_latent(sample)}
            index.write(json.dumps(line, ensure_ascii=False) + "\n")
            rows[latent.shape] += 1
    for array in arrays.values():
        array.flush()


# ---------------------------------------------------------------- webdataset


def _write_webdataset(dataset: LatentDataset, folder: Path, on_progress: Progress) -> None:
    try:
        from webdataset import ShardWriter
    except ImportError as error:
        raise ImportError("webdataset archives need webdataset: pip install 'ul_tokenizer[data]'.") from error
    # Keys are numbers: webdataset takes what follows a key's first dot for the name of a field.
    with ShardWriter(str(folder / "latents-%06d.tar"), maxcount=10**6, maxsize=FILE_BYTES, verbose=0) as writer:
        for number, (sample, latent) in enumerate(_samples(dataset, on_progress)):
            writer.write({"__key__": f"{number:09d}", "npy": latent, "json": _without_latent(sample)})


# ---------------------------------------------------------------- parquet


def _write_parquet(dataset: LatentDataset, folder: Path, on_progress: Progress) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install 'ul_tokenizer[data]'.") from error
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("shape", pa.list_(pa.int32())),
            ("latent", pa.list_(pa.from_numpy_dtype(_dtype(dataset)))),
            *((name, pa.array(_column(dataset, name)).type) for name in dataset.column_names),
        ]
    )
    for number, part in enumerate(_parts(_samples(dataset, on_progress))):
        with parquet.ParquetWriter(folder / f"latents-{number:06d}.parquet", schema) as writer:
            for rows in part:
                columns = {name: [sample.get(name) for sample, _ in rows] for name in dataset.column_names}
                latents = [latent for _, latent in rows]
                columns |= {"id": [sample["id"] for sample, _ in rows], "shape": [list(z.shape) for z in latents]}
                table = {**columns, "latent": [z.ravel() for z in latents]}
                writer.write_table(pa.table(table, schema=schema))


def _column(dataset: LatentDataset, name: str) -> list[Any]:
    return [value for shard in dataset.shards for value in shard.columns.get(name, [])]


def _parts(samples: Iterator[tuple[Sample, Array]]) -> Iterator[Iterator[Sequence[tuple[Sample, Array]]]]:
    """Samples grouped by file, and within a file by row group."""
    written = 0

    def numbered() -> Iterator[tuple[int, int, tuple[Sample, Array]]]:
        nonlocal written
        for number, (sample, latent) in enumerate(samples):
            yield written // FILE_BYTES, number // (16 * _AT_ONCE), (sample, latent)
            written += latent.nbytes

    for _, part in groupby(numbered(), lambda row: row[0]):
        yield ([row[2] for row in rows] for _, rows in groupby(part, lambda row: row[1]))


_WRITERS: dict[str, Callable[[LatentDataset, Path, Progress], None]] = {
    "npy": _write_npy,
    "webdataset": _write_webdataset,
    "parquet": _write_parquet,
}
