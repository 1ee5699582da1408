"""Classical codecs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.evaluation.codecs import Codec, compress_within, from_mosaic, mosaic
from ul_tokenizer.evaluation.subjects import CodecSubject
from ul_tokenizer.media.images import read_image
from ul_tokenizer.media.pixels import frame_to_uint8

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def crops() -> Tensor:
    """Twelve crops of 64×64, (12, 3, 64, 64) uint8."""
    photo = frame_to_uint8(read_image(ROOT / "examples" / "images" / "moose.jpg"))
    return torch.stack([photo[:, y : y + 64, x : x + 64] for y in (50, 120, 200) for x in (0, 100, 200, 300)])


@pytest.mark.parametrize("text", ["jpeg:30", "webp:40", "avif:35"])
def test_a_codec_is_its_file(text: str, crops: Tensor) -> None:
    codec = Codec.parse(text)
    assert codec is not None and str(codec) == text
    data = codec.compress(crops[0])
    file = Image.open(io.BytesIO(data))
    assert file.format is not None and file.format.lower() == codec.format
    result = CodecSubject(codec).reconstruct(crops[:1], [0])
    assert result.bits.tolist() == [8 * len(data)]
    assert torch.equal(result.pixels[0], frame_to_uint8(file.convert("RGB")))
    assert (result.pixels[0].int() - crops[0].int()).abs().float().mean() < 16


def test_a_higher_quality_costs_more_bits_and_is_more_faithful(crops: Tensor) -> None:
    low, high = (CodecSubject(Codec("jpeg", quality)).reconstruct(crops, range(12)) for quality in (20, 80))
    errors = [(r.pixels.float() - crops.float()).square().mean() for r in (low, high)]
    assert (low.bits < high.bits).all()
    assert errors[0] > errors[1]


def test_a_mosaic_saves_the_headers(crops: Tensor) -> None:
    each, together = (CodecSubject(Codec("jpeg", 50), mosaic).reconstruct(crops, range(12)) for mosaic in (None, 12))
    # Only the interpolation of colours looks across the borders of images.
    assert (each.pixels.int() - together.pixels.int())[..., 2:-2, 2:-2].abs().max() <= 1
    saved = (each.bits.sum() - together.bits.sum()) / 8
    assert saved > 11 * 150  # bytes of eleven headers at least
    assert together.bits.unique().numel() == 1


@pytest.mark.parametrize("count", [1, 2, 7, 12, 16])
def test_a_mosaic_holds_every_image_once(count: int) -> None:
    images = torch.arange(count * 3 * 2 * 4).view(count, 3, 2, 4)
    picture = mosaic(images)
    assert picture.numel() == images.numel()
    assert torch.equal(from_mosaic(picture, 2, 4), images)


def test_twelve_images_make_three_lines_of_four() -> None:
    assert mosaic(torch.zeros(12, 3, 2, 2)).shape == (3, 6, 8)


def test_frames_of_clips_are_files(crops: Tensor) -> None:
    clips = crops.view(3, 4, 3, 64, 64).transpose(1, 2)
    result = CodecSubject(Codec("jpeg", 50)).reconstruct(clips, range(3))
    frames = CodecSubject(Codec("jpeg", 50)).reconstruct(crops, range(12))
    assert torch.equal(result.pixels.transpose(1, 2).flatten(0, 1), frames.pixels)
    assert torch.equal(result.bits, frames.bits.view(3, 4).sum(1))


@pytest.mark.parametrize("text", ["ul-photo-f8", "jpeg", "jpeg:x", "gif:30", "me/jpeg:3/x"])
def test_other_names_are_no_codecs(text: str) -> None:
    assert Codec.parse(text) is None


@pytest.mark.parametrize("text", ["jpeg:101", "webp:-1"])
def test_a_quality_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="quality must be from 0 to 100, got"):
        Codec.parse(text)


@pytest.mark.parametrize("file_format", ["jpeg", "webp"])
def test_the_best_quality_within_a_number_of_bytes_is_found(file_format: str) -> None:
    pixels = torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels = pixels.repeat_interleave(8, -1).repeat_interleave(8, -2)
    sizes = [len(Codec(file_format, quality).compress(pixels)) for quality in range(101)]
    for most in (sizes[10], sizes[60] - 1, sizes[100]):
        codec, data = compress_within(file_format, pixels, most)
        assert len(data) == sizes[codec.quality] <= most
        assert codec.quality == 100 or sizes[codec.quality + 1] > most


def test_quality_0_is_taken_where_no_file_is_small_enough() -> None:
    codec, data = compress_within("jpeg", torch.zeros(3, 16, 16, dtype=torch.uint8), 10)
    assert codec.quality == 0 and len(data) > 10
