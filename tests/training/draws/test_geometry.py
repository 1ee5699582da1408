"""What a crop shows: the scaled-down image as `encode-dataset` sees it, in squares and in several aspect ratios."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ul_tokenizer.media.images import read_image
from ul_tokenizer.media.transforms import Preprocessing
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.training.draws.aspect_ratios import AspectBuckets, bucket_sizes
from ul_tokenizer.training.draws.buckets import BucketedOrder
from ul_tokenizer.training.draws.crops import RandomCropDataset
from ul_tokenizer.training.draws.geometry import Chance, decoded_side, short_side_crop


def waves(width: int, height: int) -> Image.Image:
    """A smooth picture with some grain, as photographs have."""
    y, x = np.mgrid[:height, :width]
    grain = np.random.default_rng(0).normal(0, 4, (height, width))
    channels = [127 + 90 * np.sin(x / (9 + 4 * c)) * np.cos(y / (13 - 2 * c)) + grain for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))


def difference(one: Image.Image, other: Image.Image) -> float:
    """Largest difference in levels."""
    return float(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def crops_of(folder: Path, resolution: int, **options: object) -> RandomCropDataset:
    images = DecodedImages(FolderSource(folder, keep_duplicates=True), 1 << 20)
    return RandomCropDataset(images, resolution, scaling="short_side", **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- short side


@pytest.mark.parametrize("size", [(90, 61), (61, 90), (40, 40), (32, 50), (20, 33), (33, 35)])
def test_whole_centre_crops_are_what_encode_dataset_encodes(tmp_path: Path, size: tuple[int, int]) -> None:
    waves(*size).save(tmp_path / "a.png")
    crop = crops_of(tmp_path, 32, center_crop=True)[0]["pixel_values"]
    assert torch.equal(crop, Preprocessing(32)(tmp_path / "a.png")[0])


def test_a_whole_crop_lies_anywhere_along_the_longer_side() -> None:
    image, whole = waves(80, 40), waves(80, 40).resize((40, 20), Image.Resampling.LANCZOS)
    lefts = set()
    for place in np.linspace(0, 0.999, 200):
        crop = short_side_crop(image, (20, 20), 1.0, Chance(0.0, place, 0.3, 1.0))
        lefts |= {left for left in range(21) if difference(crop, whole.crop((left, 0, left + 20, 20))) == 0}
    assert lefts == set(range(21))


@pytest.mark.parametrize(
    "chance", [Chance(1.0, 0.0, 0.0, 1.0), Chance(1.0, 0.999, 0.999, 1.0), Chance(0.5, 0.4, 0.7, 1)]
)
def test_a_part_is_cut_out_of_the_scaled_image(chance: Chance) -> None:
    image, side, lowest = waves(190, 130), 32, 0.5
    fraction = lowest**chance.scale
    scaled = image.resize((round(190 * side / 130 / fraction), round(side / fraction)), Image.Resampling.LANCZOS)
    left, top = (
        max(0, int(np.ceil(at * (free - side + 1))) - 1)
        for at, free in zip((chance.x, chance.y), scaled.size, strict=True)
    )
    expected = scaled.crop((left, top, left + side, top + side))
    assert difference(short_side_crop(image, (side, side), lowest, chance), expected) <= 1


def test_fractions_are_log_uniform_between_the_lowest_and_the_whole_side() -> None:
    ramp = Image.fromarray(np.arange(240, dtype=np.uint8)[None, :, None].repeat(240, 0).repeat(3, 2))
    random = np.random.default_rng(0)
    crops = [np.asarray(short_side_crop(ramp, (24, 24), 0.25, Chance.of(random, False))) for _ in range(300)]
    # A crop of 24 pixels that covers s of the ramp of 240 levels rises by 10 s levels per pixel.
    fractions = np.array([(int(crop[12, 16, 0]) - int(crop[12, 8, 0])) / 80 for crop in crops])
    assert 0.22 < fractions.min() < 0.3 and 0.93 < fractions.max() < 1.03
    assert np.log2(fractions).mean() == pytest.approx(-1, abs=0.1)


# ---------------------------------------------------------------- JPEG


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    return file.getvalue()


def test_a_large_jpeg_is_decoded_reduced_and_shows_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(waves(400, 300)))
    images = DecodedImages(FolderSource(tmp_path))
    chance = Chance(0.3, 0.6, 0.2, 1.0)
    reduced = images.read(0, decoded_side((64, 64), 0.8, chance))
    assert reduced.size == (100, 75) and images.read(0).size == (400, 300)
    for lowest in (0.8, 1.0):
        part, whole = (short_side_crop(image, (64, 64), lowest, chance) for image in (reduced, images.read(0)))
        error = np.abs(np.asarray(part, float) - np.asarray(whole, float)).mean()
        assert error < 3


def test_no_jpeg_is_reduced_below_what_the_crop_needs() -> None:
    random = np.random.default_rng(0)
    content = jpeg(waves(300, 260))
    for _ in range(100):
        chance = Chance.of(random, False)
        image = read_image(content, shorter_side=decoded_side((64, 64), 0.25, chance))
        assert min(image.size) >= round(64 / 0.25**chance.scale) or image.size == (300, 260)


def test_the_cache_changes_no_crop(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(waves(300, 260)))
    waves(120, 100).save(tmp_path / "b.png")
    source = FolderSource(tmp_path)
    with_cache, without = (
        RandomCropDataset(DecodedImages(source, size), 32, scale=(0.2, 1.0), scaling="short_side")
        for size in (1 << 24, 0)
    )
    for n in (*range(40), *range(40)):
        assert torch.equal(with_cache[n]["pixel_values"], without[n]["pixel_values"])
    assert len(with_cache.source._cache) >= 3  # type: ignore[attr-defined]  # the JPEG at several sizes


# ---------------------------------------------------------------- aspect ratios


@pytest.mark.parametrize(("resolution", "multiple"), [(512, 16), (512, 64), (256, 32), (32, 16)])
def test_sizes_have_about_the_same_area_and_sides_that_are_multiples(resolution: int, multiple: int) -> None:
    sizes = bucket_sizes(resolution, multiple)
    assert (resolution, resolution) in sizes
    ratios = [width / height for width, height in sizes]
    assert ratios == sorted(set(ratios)) and 0.5 <= ratios[0] <= ratios[-1] <= 2
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % multiple == height % multiple == 0
        assert width * height / resolution**2 == pytest.approx(1, abs=1.5 * multiple / resolution)


def test_an_image_gets_the_nearest_aspect_ratio() -> None:
    images = np.array([[300, 200], [200, 300], [100, 100], [1000, 10], [0, 0], [190, 200]], np.int32)
    buckets = AspectBuckets.of(images, 256, 32)
    assert [buckets.size_of(n) for n in range(6)] == [
        (320, 192), (192, 320), (256, 256), (352, 192), (256, 256), (256, 256),
    ]  # fmt: skip


def test_a_resolution_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a multiple of 32, got 250"):
        bucket_sizes(250, 32)


def test_all_crops_of_a_step_have_one_size_even_if_images_are_unreadable(tmp_path: Path) -> None:
    sizes = [(96, 64)] * 5 + [(64, 96)] * 5 + [(64, 64)] * 3
    for n, size in enumerate(sizes):
        waves(*size).save(tmp_path / f"{n:02}.png")
    (tmp_path / "03.png").write_bytes(b"")
    buckets = AspectBuckets.of(np.array(sizes, np.int32), 64, 16)
    dataset = crops_of(
        tmp_path, 64, scale=(0.5, 1.0), buckets=buckets, order=BucketedOrder(buckets.of_image, 4, seed=0)
    )
    shapes = [tuple(dataset[n]["pixel_values"].shape) for n in range(len(dataset))]
    assert set(shapes) == {(3, 48, 80), (3, 80, 48), (3, 64, 64)}
    assert all(len(set(shapes[first : first + 4])) == 1 for first in range(0, len(shapes), 4))
    assert any(dataset[n]["skipped"] for n in range(len(dataset)))


def test_buckets_and_scales_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    waves(8, 8).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"scale must go up to 1 with the scaling short_side, got \(0.2, 0.5\)"):
        crops_of(tmp_path, 8, scale=(0.2, 0.5))
    buckets = AspectBuckets.of(np.array([[8, 8]], np.int32), 8, 8)
    with pytest.raises(ValueError, match="buckets need the scaling short_side"):
        RandomCropDataset(DecodedImages(FolderSource(tmp_path)), 8, buckets=buckets)
