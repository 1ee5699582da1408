"""Images to pixels of the size that is encoded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ul_tokenizer.media.images import UnreadableImageError, image_size, read_image, reduction_of
from ul_tokenizer.media.transforms import Preprocessing


def encoded(width: int, height: int, kind: str = "PNG", **options: Any) -> bytes:
    """A picture whose left half is dark and whose right half is light."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 200
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 64), (100, 333), (16, 16), (9, 7)])
def test_a_centre_crop_is_a_square_of_the_resolution(width: int, height: int) -> None:
    pixels, size = Preprocessing(16, "center", 8)(encoded(width, height))
    assert pixels.shape == (3, 16, 16) and str(pixels.dtype) == "torch.uint8"
    assert size == (height, width)
    assert pixels[0, 8, 2] < 60 < 140 < pixels[0, 8, 13]


def test_the_aspect_is_kept_up_to_a_multiple() -> None:
    pixels, _ = Preprocessing(32, "multiple", 8)(encoded(100, 64))
    assert pixels.shape == (3, 32, 48)  # 50 wide after scaling
    pixels, _ = Preprocessing(None, "multiple", 8)(encoded(30, 21))
    assert pixels.shape == (3, 16, 24)


def test_an_odd_size_without_a_crop_rule_is_refused() -> None:
    rule = Preprocessing(None, "none", 8)
    assert rule(encoded(24, 16))[0].shape == (3, 16, 24)
    with pytest.raises(ValueError, match="image must have sides that are multiples of 8, got 30×16"):
        rule(encoded(30, 16))


def test_a_large_jpeg_is_decoded_small_with_nearly_the_same_result() -> None:
    content = encoded(1600, 1200, "JPEG", quality=95)
    reduced = read_image(content, shorter_side=64)
    assert reduced.size == (200, 150)
    pixels, size = Preprocessing(64, "center", 8)(content)
    assert size == (1200, 1600)
    whole = read_image(content).resize((85, 64), Image.Resampling.LANCZOS)
    exact = np.asarray(whole.crop((10, 0, 74, 64)), dtype=float).transpose(2, 0, 1)
    assert np.abs(pixels.numpy() - exact).mean() < 3


def test_it_is_known_in_advance_how_small_a_jpeg_is_decoded() -> None:
    for size in ((101, 80), (80, 203), (640, 480)):
        content = encoded(*size, "JPEG")
        for side in (1, 4, 9, 10, 20, 40, 60, 500, None):
            factor = reduction_of(size, side)
            reduced = read_image(content, shorter_side=side)
            assert reduced.size == tuple(-(-length // factor) for length in size)
            assert reduced.info["whole_size"] == size


def test_a_header_gives_the_size_that_reading_gives() -> None:
    turned = Image.Exif()
    turned[0x0112] = 8
    for content in (
        encoded(30, 20),
        encoded(30, 20, exif=turned),
        encoded(30, 20, "JPEG", exif=turned),
        encoded(30, 20, "WEBP", exif=turned),
        encoded(30, 20, "JPEG"),
    ):
        assert image_size(content) == read_image(content).size
    with pytest.raises(UnreadableImageError, match="more than the 599 pixels"):
        image_size(encoded(30, 20), max_pixels=599)


def test_a_small_jpeg_and_other_formats_are_decoded_whole() -> None:
    assert read_image(encoded(100, 80, "JPEG"), shorter_side=64).size == (100, 80)
    assert read_image(encoded(1600, 1200), shorter_side=64).size == (1600, 1200)


def test_a_rotated_jpegs_own_size_is_the_upright_one() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    pixels, size = Preprocessing(64, "center", 8)(encoded(1600, 1200, "JPEG", exif=exif))
    assert size == (1600, 1200)
    assert pixels[0, 2, 32] < 60 < 140 < pixels[0, 61, 32]  # left is up


def test_what_can_not_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="the file is empty"):
        Preprocessing(16)(b"")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((20, "center", 8), "resolution must be a positive multiple of 8, got 20"),
        ((0, "center", 8), "resolution must be a positive multiple of 8, got 0"),
        ((None, "center", 8), "resolution must be given for the crop 'center', got None"),
        ((16, "left", 8), "crop must be one of center, multiple, none, got 'left'"),
    ],
)
def test_senseless_rules_are_refused(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Preprocessing(*arguments)
