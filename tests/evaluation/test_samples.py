"""Which pixels are measured."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ul_tokenizer.evaluation.job import open_evaluation_samples
from ul_tokenizer.evaluation.samples import Crops, EvaluationSamples
from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.media.pixels import frame_to_uint8
from ul_tokenizer.sources.folder import FolderSource


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six noisy images of 24×16 and one that is smaller."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(random.integers(0, 256, (16, 24, 3), np.uint8)).save(folder / f"{number}.png")
    Image.fromarray(random.integers(0, 256, (6, 24, 3), np.uint8)).save(folder / "tiny.png")
    return folder


def samples_of(folder: Path, **crops: object) -> EvaluationSamples:
    return EvaluationSamples(FolderSource(folder), Crops(**crops), "photos")  # type: ignore[arg-type]


def test_whole_images_are_the_files_pixels(photos: Path) -> None:
    samples = samples_of(photos)
    assert len(samples) == samples.num_images == 7
    expected = frame_to_uint8(Image.open(photos / "2.png"))
    assert samples.read(2).id == "2.png"
    assert torch.equal(samples.read(2).pixels, expected)


def test_a_crop_from_the_centre_is_that_of_pillow(photos: Path) -> None:
    sample = samples_of(photos, crop="center", crop_size=8).read(0)
    expected = Image.open(photos / "0.png").crop((8, 4, 16, 12))
    assert torch.equal(sample.pixels, frame_to_uint8(expected))


def test_the_shorter_side_is_scaled_with_lanczos(photos: Path) -> None:
    sample = samples_of(photos, resolution=8).read(0)
    expected = Image.open(photos / "0.png").resize((12, 8), Image.Resampling.LANCZOS)
    assert torch.equal(sample.pixels, frame_to_uint8(expected))


def test_random_crops_are_functions_of_seed_image_and_number(photos: Path) -> None:
    many, more = (samples_of(photos, crop="random", crop_size=8, num_samples=n) for n in (21, 28))
    assert many.num_images == 7
    assert many.groups.tolist() == [image for image in range(7) for _ in range(3)]
    assert [many.id(k) for k in (0, 1, 2, 3)] == ["0.png", "0.png#1", "0.png#2", "1.png"]
    crops = {
        id_: samples.read(k).pixels for samples in (more, many) for k, id_ in enumerate(map(samples.id, range(18)))
    }
    for k in range(18):
        assert torch.equal(many.read(k).pixels, crops[many.id(k)])
    assert not torch.equal(crops["0.png"], crops["0.png#1"])
    other = samples_of(photos, crop="random", crop_size=8, num_samples=21, seed=1)
    assert not torch.equal(other.read(0).pixels, many.read(0).pixels)


def test_fewer_samples_are_drawn_by_the_seed_and_read_in_order(photos: Path) -> None:
    chosen = [samples_of(photos, num_samples=3, seed=seed).groups.tolist() for seed in range(8)]
    assert all(groups == sorted(set(groups)) and len(groups) == 3 for groups in chosen)
    assert len(set(map(tuple, chosen))) > 1
    assert samples_of(photos, num_samples=3, seed=4).groups.tolist() == chosen[4]


def test_an_image_that_is_smaller_than_the_crop_is_named(photos: Path) -> None:
    samples = samples_of(photos, crop="center", crop_size=8)
    with pytest.raises(UnreadableImageError, match=r"tiny.png can't be read: 24×6 is smaller than the crop of 8"):
        samples.read(6)


def test_the_listing_knows_names_sizes_and_order_of_what_is_measured(photos: Path, tmp_path: Path) -> None:
    for path in photos.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    hashes = [samples_of(folder).listing_sha256 for folder in (photos, tmp_path)]
    assert hashes[0] == hashes[1] != samples_of(photos, num_samples=3).listing_sha256
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes() + b"more")
    assert samples_of(tmp_path).listing_sha256 != hashes[0]


@pytest.mark.parametrize(
    ("crops", "sentence"),
    [
        ({"crop": "corner"}, "crop must be one of center, random, none, got 'corner'"),
        ({"crop": "center"}, "resolution or crop_size must be given for the crop 'center', got neither"),
        ({"crop_size": 8}, "crop_size needs the crop center or random, got 8 with none"),
        ({"crop": "random", "resolution": 8, "crop_size": 16}, "crop_size must be at most the resolution 8, got 16"),
        ({"resolution": 0}, "resolution must be at least 1, got 0"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_crops_that_make_no_sense_are_refused(crops: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Crops(**crops)  # type: ignore[arg-type]


def test_more_samples_than_images_need_random_crops(photos: Path) -> None:
    with pytest.raises(ValueError, match="num_samples must be at most the 7 images unless crops are random, got 8"):
        samples_of(photos, num_samples=8)


def test_an_archive_that_was_replaced_is_other_data_under_the_same_ids(photos: Path, tmp_path: Path) -> None:
    hashes = []
    for quality in (50, 90):
        with tarfile.open(tmp_path / "samples.tar", "w") as archive:
            for path in sorted(photos.glob("*.png")):
                file = io.BytesIO()
                Image.open(path).save(file, "JPEG", quality=quality)
                info = tarfile.TarInfo(f"{path.stem}.jpg")
                info.size = file.tell()
                file.seek(0)
                archive.addfile(info, file)
        hashes.append(open_evaluation_samples(tmp_path / "samples.tar", Crops(), {}).listing_sha256)
    assert hashes[0] != hashes[1]
