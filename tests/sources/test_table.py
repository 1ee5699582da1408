"""Parquet files and data sets of the hub as sources."""

from __future__ import annotations

import io
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hub.loopback_hub import LoopbackHub
from tests.sources.samples import encoded, everything, parquet, png
from ul_tokenizer.media.images import UnreadableImageError, read_image
from ul_tokenizer.sources.open import open_source


def test_a_parquet_file_of_images_has_a_sample_per_row(tmp_path: Path) -> None:
    cells = [{"bytes": png(n), "path": None} for n in range(2)] + [None]
    source = open_source(str(parquet(tmp_path / "a.parquet", image=cells, label=[1, 0, 1], caption=["a", "b", "c"])))
    assert everything(source)[0] == ("a.parquet[0]", {"label": 1, "caption": "a"})
    assert read_image(encoded(source, 1)).size == (8, 6)
    with pytest.raises(UnreadableImageError, match="the row holds no image"):
        source.open(2)


def test_a_column_that_is_no_image_is_one_sentence(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", image=[1, 2])
    with pytest.raises(ValueError, match=r"image_column must hold images, got 'image' with Value\("):
        open_source(str(path))
    with pytest.raises(ValueError, match=r"image_column must be one of \['image'\], got 'picture'"):
        open_source(str(path), image_column="picture")


def test_damaged_parquet_files_cost_nothing_else(tmp_path: Path) -> None:
    cells = [{"bytes": png(), "path": None}] * 2
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="can't be loaded: the file can't be read"):
        open_source(str(tmp_path))
    parquet(tmp_path / "a.parquet", image=cells)
    parquet(tmp_path / "c.parquet", image=cells)
    source = open_source(str(tmp_path))
    assert len(source) == 4
    assert [skip.id for skip in source.skipped] == ["b.parquet"]


def test_rows_are_found_in_their_groups_and_files_in_any_order_and_process(tmp_path: Path) -> None:
    for file, rows in (("a", range(7)), ("b", range(7, 10))):
        columns: dict[str, list[Any]] = {
            "image": [b"%d" % n for n in rows],
            "n": list(rows),
            "list": [[n] for n in rows],
        }
        parquet(tmp_path / f"{file}.parquet", row_group_size=3, **columns)
    source = pickle.loads(pickle.dumps(open_source(str(tmp_path))))
    for n in (0, 9, 3, 6, 2, 7, 8, 1, 5, 4):
        assert (source.open(n), source.columns(n)) == (b"%d" % n, {"n": n})


