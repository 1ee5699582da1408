"""Parts: any number of processes, any number of interruptions, one result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ul_tokenizer.evaluation.parts import (
    BATCHES_PER_PART,
    Batch,
    FeatureFile,
    PartedJob,
    PartNotes,
    Parts,
    write_features,
)
from ul_tokenizer.evaluation.samples import Sample
from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.processes import Processes


class Numbers:
    """Samples whose pixels are their number; every seventh can't be read, every third has another shape."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def id(self, number: int) -> str:
        return f"n{number}"

    def read(self, number: int) -> Sample:
        if number % 7 == 6:
            raise UnreadableImageError(self.id(number), "it is a seventh")
        return Sample(self.id(number), torch.full((3, 2, 2 + (number % 3 == 0)), number, dtype=torch.uint8))


def double(batch: Batch, notes: PartNotes) -> Mapping[str, Any]:
    pixels = torch.stack([sample.pixels for sample in batch.samples])  # fails for mixed shapes
    notes.nonfinite += [sample.id for sample in batch.samples if sample.id == "n4"]
    return {"double": 2.0 * pixels[:, 0, 0, 0].numpy(), "size": np.full(len(pixels), len(batch.numbers))}


def job(folder: Path, measure: Any = double, key: str = "k", rank: int = 0, world_size: int = 1) -> PartedJob:
    return PartedJob(Numbers(41), measure, folder, key, 4, Processes(rank, world_size), "numbers")


def test_columns_are_in_order_without_what_cant_be_read(tmp_path: Path) -> None:
    parts = job(tmp_path).run()
    readable = [n for n in range(41) if n % 7 != 6]
    columns = parts.columns("size")
    assert columns.keys() == {"number", "double"}
    assert columns["number"].tolist() == readable
    assert columns["double"].tolist() == [2.0 * n for n in readable]
    notes = parts.notes()
    assert [tuple(skip) for skip in notes.skipped] == [(f"n{n}", "it is a seventh") for n in range(6, 41, 7)]
    assert notes.nonfinite == ["n4"]
    assert np.concatenate(list(parts.blocks("double"))).tolist() == columns["double"].tolist()


def contents(parts: Parts) -> list[Any]:
    return [*(column.tolist() for column in parts.columns().values()), parts.notes()]


def test_three_processes_make_the_parts_of_one(tmp_path: Path) -> None:
    one = job(tmp_path / "one").run()
    for rank in (2, 0, 1):
        three = job(tmp_path / "three", rank=rank, world_size=3).run() if rank == 1 else None
        if rank != 1:
            job(tmp_path / "three", rank=rank, world_size=3).run()
    assert three is not None and contents(three) == contents(one)


def test_finished_parts_are_not_made_again_and_those_of_another_key_are(tmp_path: Path) -> None:
    seen: list[int] = []

    def counted(batch: Batch, notes: PartNotes) -> Mapping[str, Any]:
        seen.extend(batch.numbers)
        if len(seen) > 20:
            raise KeyboardInterrupt
        return double(batch, notes)

    with pytest.raises(KeyboardInterrupt):
        job(tmp_path, counted).run()
    made = len(list(tmp_path.glob("part-*.safetensors")))
    assert made == 1
    seen.clear()
    before = job(tmp_path / "whole").run()

    def noted(batch: Batch, notes: PartNotes) -> Mapping[str, Any]:
        seen.extend(batch.numbers)
        return double(batch, notes)

    resumed = job(tmp_path, noted).run()
    assert min(seen) == 4 * BATCHES_PER_PART
    assert contents(resumed) == contents(before)
    seen.clear()
    job(tmp_path, noted, key="other").run()
    assert min(seen) == 0


def test_a_damaged_part_is_made_again(tmp_path: Path) -> None:
    parts = job(tmp_path).run()
    expected = contents(parts)
    parts.paths[1].write_bytes(parts.paths[1].read_bytes()[:50])
    assert contents(job(tmp_path).run()) == expected


def test_a_part_in_which_nothing_can_be_read_has_no_rows(tmp_path: Path) -> None:
    class Seventh(Numbers):
        def read(self, number: int) -> Sample:
            return super().read(6 if number < 16 else number)

    parts = PartedJob(Seventh(20), double, tmp_path, "k", 4, Processes(), "").run()
    assert parts.columns()["number"].tolist() == [16, 17, 18, 19]
    assert len(parts.notes().skipped) == 16


def test_batch_size_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        PartedJob(Numbers(1), double, tmp_path, "k", 0, Processes(), "")


# ---------------------------------------------------------------- features


def test_a_feature_file_is_a_safetensors_file_that_is_read_by_rows(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(37, 5)).astype(np.float32)
    path = tmp_path / "features.safetensors"
    write_features(path, iter([features[:20], features[20:]]), 37, 5, {"facts": '{"ü": 1}'})
    assert torch.equal(load_file(path)["features"], torch.from_numpy(features))
    file = FeatureFile(path)
    assert (file.shape, len(file), file.metadata) == ((37, 5), 37, {"facts": '{"ü": 1}'})
    rows = np.array([3, 36, 0, 3])
    assert np.array_equal(file[rows], features[rows])
    assert np.array_equal(file[30:50], features[30:])


def test_another_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"x.safetensors must hold features as this library writes them"):
        FeatureFile(tmp_path / "x.safetensors")
