"""Data that is read block by block: any number of workers and processes draws the same, and little is read twice."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests.sources.samples import parquet
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.sources.parquet import ParquetRows
from ul_tokenizer.sources.tar import TarSource
from ul_tokenizer.training.data import make_sources, make_training_crops
from ul_tokenizer.training.draws.crops import DrawSampler, RandomCropDataset, collate_crops
from ul_tokenizer.training.stage1_arguments import Stage1Arguments

COUNT, GROUP = 40, 5


def picture(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (level, level, level)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """40 grey images in a table with row groups of five, and in eight archives."""
    root = tmp_path_factory.mktemp("stored")
    pictures = [picture(n) for n in range(COUNT)]
    captions = [f"grey {n}" for n in range(COUNT)]
    table = parquet(root / "a.parquet", row_group_size=GROUP, image=pictures, caption=captions)
    (root / "tars").mkdir()
    for first in range(0, COUNT, GROUP):
        with tarfile.open(root / "tars" / f"{first:02}.tar", "w") as archive:
            for n in range(first, first + GROUP):
                for name, content in ((f"{n:02}.png", pictures[n]), (f"{n:02}.txt", captions[n].encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return {"parquet": table, "tar": root / "tars"}


def crops_of(path: Path, **arguments: Any) -> RandomCropDataset:
    flags = {"train_data_dir": str(path), "resolution": 8, "shuffle_buffer_size": 8, "validation_fraction": 0.1}
    args = Stage1Arguments(**{**flags, **arguments})
    return make_training_crops(args, make_sources(args)[0], 8)


def levels(dataset: RandomCropDataset, draws: Any, workers: int = 0) -> list[int]:
    loader = DataLoader(dataset, batch_size=4, sampler=draws, num_workers=workers, collate_fn=collate_crops)
    return [int(level) for batch in loader for level in batch["pixel_values"][:, 0, 0, 0]]


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_resuming_workers_and_processes_change_no_draw(stored: dict[str, Path], kind: str) -> None:
    length = len(crops_of(stored[kind]))
    draws = levels(crops_of(stored[kind]), DrawSampler(0, 2 * length))
    assert len(draws) == 2 * length and len(set(draws)) == length
    assert levels(crops_of(stored[kind]), DrawSampler(12, 2 * length), workers=2) == draws[12:]
    shares = [levels(crops_of(stored[kind]), DrawSampler(0, 2 * length, 2, rank)) for rank in range(2)]
    assert [draw for pair in zip(*shares, strict=True) for draw in pair] == draws


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_held_out_images_are_never_drawn_and_epochs_are_whole(stored: dict[str, Path], kind: str) -> None:
    args = Stage1Arguments(
        train_data_dir=str(stored[kind]), resolution=8, shuffle_buffer_size=8, validation_fraction=0.2
    )
    train, held_out = make_sources(args)
    dataset = make_training_crops(args, train, 8)
    drawn = Counter(levels(dataset, DrawSampler(0, len(dataset))))
    others = {int(np.asarray(held_out.read(n))[0, 0, 0]) for n in range(len(held_out))}
    assert len(held_out) == 8 and set(drawn.values()) == {1}
    assert set(drawn) | others == set(range(COUNT)) and not set(drawn) & others


def test_each_row_group_is_read_about_once_in_an_epoch(
    stored: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = crops_of(stored["parquet"])
    reads: list[int] = []
    reader = ParquetRows._reader

    def counted(rows: ParquetRows, file: int) -> Any:
        reads.append(file)
        return reader(rows, file)

    monkeypatch.setattr(ParquetRows, "_reader", counted)
    levels(dataset, DrawSampler(0, len(dataset)))
    assert len(reads) <= COUNT // GROUP + 2  # one more where an epoch starts, as images are held out in between


def test_without_a_buffer_all_samples_are_shuffled(stored: dict[str, Path]) -> None:
    dataset = crops_of(stored["tar"], shuffle_buffer_size=None)
    draws = levels(dataset, DrawSampler(0, len(dataset)))
    spread = [max(draws[n : n + 8]) - min(draws[n : n + 8]) for n in range(0, 32, 8)]
    assert min(spread) > 2 * GROUP


def test_more_workers_than_archives_all_work(tmp_path: Path, stored: dict[str, Path]) -> None:
    (tmp_path / "one.tar").write_bytes((stored["tar"] / "00.tar").read_bytes())
    dataset = crops_of(tmp_path, validation_fraction=0.0)
    expected = levels(dataset, DrawSampler(0, 24))
    assert levels(dataset, DrawSampler(0, 24), workers=3) == expected and len(set(expected)) == 3


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_captions_come_with_the_crops(stored: dict[str, Path], kind: str) -> None:
    dataset = crops_of(stored[kind])
    batch = collate_crops([dataset[n] for n in range(6)])
    assert batch["captions"] == [f"grey {int(level)}" for level in batch["pixel_values"][:, 0, 0, 0]]
    assert batch["pixel_values"].dtype == torch.uint8
    assert isinstance(dataset.source, DecodedImages) and dataset.source.has_captions


def test_blocks_of_archives_follow_the_samples(stored: dict[str, Path]) -> None:
    source = TarSource(sorted(stored["tar"].iterdir()))
    assert source.block_sizes() == [GROUP] * (COUNT // GROUP)
    assert len({source.id(n).partition("/")[0] for n in range(GROUP)}) == 1
