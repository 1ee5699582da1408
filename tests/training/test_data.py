"""Training reads everything that encoding reads: the same images give the same run, whatever they are stored in."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.hub.loopback_hub import LoopbackHub
from ul_tokenizer.models.presets import build_autoencoder
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.training.data import loader_options, make_sources
from ul_tokenizer.training.stage1 import Stage1Arguments
from ul_tokenizer.training.stage2 import Stage2, Stage2Arguments, train_base_model

Flags = Callable[..., list[str]]
Logged = Callable[[Path], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders of six images each."""
    folder = tmp_path_factory.mktemp("classes")
    random = np.random.default_rng(0)
    for n in range(12):
        path = folder / ("dark", "light")[n // 6] / f"{n:02}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = random.integers(0, 128, (20, 24, 3)) + (n // 6) * 127
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def files_in(folder: Path) -> list[tuple[int, bytes]]:
    """Label and content of each image, in the order of a folder source."""
    return [(int(path.parent.name == "light"), path.read_bytes()) for path in sorted(folder.rglob("*.png"))]


def as_tar(classes: Path, folder: Path) -> Path:
    """Two archives, with the classes in .cls files."""
    files = files_in(classes)
    for number, part in enumerate((files[:5], files[5:])):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for n, (label, content) in enumerate(part):
                for name, data in ((f"{n:02}.png", content), (f"{n:02}.cls", b"%d" % label)):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return folder


def as_parquet(classes: Path, file: Path) -> Path:
    """A table with the columns "image" and "label", a `ClassLabel`."""
    datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])}
    rows = files_in(classes)
    columns = {
        "image": [{"bytes": content, "path": None} for _, content in rows],
        "label": [label for label, _ in rows],
    }
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(file, batch_size=5)
    return file


