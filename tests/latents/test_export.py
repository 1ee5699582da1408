"""Latent data sets in the formats of other libraries, read back by these libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ul_tokenizer import LatentDataset
from ul_tokenizer.latents import export as latent_export
from ul_tokenizer.latents.export import export
from ul_tokenizer.latents.writer import LatentWriter


def write(folder: Path, dtype: str = "float16") -> LatentDataset:
    """Twelve samples of two shapes and five shards, with columns that not every sample has."""
    header = {"latent_channels": 3, "latent_logsnr": 5.0, "dtype": dtype, "autoencoder": "someone/something"}
    random = torch.Generator().manual_seed(0)
    with LatentWriter(folder, header, shard_samples=3) as writer:
        for shape, ids in (((3, 2, 4), range(8)), ((3, 4, 2), range(8, 12))):
            columns = [{"label": i % 3, **({"caption": f"no. {i}"} if i % 2 else {})} for i in ids]
            latents = torch.randn(len(ids), *shape, generator=random)
            writer.append([f"dir/{i:02d}.a.jpg" for i in ids], latents, columns)
    return LatentDataset(folder)


def assert_same(dataset: LatentDataset, read: dict[str, tuple[Any, dict[str, Any]]]) -> None:
    """`read` maps ids to a latent and the columns that have a value."""
    assert len(read) == len(dataset)
    for sample in dataset:
        latent, columns = read[sample["id"]]
        assert torch.equal(torch.as_tensor(np.array(latent, np.float32)), sample["latent"])
        assert columns == {name: sample[name] for name in ("label", "caption") if name in sample}


def read_npy(folder: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    read = {}
    for line in (folder / "index.jsonl").read_text().splitlines():
        row = json.loads(line)
        array = np.load(folder / row.pop("file"), mmap_mode="r")
        read[row.pop("id")] = array[row.pop("row")], row
    return read


def read_webdataset(folder: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    from webdataset import WebDataset

    read = {}
    for sample in WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False).decode():
        columns = sample["json"]
        read[columns.pop("id")] = sample["npy"], columns
    return read


def read_parquet(folder: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    from datasets import load_dataset

    read = {}
    for row in load_dataset(
        "parquet", data_files=str(folder / "*.parquet"), split="train", cache_dir=str(folder / "c")
    ):
        latent = np.array(row["latent"], np.float32).reshape(row["shape"])
        read[row["id"]] = latent, {k: row[k] for k in ("label", "caption") if row[k] is not None}
    return read


READERS = {"npy": read_npy, "webdataset": read_webdataset, "parquet": read_parquet}


@pytest.mark.parametrize("form", READERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_the_formats_own_readers_give_what_the_data_set_gives(tmp_path: Path, form: Any, dtype: str) -> None:
    for library in {"webdataset": ["webdataset"], "parquet": ["datasets", "pyarrow"]}.get(form, []):
        pytest.importorskip(library)
    dataset = write(tmp_path / "data", dtype)
    done: list[int] = []
    assert export(dataset, tmp_path / "out", form, done.append) == 12 == sum(done)
    assert_same(dataset, READERS[form](tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "header.json").read_text()) == dataset.header


def test_half_precision_stays_and_what_numpy_lacks_becomes_single(tmp_path: Path) -> None:
    for stored, written in (("float16", np.float16), ("bfloat16", np.float32), ("float32", np.float32)):
        export(write(tmp_path / stored, stored), tmp_path / f"{stored}-out", "npy")
        assert np.load(tmp_path / f"{stored}-out" / "latents-3x2x4.npy").dtype == written


def test_normalised_latents_are_exported_as_such(tmp_path: Path) -> None:
    write(tmp_path / "data")
    export(LatentDataset(tmp_path / "data", normalize=True), tmp_path / "out", "npy")
    files = [np.load(path) for path in sorted((tmp_path / "out").glob("*.npy"))]
    values: Tensor = torch.cat([torch.from_numpy(f).transpose(0, 1).flatten(1) for f in files], dim=1)
    torch.testing.assert_close(values.mean(1), torch.zeros(3), atol=2e-3, rtol=0)
    torch.testing.assert_close(values.std(1, correction=0), torch.ones(3), atol=2e-3, rtol=0)


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_large_exports_are_divided_into_files(tmp_path: Path, form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset" if form == "webdataset" else "pyarrow")
    monkeypatch.setattr(latent_export, "FILE_BYTES", 200)  # four samples of 48 bytes and a bit
    dataset = write(tmp_path / "data")
    export(dataset, tmp_path / "out", form)
    files = sorted((tmp_path / "out").glob("latents-*"))
    assert len(files) > 2
    if form == "webdataset":
        assert_same(dataset, read_webdataset(tmp_path / "out"))
    else:
        pytest.importorskip("datasets")
        assert_same(dataset, read_parquet(tmp_path / "out"))


def test_an_output_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"output must be a new folder, got .*out, which exists\."):
        export(write(tmp_path / "data"), tmp_path / "out", "npy")


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"form must be one of npy, webdataset, parquet, got 'zarr'\."):
        export(write(tmp_path / "data"), tmp_path / "out", "zarr")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", READERS)
def test_what_fails_leaves_nothing_behind(tmp_path: Path, form: Any) -> None:
    if form != "npy":
        pytest.importorskip("webdataset" if form == "webdataset" else "pyarrow")
    dataset = write(tmp_path / "data")
    path = sorted((tmp_path / "data").glob("*.safetensors"))[2]
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="is missing or damaged"):
        export(dataset, tmp_path / "out", form)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]
