"""Which latents stage 2 holds out, latents of several shapes, and the latents that it caches."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer import LatentDataset
from ul_tokenizer.latents.manifest import make_header
from ul_tokenizer.latents.writer import LatentWriter
from ul_tokenizer.training.latent_cache import FOLDER
from ul_tokenizer.training.stage2 import Stage2
from ul_tokenizer.training.stage2_data import draws_of, split_latents

Logged = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, Tensor]]
HEADER = make_header(latent_channels=4, latent_logsnr=5.0, dtype="float32", class_names=[str(n) for n in range(10)])


def write_latents(folder: Path, *shapes: tuple[int, ...], classes: int = 10, each: int = 20) -> Path:
    """Random latents, sorted by class; of each class some with each shape."""
    random = torch.Generator().manual_seed(0)
    with LatentWriter(folder, HEADER, shard_samples=16) as writer:
        for label in range(classes):
            for number, shape in enumerate(shapes):
                ids = [f"{label}-{number}-{n}" for n in range(each)]
                latents = torch.randn(each, 4, *shape, generator=random)
                writer.append(ids, latents, [{"label": label}] * each)
    return folder


# ---------------------------------------------------------------- held out


def test_every_class_is_held_out_although_the_data_set_is_sorted_by_class(tmp_path: Path) -> None:
    latents = LatentDataset(write_latents(tmp_path / "latents", (2, 2)))
    train, held_out = split_latents(latents, 20)
    labels = Counter(latents[int(i)]["label"] for i in held_out)
    assert labels == dict.fromkeys(range(10), 2)  # not 20 of the last class
    assert sorted([*train, *held_out]) == list(range(200))
    assert len({int(i) % 20 for i in held_out}) > 5  # not the same places of each class
    assert np.array_equal(split_latents(latents, 20).held_out, held_out)


def test_latents_without_labels_are_held_out_at_random(tmp_path: Path) -> None:
    with LatentWriter(tmp_path, HEADER) as writer:
        writer.append([str(n) for n in range(100)], torch.zeros(100, 4, 2, 2))
    held_out = split_latents(LatentDataset(tmp_path), 10).held_out
    assert len(set(held_out.tolist())) == 10
    assert 20 < held_out.mean() < 80 and len(set(np.diff(held_out).tolist())) > 3


def test_the_stage_validates_what_it_never_trains_on(
    make_stage: Callable[..., Stage2], train2: Callable[..., int], tmp_path: Path
) -> None:
    folder = write_latents(tmp_path / "latents", (2, 2), classes=2)
    options = {"train_data_dir": None, "latent_dataset": folder, "num_validation_images": 4}
    stage = make_stage(**options)
    assert stage._held_out is not None and stage._held_out.class_labels is not None
    assert stage._held_out.class_labels.tolist() == [0, 0, 1, 1]
    assert len(stage.dataset) == 36
    seen = {stage.dataset[n]["id"] for n in range(36)}
    held_out = [stage._latents[int(i)]["id"] for i in stage._split.held_out]  # type: ignore[index, union-attr]
    assert len(seen) == 36 and not seen & set(held_out)
    assert train2(tmp_path / "run", **options, validation_steps=2) == 0


def test_held_out_images_are_encoded_in_batches(make_stage: Callable[..., Stage2]) -> None:
    stage = make_stage(prepare=False)
    sizes: list[int] = []
    encode = stage.autoencoder.encode

    def counted(pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        sizes.append(len(pixels))
        return encode(pixels, noise)

    stage.autoencoder.encode = counted  # type: ignore[method-assign]
    stage.args.num_validation_images = 10
    held_out = stage._encode_held_out(torch.device("cpu"))
    assert sizes == [4, 4, 2] and len(held_out.latents) == 10


# ---------------------------------------------------------------- several shapes


def test_latents_of_several_shapes_are_trained_shape_by_shape(
    train2: Callable[..., int], logged: Logged, tmp_path: Path
) -> None:
    folder = write_latents(tmp_path / "latents", (2, 2), (2, 4), (4, 2), classes=2, each=6)
    latents = LatentDataset(folder)
    draws = draws_of(latents, np.arange(len(latents)), seed=0, group_size=4)
    groups = [{tuple(draws[n + k]["latent"].shape) for k in range(4)} for n in range(0, len(draws), 4)]
    assert all(len(group) == 1 for group in groups)
    assert {shape for group in groups for shape in group} == {(4, 2, 2), (4, 2, 4), (4, 4, 2)}
    assert {draws[n]["id"] for n in range(len(draws))} == {latents.id(n) for n in range(len(latents))}
    options = {"train_data_dir": None, "latent_dataset": folder, "max_train_steps": 12, "validation_steps": 12}
    assert train2(tmp_path / "run", **options, train_batch_size=2, gradient_accumulation_steps=2) == 0
    assert sum("loss" in line for line in logged(tmp_path / "run")) == 12


def test_one_shape_keeps_the_order_of_a_plain_shuffle(tmp_path: Path) -> None:
    latents = LatentDataset(write_latents(tmp_path / "latents", (2, 2), classes=1))
    assert draws_of(latents, np.arange(20), seed=0, group_size=8).order is None


def test_sides_that_the_model_cannot_take_are_refused_before_the_start(
    train2: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_latents(tmp_path / "latents", (2, 2), (2, 3), classes=1)
    base = {"block_out_channels": [16, 16], "num_layers": [1, 1]}
    options = {"train_data_dir": None, "latent_dataset": folder, "base_config": base}
    assert train2(tmp_path / "run", **options) == 1
    words = "--latent_dataset must have sides that are multiples of 2 for this base model, got 20 latents of 2×3"
    assert words in capfd.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_more_held_out_than_the_commonest_shape_has_is_refused(
    train2: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_latents(tmp_path / "latents", (2, 2), (4, 4), classes=1, each=5)
    options = {"train_data_dir": None, "latent_dataset": folder, "num_validation_images": 8}
    assert train2(tmp_path / "run", **options) == 1
    assert "must be at most the 5 latents of the commonest shape, got 8" in capfd.readouterr().err


def test_images_among_clips_have_no_context(
    train2: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write_latents(tmp_path / "latents", (3, 2, 2), (2, 2), classes=1)
    options = {"train_data_dir": None, "latent_dataset": folder}
    assert train2(tmp_path / "run", **options, num_context_latents=1) == 1
    assert "needs a --latent_dataset of clips with more latent frames, got images" in capfd.readouterr().err
    assert train2(tmp_path / "joint", **options, max_train_steps=6) == 0


# ---------------------------------------------------------------- the cache


def test_a_later_run_encodes_nothing_and_draws_the_same(make_stage: Callable[..., Stage2], tmp_path: Path) -> None:
    first = make_stage(cache_latents=True)
    assert len(LatentDataset(tmp_path / FOLDER)) == 10
    draws = [first.dataset[n] for n in range(20)]
    second = make_stage(cache_latents=True)
    assert second.autoencoder.passes == 2  # what is held out
    for draw, n in zip(draws, range(20), strict=True):
        assert torch.equal(draw["latent"], second.dataset[n]["latent"])
        assert draw["label"] == second.dataset[n]["label"]


def test_a_killed_job_encodes_only_what_is_missing_to_the_same_bits(
    make_stage: Callable[..., Stage2], tmp_path: Path
) -> None:
    whole = make_stage(cache_latents=True)
    expected = {draw["id"]: draw["latent"] for draw in (whole.dataset[n] for n in range(10))}
    shutil.rmtree(tmp_path / FOLDER)

    partial = make_stage(prepare=False, cache_latents=True)
    encode, calls = partial.autoencoder.encode_clean, [0]

    def dies(pixels: Tensor, num_rows: int | None = None) -> Tensor:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return encode(pixels, num_rows)

    partial.autoencoder.encode_clean = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        partial._cache_latents(torch.device("cpu"))
    assert len(LatentDataset(tmp_path / FOLDER)) == 8

    resumed = make_stage(cache_latents=True)
    assert resumed.autoencoder.passes == 2 + 2
    found = {draw["id"]: draw["latent"] for draw in (resumed.dataset[n] for n in range(10))}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("change", ["images", "resolution"])
def test_latents_of_other_images_or_crops_are_not_mixed_in(
    train2: Callable[..., int], classes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], change: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(classes, other)
    options: dict[str, Any] = {"cache_latents": True, "train_data_dir": other, "validation_data_dir": classes}
    assert train2(tmp_path / "run", **options, max_train_steps=1) == 0
    if change == "images":
        Image.new("RGB", (16, 16)).save(other / "dark" / "new.png")
    else:
        options["resolution"] = 24
    assert train2(tmp_path / "run", **options, resume_from_checkpoint="latest") == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: --cache_latents would mix latents") and "Remove" in last


def test_worker_processes_encode_the_same(make_stage: Callable[..., Stage2], tmp_path: Path) -> None:
    alone = make_stage(cache_latents=True)
    draws = [alone.dataset[n]["latent"] for n in range(10)]
    shutil.rmtree(tmp_path / FOLDER)
    helped = make_stage(cache_latents=True, dataloader_num_workers=2)
    assert all(torch.equal(helped.dataset[n]["latent"], draw) for n, draw in enumerate(draws))


def test_the_cache_is_a_latent_data_set_that_other_runs_can_train_on(
    make_stage: Callable[..., Stage2], train2: Callable[..., int], tmp_path: Path
) -> None:
    make_stage(cache_latents=True)
    header = json.loads((tmp_path / FOLDER / "header.json").read_text())
    assert header["class_names"] == ["dark", "light"] and header["preprocessing"]["resolution"] == 16
    options = {"train_data_dir": None, "center_crop": None, "latent_dataset": tmp_path / FOLDER}
    assert train2(tmp_path / "run", **options) == 0


def test_pictures_of_several_aspect_ratios_are_cached_and_trained_ratio_by_ratio(
    make_stage: Callable[..., Stage2], train2: Callable[..., int], logged: Logged, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    for name in ("train", "held_out"):
        (tmp_path / name).mkdir()
        for number, (height, width) in enumerate([(32, 32), (64, 32), (32, 64)] * 3):
            pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    options = {"train_data_dir": tmp_path / "train", "validation_data_dir": tmp_path / "held_out", "resolution": 32}
    options |= {"scaling": "short_side", "aspect_ratio_buckets": True, "cache_latents": True}
    stage = make_stage(**options)
    shapes = {tuple(stage.dataset[n]["latent"].shape) for n in range(len(stage.dataset))}
    assert len(shapes) == 3 and (4, 4, 4) in shapes
    assert train2(tmp_path / "run", **options, max_train_steps=6) == 0
    assert sum("loss" in line for line in logged(tmp_path / "run")) == 6
