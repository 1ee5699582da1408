"""A crop depends on the seed and the number of its draw, and on nothing else."""

from __future__ import annotations

import io
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ul_tokenizer.media.pixels import frame_to_uint8
from ul_tokenizer.sources.base import SkippedSample, Source
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.training.draws.crops import CropBatch, DrawSampler, RandomCropDataset, collate_crops


class Pictures:
    """A source in memory; None stands for an unreadable image. Every image is a class of its own."""

    def __init__(self, *images: Image.Image | None) -> None:
        self.images = images
        self.skipped: list[SkippedSample] = []
        self.class_names = tuple(f"class {n}" for n in range(len(images)))

    def __len__(self) -> int:
        return len(self.images)

    def id(self, index: int) -> str:
        return f"{index}.png"

    def open(self, index: int) -> bytes:
        image = self.images[index]
        if image is None:
            return b""
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()

    def columns(self, index: int) -> dict[str, int]:
        return {"label": index}


def crops_of(source: Source, *args: Any, **options: Any) -> RandomCropDataset:
    return RandomCropDataset(DecodedImages(source, cache_bytes=1 << 20), *args, **options)


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def flat(*levels: int) -> Pictures:
    return Pictures(*(Image.new("RGB", (20, 20), (level, level, level)) for level in levels))


def level_of(crop: Any) -> int:
    return round(crop["pixel_values"].double().mean().item())


@pytest.fixture
def folder(tmp_path: Path) -> FolderSource:
    for number in range(5):
        noise(seed=number).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"")
    return FolderSource(tmp_path)


def load(dataset: RandomCropDataset, draws: DrawSampler, workers: int = 0) -> list[CropBatch]:
    loader = DataLoader(dataset, batch_size=4, sampler=draws, num_workers=workers, collate_fn=collate_crops)
    return list(loader)


# ---------------------------------------------------------------- determinism


def test_a_draw_does_not_depend_on_the_draws_before_it(folder: FolderSource) -> None:
    settings: dict[str, Any] = {"resolution": 8, "seed": 3, "scale": (0.3, 1.0), "random_flip": True}
    in_order = [crops_of(folder, **settings)[n] for n in range(20)]
    dataset = crops_of(folder, **settings)
    for n in (19, 3, 11, 3):
        assert torch.equal(dataset[n]["pixel_values"], in_order[n]["pixel_values"])
        assert dataset[n]["skipped"] == in_order[n]["skipped"]


def test_two_worker_processes_give_the_same_batches_as_none(folder: FolderSource) -> None:
    dataset = crops_of(folder, 8, 0, (0.3, 1.0), random_flip=True)
    alone, with_workers = load(dataset, DrawSampler(0, 24)), load(dataset, DrawSampler(0, 24), workers=2)
    assert len(alone) == 6
    for one, other in zip(alone, with_workers, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert one["skipped"] == other["skipped"]
    assert any(batch["skipped"] for batch in alone)


def test_a_resumed_run_goes_on_with_the_same_samples(folder: FolderSource) -> None:
    dataset = crops_of(folder, 8, 0, (0.3, 1.0))
    whole, rest = load(dataset, DrawSampler(0, 24)), load(dataset, DrawSampler(8, 24))
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])


def test_processes_share_the_draws_without_overlap_or_gap() -> None:
    shares = [list(DrawSampler(5, 20, num_processes=3, process_index=index)) for index in range(3)]
    assert shares[1] == [6, 9, 12, 15, 18]
    assert sorted(draw for share in shares for draw in share) == list(range(5, 20))
    assert len(DrawSampler(5, 21, num_processes=3, process_index=0)) == 6


def test_another_seed_gives_another_order_and_other_crops() -> None:
    orders = [[level_of(crops_of(flat(*range(50)), 8, seed)[n]) for n in range(50)] for seed in (0, 1)]
    assert orders[0] != orders[1]
    crops = [crops_of(Pictures(noise()), 8, seed)[0]["pixel_values"] for seed in (0, 1)]
    assert not torch.equal(*crops)


def test_each_epoch_holds_every_image_once_in_an_order_of_its_own() -> None:
    dataset = crops_of(flat(*range(30)), 8)
    epochs = [[level_of(dataset[30 * epoch + n]) for n in range(30)] for epoch in range(3)]
    assert all(Counter(epoch) == Counter(range(30)) for epoch in epochs)
    assert all(one != other for one, other in pairwise([list(range(30)), *epochs]))


def test_one_image_gives_another_crop_at_every_draw() -> None:
    dataset = crops_of(Pictures(noise()), 8)
    assert len({dataset[n]["pixel_values"].numpy().tobytes() for n in range(20)}) == 20


# ---------------------------------------------------------------- geometry


def test_at_scale_1_a_crop_is_a_piece_of_the_image_bit_by_bit() -> None:
    image = noise()
    windows = frame_to_uint8(image).unfold(1, 8, 1).unfold(2, 8, 1)  # (3, 23, 33, 8, 8)
    dataset = crops_of(Pictures(image), 8)
    for n in range(10):
        same = (windows == dataset[n]["pixel_values"][:, None, None]).all(dim=(0, 3, 4))
        assert same.sum() == 1


def test_every_place_of_the_image_is_reached() -> None:
    gradient = Image.fromarray(np.arange(12, dtype=np.uint8)[None, :, None].repeat(12, 0).repeat(3, 2))
    dataset = crops_of(Pictures(gradient), 8)
    lefts = Counter(int(dataset[n]["pixel_values"][0, 0, 0]) for n in range(1000))
    assert sorted(lefts) == [0, 1, 2, 3, 4]
    assert min(lefts.values()) > 140  # 200 expected