def test_a_row_group_that_is_damaged_is_skipped_row_by_row(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", image=[b"x" * 1000] * 4)
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    with pytest.raises((OSError, ValueError)):
        open_source(str(path)).open(0)


def labelled(path: Path, labels: list[Any]) -> Path:
    """A parquet file with a `ClassLabel` of cats and dogs in the column "animal"."""
    datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    kinds = {
        "image": datasets.Image(),
        "animal": datasets.ClassLabel(names=["cat", "dog"]),
        "n": datasets.Value("int64"),
    }
    rows = {"image": [{"bytes": png(n), "path": None} for n in range(len(labels))], "animal": labels, "n": labels}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(path)
    return path


@pytest.mark.parametrize("random_access", [False, True])
def test_a_label_column_gives_classes_and_labels(tmp_path: Path, random_access: bool) -> None:
    path = labelled(tmp_path / "a.parquet", [0, 1, 1])
    source = open_source(path, label_column="animal", random_access=random_access)
    assert source.class_names == ("cat", "dog")
    assert [source.columns(n) for n in range(3)] == [{"label": n, "n": n} for n in (0, 1, 1)]
    assert open_source(path, random_access=random_access).class_names == ()


@pytest.mark.parametrize("random_access", [False, True])
@pytest.mark.parametrize(
    ("column", "labels", "words"),
    [
        ("dog", [0], r"label_column must be one of \['image', 'animal', 'n'\], got 'dog'"),
        ("n", [0], r"label_column must hold class labels, got 'n' with Value\("),
        ("animal", [0, -1], "label_column must hold labels from 0 to 1, got -1"),
        ("animal", [0, None], "label_column must hold labels from 0 to 1, got None"),
    ],
)
def test_a_label_column_without_classes_is_one_sentence(
    tmp_path: Path, random_access: bool, column: str, labels: list[Any], words: str
) -> None:
    path = labelled(tmp_path / "a.parquet", labels)
    with pytest.raises(ValueError, match=words):
        open_source(path, label_column=column, random_access=random_access)


@pytest.mark.parametrize("as_struct", [False, True])
def test_random_access_reads_what_reading_in_place_reads(tmp_path: Path, as_struct: bool) -> None:
    for file, rows in (("a", range(4)), ("c", range(4, 7))):
        cells = [{"bytes": png(n), "path": None} if as_struct else png(n) for n in rows]
        names = [None if n == 2 else f"{n}" for n in rows]
        parquet(tmp_path / f"{file}.parquet", 2, image=cells, caption=names, id=list(rows), other=[[n] for n in rows])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    in_place, loaded = (open_source(tmp_path, random_access=random) for random in (False, True))
    loaded = pickle.loads(pickle.dumps(loaded))
    assert everything(loaded) == everything(in_place) and len(loaded) == 7
    assert [loaded.open(n) for n in range(7)] == [in_place.open(n) for n in range(7)] == [png(n) for n in range(7)]
    assert loaded.skipped == in_place.skipped and [skip.id for skip in loaded.skipped] == ["b.parquet"]


def test_a_table_of_images_alone_has_no_columns(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", image=[png(), b""])
    for random_access in (False, True):
        source = open_source(path, random_access=random_access)
        assert (source.columns(0), source.open(0)) == ({}, png())
        with pytest.raises(UnreadableImageError, match="the row holds no image"):
            source.open(1)


def test_a_table_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in ("somebody/photos", str(tmp_path / "a.parquet")):
        for random_access in (False, True):
            with pytest.raises(ImportError, match=r"pip install ul_tokenizer\[data\]"):
                open_source(source, random_access=random_access)


# ---------------------------------------------------------------- the hub


def on_the_hub(hub: LoopbackHub, groups: int = 5) -> None:
    """Two files of the split `train`, 50 rows of a photograph's size each, and one of `test`."""
    datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": png() + os.urandom(100_000), "path": None}] * 50, "label": [0, 1] * 25}
    buffer = io.BytesIO()
    datasets.Dataset.from_dict(rows, features=kinds).to_parquet(buffer, batch_size=50 // groups)
    names = ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")
    hub.add("owner/photos", {f"data/{name}.parquet": buffer.getvalue() for name in names}, kind="dataset")


def test_a_data_set_of_the_hub_is_read_in_parts(hub: LoopbackHub) -> None:
    on_the_hub(hub)
    before = hub.sent
    source = open_source("owner/photos")
    assert (len(source), source.class_names) == (100, ("cat", "dog"))
    assert source.id(99) == "owner/photos/train[99]"
    assert read_image(encoded(source, 99)).size == (8, 6)
    assert source.columns(99) == {"label": 1}
    whole = sum(len(file.content) for file in hub.repo("owner/photos", "dataset").head.files.values())
    assert hub.sent - before < whole / 10


def test_splits_and_missing_data_sets_are_named(hub: LoopbackHub) -> None:
    on_the_hub(hub)
    assert len(open_source("owner/photos", split="test")) == 50
    with pytest.raises(ValueError, match=r"^split must be one of train, test, got dev"):
        open_source("owner/photos", split="dev")
    with pytest.raises(ValueError, match="source owner/none can't be loaded"):
        open_source("owner/none")


def test_random_access_downloads_the_split_once_and_reads_the_same(hub: LoopbackHub) -> None:
    on_the_hub(hub)
    source = open_source("owner/photos", random_access=True)
    before = hub.sent
    assert (len(source), source.class_names, source.id(99)) == (100, ("cat", "dog"), "owner/photos/train[99]")
    for n in (99, 0, 50):
        assert read_image(encoded(source, n)).size == (8, 6)
        assert source.columns(n) == {"label": n % 2}
    assert hub.sent == before


def test_a_folder_in_the_layout_of_the_hub_is_read_by_splits(tmp_path: Path) -> None:
    (tmp_path / "photos" / "data").mkdir(parents=True)
    for split, labels in (("train", [0, 1]), ("test", [1])):
        labelled(tmp_path / "photos" / "data" / f"{split}-00000-of-00001.parquet", labels)
    for random_access in (False, True):
        sources = [open_source(tmp_path / "photos", split=s, random_access=random_access) for s in ("train", "test")]
        assert [len(source) for source in sources] == [2, 1]
        assert sources[1].id(0) == "photos/test[0]"