@pytest.fixture(scope="module")
def stored(classes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images as a folder, as archives and as a table."""
    root = tmp_path_factory.mktemp("stored")
    return {"folder": classes, "tar": as_tar(classes, root), "parquet": as_parquet(classes, root / "a.parquet")}


@pytest.fixture(scope="module")
def folder_run(
    train: Callable[..., int], classes: Path, logged: Logged, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("folder") / "run"
    assert train(folder, train_data_dir=classes, validation_fraction=0.2, max_train_steps=3, validation_steps=3) == 0
    return logged(folder)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_the_same_images_give_the_same_losses_whatever_they_are_stored_in(
    train: Callable[..., int],
    folder_run: list[dict[str, Any]],
    stored: dict[str, Path],
    logged: Logged,
    tmp_path: Path,
    kind: str,
) -> None:
    run = tmp_path / "run"
    flags = {"validation_fraction": 0.2, "max_train_steps": 3, "validation_steps": 3}
    assert train(run, train_data_dir=stored[kind], **flags) == 0
    assert len(folder_run) >= 3 and logged(run) == folder_run


def open_sources(**arguments: Any) -> tuple[DecodedImages, DecodedImages]:
    return make_sources(Stage1Arguments(**arguments))


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_labels_and_splits_are_those_of_the_folder(stored: dict[str, Path], kind: str) -> None:
    parts = open_sources(train_data_dir=stored[kind], validation_fraction=0.25)
    expected = open_sources(train_data_dir=stored["folder"], validation_fraction=0.25)
    assert [len(part) for part in parts] == [9, 3]
    assert {parts[0].label(n) for n in range(9)} == {0, 1}
    for part, other in zip(parts, expected, strict=True):
        assert [part.label(n) for n in range(len(part))] == [other.label(n) for n in range(len(part))]
        assert [part.read(n).tobytes() for n in range(len(part))] == [other.read(n).tobytes() for n in range(len(part))]
        assert part.class_names == (("0", "1") if kind == "tar" else ("dark", "light"))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_base_model_learns_the_classes_of_archives_and_tables(
    flags: Flags, stored: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(0)
    build_autoencoder("ul-tiny-f8").save_pretrained(tmp_path / "autoencoder")
    run = tmp_path / "run"
    arguments: dict[str, Any] = {
        "pretrained_autoencoder": tmp_path / "autoencoder",
        "train_data_dir": stored[kind],
        "output_dir": run,
        "preset": "ul-base-tiny",
        "resolution": 16,
        "train_batch_size": 2,
        "max_train_steps": 1,
        "num_validation_images": 2,
        "validation_inference_steps": 1,
        "validation_fraction": 0.2,
    }
    assert train_base_model(Stage2Arguments(**arguments))
    names = json.loads((run / "class_names.json").read_text())
    assert names == (["0", "1"] if kind == "tar" else ["dark", "light"])
    assert json.loads((run / "transformer" / "config.json").read_text())["num_class_embeds"] == 2


# ---------------------------------------------------------------- splits and captions


def with_splits(root: Path, classes: Path) -> Path:
    """A folder in the layout of a hub data set, with the splits "train" and "test"."""
    datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    kinds = {"image": datasets.Image(), "text": datasets.Value("string")}
    rows = files_in(classes)
    (root / "data").mkdir(parents=True)
    for split, part in (("train", rows[:7]), ("test", rows[7:])):
        columns = {
            "image": [{"bytes": content, "path": None} for _, content in part],
            "text": [f"class {label}" for label, _ in part],
        }
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        table.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize("buffer", [None, 4])
def test_any_split_is_trained_on_and_validated_on(classes: Path, tmp_path: Path, buffer: int | None) -> None:
    root = with_splits(tmp_path / "photos", classes)
    flags: dict[str, Any] = {"train_data_dir": root, "shuffle_buffer_size": buffer, "caption_column": "text"}
    train, held_out = open_sources(**flags, validation_split="test")
    assert (len(train), len(held_out), held_out.id(0)) == (7, 5, "photos/test[0]")
    assert train.label_and_caption(0) == (None, "class 0")
    train, held_out = open_sources(**flags, dataset_split="test", validation_fraction=0.4)
    assert (len(train), len(held_out)) == (3, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"validation_split": "dev"}, "--train_data_dir: split must be one of train, test, got dev"),
        ({"caption_column": "words"}, r"--caption_column must be one of \['text'\] in .*photos, got 'words'"),
    ],
)
def test_a_missing_split_or_caption_column_is_one_sentence(
    classes: Path, tmp_path: Path, flags: dict[str, Any], message: str
) -> None:
    root = with_splits(tmp_path / "photos", classes)
    with pytest.raises(ValueError, match=message):
        open_sources(train_data_dir=root, shuffle_buffer_size=4, **flags)


def test_splits_and_captions_that_a_folder_does_not_have_are_refused(classes: Path) -> None:
    with pytest.raises(ValueError, match="--dataset_split and --validation_split need a data set of the hub"):
        open_sources(train_data_dir=classes, dataset_split="validation")
    with pytest.raises(ValueError, match=r"--caption_column must be a column of the samples in .*, got 'text'"):
        open_sources(train_data_dir=classes, caption_column="text")
    assert not open_sources(train_data_dir=classes)[0].has_captions


def test_captions_of_a_folder_come_from_its_metadata(classes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "captioned"
    folder.mkdir()
    rows = ["file_name,caption,title"]
    for n, (_, content) in enumerate(files_in(classes)[:4]):
        (folder / f"{n}.png").write_bytes(content)
        rows.append(f"{n}.png,a picture,{1980 + n}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    for column, expected in ((None, {"a picture"}), ("title", {"1980", "1981", "1982", "1983"})):
        parts = open_sources(train_data_dir=folder, caption_column=column, validation_fraction=0.5)
        assert {part.label_and_caption(n)[1] for part in parts for n in range(len(part))} == expected


# ---------------------------------------------------------------- scaling and workers


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_runs_with_aspect_ratio_buckets_are_the_same_from_every_source(
    train: Callable[..., int], stored: dict[str, Path], logged: Logged, tmp_path: Path, kind: str
) -> None:
    flags: dict[str, Any] = {
        "validation_fraction": 0.2,
        "max_train_steps": 3,
        "scaling": "short_side",
        "aspect_ratio_buckets": True,
        "resolution": 32,
        "preset": "ul-tiny-f8",
    }
    runs = [tmp_path / "run", tmp_path / "reference"]
    for run, source in zip(runs, (stored[kind], stored["folder"]), strict=True):
        assert train(run, train_data_dir=source, **flags) == 0
    assert logged(runs[0]) == logged(runs[1]) != []


@pytest.fixture(scope="module")
def three_ratios(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide, narrow and square images, four of each."""
    folder = tmp_path_factory.mktemp("ratios")
    for n in range(12):
        size = ((48, 24), (24, 48), (32, 32))[n % 3]
        pixels = np.random.default_rng(n).integers(0, 256, (size[1], size[0], 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n:02}.png")
    return folder


def test_a_base_model_trains_in_several_aspect_ratios(three_ratios: Path, logged: Logged, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build_autoencoder("ul-tiny-f8").save_pretrained(tmp_path / "autoencoder")
    arguments: dict[str, Any] = {
        "pretrained_autoencoder": str(tmp_path / "autoencoder"),
        "train_data_dir": str(three_ratios),
        "output_dir": str(tmp_path / "run"),
        "preset": "ul-base-tiny",
        "resolution": 64,
        "scaling": "short_side",
        "aspect_ratio_buckets": True,
        "train_batch_size": 2,
        "max_train_steps": 4,
        "logging_steps": 1,
        "num_validation_images": 2,
        "validation_inference_steps": 1,
        "validation_fraction": 0.2,
    }
    stage = Stage2(Stage2Arguments(**arguments))
    assert len({tuple(stage.dataset[n]["pixel_values"].shape) for n in range(8)}) > 1
    assert train_base_model(Stage2Arguments(**arguments))
    assert sum("loss" in line for line in logged(tmp_path / "run")) == 4
    fixed = {"center_crop": True, "random_flip": False, "scale_min": 1.0, "cache_latents": True}
    assert train_base_model(Stage2Arguments(**{**arguments, **fixed, "output_dir": str(tmp_path / "cached")}))


@pytest.mark.multiprocess
def test_two_processes_draw_the_same_sizes_as_one(
    train: Callable[..., int],
    start: Callable[..., subprocess.Popen[str]],
    logged: Logged,
    three_ratios: Path,
    tmp_path: Path,
) -> None:
    flags: dict[str, Any] = {
        "train_data_dir": three_ratios,
        "scaling": "short_side",
        "aspect_ratio_buckets": True,
        "resolution": 64,
        "max_train_steps": 4,
        "adam_epsilon": 1e-2,  # or AdamW would blow up rounding where gradients are near zero
    }
    assert train(tmp_path / "one", **flags, train_batch_size=2) == 0
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    process = start(tmp_path / "two", *torchrun, **flags, train_batch_size=1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    lines = [[line for line in logged(tmp_path / run) if "loss" in line] for run in ("one", "two")]
    assert len(lines[0]) == 4  # steps; the noise of a validation depends on the size of its batches
    for line, other in zip(*lines, strict=True):
        assert line == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_workers_share_the_memory_for_images(stored: dict[str, Path]) -> None:
    alone, shared = (
        open_sources(train_data_dir=stored["folder"], cache_images_gb=1, dataloader_num_workers=workers)[0]
        for workers in (0, 4)
    )
    assert (alone.cache_bytes, shared.cache_bytes) == (10**9, 250_000_000)


def test_worker_flags_reach_the_loader() -> None:
    args = Stage1Arguments(
        train_data_dir="x", dataloader_num_workers=2, dataloader_prefetch_factor=5, dataloader_persistent_workers=True
    )
    assert loader_options(args) == {"num_workers": 2, "prefetch_factor": 5, "persistent_workers": True}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"aspect_ratio_buckets": True}, "--aspect_ratio_buckets needs --scaling short_side, got native"),
        ({"dataloader_prefetch_factor": 2}, "--dataloader_prefetch_factor needs --dataloader_num_workers above 0"),
        (
            {"aspect_ratio_buckets": True, "scaling": "short_side", "shuffle_buffer_size": 9},
            "--aspect_ratio_buckets and --shuffle_buffer_size exclude each other",
        ),
        (
            {"aspect_ratio_buckets": True, "scaling": "short_side", "num_frames": 4},
            "--aspect_ratio_buckets must not be given with --num_frames",
        ),
        ({"validation_split": "test", "validation_data_dir": "y"}, "exclude each other"),
    ],
)
def test_contradictions_are_one_sentence(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stage1Arguments(train_data_dir="x", **flags)


# ---------------------------------------------------------------- which source


def test_a_validation_source_may_be_stored_otherwise(stored: dict[str, Path]) -> None:
    parts = open_sources(train_data_dir=stored["folder"], validation_data_dir=stored["parquet"])
    assert [len(part) for part in parts] == [12, 12]
    assert parts[1].id(0) == "a.parquet[0]"


def test_duplicates_are_kept_in_training(classes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "twice"
    folder.mkdir()
    for n, (_, content) in enumerate(2 * files_in(classes)[:3]):
        (folder / f"{n}.png").write_bytes(content)
    parts = open_sources(train_data_dir=folder, validation_fraction=0.4)
    assert sum(map(len, parts)) == 6


def test_a_data_set_of_the_hub_is_a_source(hub: LoopbackHub, classes: Path, tmp_path: Path) -> None:
    content = as_parquet(classes, tmp_path / "a.parquet").read_bytes()
    hub.add("owner/classes", {"data/train-00000-of-00001.parquet": content}, kind="dataset")
    train, _ = open_sources(dataset_name="owner/classes")
    assert train.class_names == ("dark", "light")
    assert train.id(0).startswith("owner/classes/train[")
    assert train.read(0).size == (24, 20)


@pytest.mark.parametrize("flag", ["train_data_dir", "validation_data_dir"])
def test_a_folder_that_does_not_exist_is_named_with_its_flag_and_not_sought_on_the_hub(
    hub: LoopbackHub, classes: Path, flag: str
) -> None:
    before = hub.sent
    with pytest.raises(ValueError, match=f"--{flag} must be a folder, .* that exists, got nowhere"):
        open_sources(**{"train_data_dir": classes, flag: "nowhere"})
    assert hub.sent == before


def test_what_is_wrong_with_a_source_is_one_sentence_with_the_flag(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"^--train_data_dir: root must hold at least one image"):
        open_sources(train_data_dir=tmp_path)