def test_the_scale_is_log_uniform_between_its_bounds() -> None:
    ramp = Image.fromarray(np.arange(240, dtype=np.uint8)[None, :, None].repeat(240, 0).repeat(3, 2))
    dataset = crops_of(Pictures(ramp), 16, scale=(0.125, 0.5))
    rows = [dataset[n]["pixel_values"][0, 8].double() for n in range(300)]
    scales = 8 / torch.stack([row[12] - row[4] for row in rows])  # 8 pixels of the crop are 8 / scale levels
    assert 0.12 < scales.min() < 0.14 and 0.45 < scales.max() < 0.53
    assert scales.log2().mean() == pytest.approx(-2, abs=0.12)


def test_a_scale_at_which_the_crop_would_not_fit_is_raised_until_it_does() -> None:
    image = noise(32, 16)
    crops = crops_of(Pictures(image), 16, scale=(0.1, 0.1))
    windows = frame_to_uint8(image).unfold(2, 16, 1).permute(2, 0, 1, 3)
    for n in range(5):
        assert any(torch.equal(crops[n]["pixel_values"], window) for window in windows)


def test_only_an_image_smaller_than_the_crop_is_enlarged() -> None:
    dataset = crops_of(Pictures(Image.new("RGB", (5, 9), (10, 20, 30))), 16)
    assert dataset[0]["pixel_values"].shape == (3, 16, 16)
    assert dataset[0]["pixel_values"][:, 3, 3].tolist() == [10, 20, 30]


def test_center_crop_takes_the_middle() -> None:
    dataset = crops_of(Pictures(noise(20, 12)), 8, center_crop=True)
    for n in range(3):
        assert torch.equal(dataset[n]["pixel_values"], frame_to_uint8(noise(20, 12))[:, 2:10, 6:14])


def test_half_of_the_crops_are_mirrored_when_asked_and_none_otherwise() -> None:
    ramp = Image.fromarray(np.arange(40, dtype=np.uint8)[None, :, None].repeat(40, 0).repeat(3, 2))

    def mirrored(random_flip: bool) -> int:
        dataset = crops_of(Pictures(ramp), 8, random_flip=random_flip)
        crops = (dataset[n]["pixel_values"] for n in range(200))
        return sum(bool(crop[0, 0, 0] > crop[0, 0, -1]) for crop in crops)

    assert mirrored(False) == 0
    assert 70 < mirrored(True) < 130


def test_a_batch_has_one_byte_for_each_value_of_a_channel() -> None:
    dataset = crops_of(Pictures(noise()), 8, scale=(0.4, 0.9))
    pixels = collate_crops([dataset[n] for n in range(4)])["pixel_values"]
    assert pixels.dtype == torch.uint8 and pixels.nbytes == 4 * 3 * 8 * 8


# ---------------------------------------------------------------- bad images


def test_an_unreadable_image_is_replaced_and_named() -> None:
    good = flat(10, 20, 30)
    dataset = crops_of(Pictures(*good.images, None), 8)
    samples = [dataset[n] for n in range(4)]
    named = [sample["skipped"] for sample in samples if sample["skipped"]]
    assert [set(reasons) for reasons in named] == [{"3.png: the file is empty"}]
    assert {level_of(sample) for sample in samples} == {10, 20, 30}


def test_a_batch_lists_only_what_was_skipped() -> None:
    dataset = crops_of(Pictures(*flat(10, 20, 30).images, None), 8)
    batch = collate_crops([dataset[n] for n in range(4)])
    assert batch["pixel_values"].shape == (4, 3, 8, 8)
    assert set(batch["skipped"]) == {"3.png: the file is empty"}


def test_a_crop_has_the_label_of_the_image_that_was_read_even_in_place_of_another() -> None:
    dataset = crops_of(Pictures(*flat(10, 20, 30).images, None), 8)
    levels = (10, 20, 30)
    assert all(level_of(sample) == levels[sample["class_label"]] for sample in (dataset[n] for n in range(8)))
    batch = collate_crops([dataset[n] for n in range(8)])
    assert batch["class_labels"].tolist() == [dataset[n]["class_label"] for n in range(8)]


def test_a_reason_with_a_semicolon_is_one_reason() -> None:
    class Named(Pictures):
        def id(self, index: int) -> str:
            return "a; b.png" if index == 3 else super().id(index)

    dataset = crops_of(Named(*flat(10, 20, 30).images, None), 8)
    assert set(collate_crops([dataset[n] for n in range(4)])["skipped"]) == {"a; b.png: the file is empty"}


def test_a_source_without_any_readable_image_is_one_error_and_no_endless_loop() -> None:
    with pytest.raises(ValueError, match=r"none in 101 tries, last \d\.png: the file is empty"):
        crops_of(Pictures(None, None), 8)[0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"resolution": 0}, "resolution must be at least 1, got 0"),
        ({"resolution": 8, "seed": -1}, "seed must not be negative, got -1"),
        ({"resolution": 8, "scale": (0.5, 1.5)}, r"scale must be .*got \(0.5, 1.5\)"),
        ({"resolution": 8, "scale": (0.5, 0.2)}, "scale must be"),
        ({"resolution": 8, "scale": (0.0, 0.2)}, "scale must be"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        crops_of(flat(1), **arguments)


@pytest.mark.parametrize("arguments", [(5, 4), (-1, 4), (0, 4, 2, 2), (0, 4, 0, 0)])
def test_draws_out_of_range_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        DrawSampler(*arguments)
