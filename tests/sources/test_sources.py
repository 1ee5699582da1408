"""Sources of whole data sets: what is a sample, what it is called, what is known of it, and what is left out."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.hub.loopback_hub import LoopbackHub
from ul_tokenizer.media.images import UnreadableImageError, read_image
from ul_tokenizer.sources.base import Source
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.sources.open import open_source
from ul_tokenizer.sources.tar import TarSource


def png(seed: int = 0, size: tuple[int, int] = (8, 6)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def write(root: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_png", ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def everything(source: Source) -> list[tuple[str, dict[str, Any]]]:
    return [(source.id(i), source.columns(i)) for i in range(len(source))]


def encoded(source: Source, index: int) -> Path | bytes:
    opened = source.open(index)
    assert isinstance(opened, Path | bytes)
    return opened


# ---------------------------------------------------------------- folders


def test_class_folders_become_labels(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path, b__x_png=png(0), a__y_png=png(1), b__z__w_png=png(2))))
    assert source.class_names == ("a", "b")
    assert everything(source) == [("a/y.png", {"label": 0}), ("b/x.png", {"label": 1}), ("b/z/w.png", {"label": 1})]
    assert read_image(encoded(source, 1)).tobytes() == Image.open(tmp_path / "b/x.png").tobytes()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_becomes_columns(tmp_path: Path, kind: str) -> None:
    write(tmp_path, x_png=png(0), y_png=png(1))
    if kind == "csv":
        text = "file_name,caption,label\nx.png,a dog,3\n"
    else:
        text = json.dumps({"file_name": "x.png", "caption": "a dog", "label": 3}) + "\n"
    (tmp_path / f"metadata.{kind}").write_text(text)
    source = FolderSource(tmp_path)
    assert everything(source) == [("x.png", {"caption": "a dog", "label": 3}), ("y.png", {})]
    assert source.skipped == []


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metadata.csv", "name,caption\nx.png,a\n", "must have a file_name in every row, got none in row 1"),
        ("metadata.jsonl", '{"file_name": "x.png"}\nnonsense\n', "a JSON object in every line, got another in line 2"),
        ("metadata.csv", "file_name,id\nx.png,1\n", "must not have a column 'id'"),
    ],
)
def test_bad_metadata_is_one_sentence(tmp_path: Path, name: str, text: str, words: str) -> None:
    (write(tmp_path, x_png=png()) / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        FolderSource(tmp_path)


def test_of_equal_files_the_first_stays_and_the_others_are_named(tmp_path: Path) -> None:
    write(tmp_path, a_png=png(0), b_png=png(1), c_png=png(0), d_png=png(0))
    source = FolderSource(tmp_path)
    assert [source.id(i) for i in range(len(source))] == ["a.png", "b.png"]
    assert source.skipped == [("c.png", "same content as a.png"), ("d.png", "same content as a.png")]
    assert len(FolderSource(tmp_path, keep_duplicates=True)) == 4


def test_long_files_that_only_begin_alike_are_both_kept(tmp_path: Path) -> None:
    head = b"\x00" * 20_000
    write(tmp_path, a_png=head + b"1", b_png=head + b"2")
    assert len(FolderSource(tmp_path)) == 2


def test_other_files_are_named(tmp_path: Path) -> None:
    source = FolderSource(write(tmp_path, a_png=png(), notes=b"x"))
    assert source.skipped == [("notes", "no suffix is not the suffix of an image")]


# ---------------------------------------------------------------- archives


def test_files_that_share_a_key_are_a_sample(tmp_path: Path) -> None:
    files = [
        ("s/1.png", png(1)),
        ("s/1.txt", b"a dog\n"),
        ("s/1.cls", b"7"),
        ("s/2.PNG", png(2)),
        ("s/2.json", b'{"n": 1, "id": 2}'),
    ]
    source = open_source(str(tar(tmp_path / "a.tar", files)))
    assert everything(source) == [("a.tar/s/1", {"caption": "a dog", "label": 7}), ("a.tar/s/2", {"n": 1})]
    assert source.open(1) == png(2)


def test_a_folder_of_archives_is_read_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        tar(tmp_path / f"{name}.tar", [("1.png", png())])
    source = open_source(str(tmp_path))
    assert [source.id(i) for i in range(len(source))] == ["a.tar/1", "b.tar/1"]


def test_an_archive_that_ends_early_gives_what_is_whole_and_says_so(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [(f"{n}.png", png(n, (40, 40))) for n in range(3)])
    path.write_bytes(path.read_bytes()[: 2 * 5632 + 1000])
    source = TarSource([path])
    readable = [i for i in range(len(source)) if read_image(source.open(i)).size == (40, 40)]
    assert len(readable) == len(source) == 2
    assert any(skip.id.startswith("a.tar") and "end" in skip.reason for skip in source.skipped)


def test_a_path_out_of_the_archive_is_left_out(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("../evil.png", png(0)), ("/abs.png", png(1)), ("good.png", png(2))])
    source = TarSource([path])
    assert everything(source) == [("a.tar/good", {})]
    assert [skip.reason for skip in source.skipped] == ["its path leads out of the archive"] * 2
    assert not (tmp_path.parent / "evil.png").exists()


def test_second_images_lonely_columns_and_strangers_are_named(tmp_path: Path) -> None:
    files = [("1.png", png(0)), ("1.jpg", png(1)), ("2.txt", b"x"), ("3.xyz", b"x")]
    source = TarSource([tar(tmp_path / "a.tar", files)])
    assert len(source) == 1
    assert sorted(skip.id for skip in source.skipped) == ["a.tar/1.jpg", "a.tar/2", "a.tar/3.xyz"]


def test_no_archive_at_all_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match="archives must hold at least one image, got 1 without any"):
        TarSource([path])


# ---------------------------------------------------------------- tables


def parquet(path: Path, row_group_size: int | None = None, **columns: list[Any]) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    pytest.importorskip("datasets", reason="the extra `data` is not installed")
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.table(columns), path, row_group_size=row_group_size)
    return path


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


# ---------------------------------------------------------------- by name


def test_what_does_not_exist_is_one_sentence() -> None:
    with pytest.raises(
        ValueError,
        match="or the id of a data set on the hub, got /no/such/folder, which does not exist",
    ):
        open_source("/no/such/folder")


def test_sources_travel_to_worker_processes(tmp_path: Path) -> None:
    write(tmp_path / "folder", a_png=png())
    tar(tmp_path / "a.tar", [("1.png", png())])
    for name in ("folder", "a.tar"):
        source = pickle.loads(pickle.dumps(open_source(str(tmp_path / name))))
        assert read_image(source.open(0)).size == (8, 6)
