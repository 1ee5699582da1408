"""Images of every kind are read as the RGB that a viewer shows; bad files are refused with their reason."""

from __future__ import annotations

import io
import pickle
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from ul_tokenizer.media.images import IMAGE_SUFFIXES, UnreadableImageError, find_images, fit_to_multiple, read_image
from ul_tokenizer.media.pixels import frame_to_float, to_image


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    assert image.mode == "RGB"
    return np.asarray(image)


def noise(width: int = 48, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


# ---------------------------------------------------------------- pixel values


@pytest.mark.parametrize(
    ("mode", "value", "rgb"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("I;16", 257 * 100 + 128, (100, 100, 100)),
        ("I;16", 257 * 100 + 129, (101, 101, 101)),
        ("RGBA", (200, 100, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 100, 0, 255), (200, 100, 0)),
        ("RGBA", (0, 100, 255, 51), (204, 224, 255)),
        ("LA", (0, 51), (204, 204, 204)),
    ],
)
def test_a_png_of_each_mode_gives_the_colour_that_a_viewer_shows_on_white(mode: str, value: Any, rgb: Any) -> None:
    image = read_image(encode(Image.new(mode, (3, 2), value)))
    assert (pixels(image) == rgb).all()
    assert image.size == (3, 2)


def test_palette_colours_are_looked_up_and_transparent_entries_become_white() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60])
    image.putdata([0, 1, 2])
    assert pixels(read_image(encode(image))).tolist() == [[[0, 0, 0], [10, 20, 30], [40, 50, 60]]]
    assert pixels(read_image(encode(image, transparency=1))).tolist() == [[[0, 0, 0], [255] * 3, [40, 50, 60]]]


def test_a_transparent_grey_level_of_a_16_bit_png_becomes_white() -> None:
    image = Image.fromarray(np.array([[0, 257 * 9, 257 * 7]], dtype=np.uint16))
    assert pixels(read_image(encode(image, transparency=257 * 9)))[0, :, 0].tolist() == [0, 255, 7]


def test_16_bits_that_pillow_opens_as_32_bit_integers_are_scaled_and_not_clipped() -> None:
    pgm = b"P5 3 1 65535\n" + struct.pack(">3H", 0, 257 * 40, 65535)
    assert Image.open(io.BytesIO(pgm)).mode in ("I", "I;16", "I;16B")
    assert pixels(read_image(pgm))[0, :, 0].tolist() == [0, 40, 255]


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_16_bit_tiff_of_either_byte_order_is_scaled(byte_order: str) -> None:
    image = Image.frombytes("I;16" if byte_order == "<u2" else "I;16B", (2, 1), np.array([0, 257 * 40], byte_order))
    assert pixels(read_image(encode(image, "TIFF")))[0, :, 0].tolist() == [0, 40]


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_converted(format: str) -> None:
    image = read_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), format))
    assert np.abs(pixels(image).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "TGA", "WEBP", "GIF", "JPEG", "JPEG2000", "MPO"])
def test_each_common_format_is_read(format: str) -> None:
    image = Image.new("RGB", (16, 16), (255, 0, 255))
    options = {"lossless": True} if format == "WEBP" else {}
    assert np.abs(pixels(read_image(encode(image, format, **options))).astype(int) - (255, 0, 255)).max() <= 3


TRANSFORMED_BY_CAMERA = {  # what has to be stored, for a viewer that obeys EXIF to show the original
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_each_exif_orientation_is_undone(format: str, orientation: int) -> None:
    upright = pixels(noise(4, 3))
    stored = Image.fromarray(np.ascontiguousarray(TRANSFORMED_BY_CAMERA[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(read_image(encode(stored, format, exif=exif))), upright)


def test_damaged_exif_data_do_not_make_an_image_unreadable() -> None:
    content = encode(noise(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense")
    assert read_image(content).size == (48, 32)


def test_a_photo_with_a_preview_behind_it_is_not_taken_for_an_animation() -> None:
    content = encode(Image.new("RGB", (16, 16), "red"), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert Image.open(io.BytesIO(content)).format == "MPO"
    assert read_image(content).size == (16, 16)


def test_paths_bytes_and_files_give_the_same_and_a_file_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(noise()))
    with path.open("rb") as file:
        read = [read_image(path), read_image(str(path)), read_image(path.read_bytes()), read_image(file)]
        assert not file.closed
    assert all(np.array_equal(pixels(image), pixels(noise())) for image in read)


# ---------------------------------------------------------------- bad files


def reason_of(content: bytes, **options: int) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        read_image(content, **options)
    return caught.value.reason


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_truncated_file_is_refused(format: str) -> None:
    content = encode(noise(200, 150), format)
    assert read_image(content).size == (200, 150)
    assert reason_of(content[: len(content) // 2])


def test_an_empty_file_is_refused_as_empty() -> None:
    assert reason_of(b"") == "the file is empty"


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused_with_their_number(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    assert "3 frames" in reason_of(encode(frames[0], format, save_all=True, append_images=frames[1:]))


def test_a_gif_of_one_frame_is_an_image() -> None:
    assert read_image(encode(Image.new("RGB", (8, 8), "red"), "GIF")).size == (8, 8)


def test_a_header_that_claims_ten_thousand_million_pixels_is_refused_before_decoding() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    assert "pixels" in reason_of(png_claiming(100_000, 100_000))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_the_limit_on_pixels_is_exact_and_named() -> None:
    content = encode(noise(10, 10))
    assert read_image(content, max_pixels=100).size == (10, 10)
    assert "10×10" in (reason := reason_of(content, max_pixels=99)) and "99" in reason


def test_an_image_between_the_limits_is_refused_also_where_warnings_are_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "pixels" in reason_of(png_claiming(10_000, 10_000))


def test_threads_with_different_limits_do_not_disturb_each_other() -> None:
    content, failures = encode(noise(10, 10)), []

    def read_many(limit: int) -> None:
        for _ in range(100):
            try:
                read_image(content, max_pixels=limit)
            except UnreadableImageError:
                if limit >= 100:
                    failures.append(limit)

    threads = [threading.Thread(target=read_many, args=(limit,)) for limit in (10, 1000, 10, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_text_file_named_png_is_refused_by_its_name_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not an image at all")
    with pytest.raises(UnreadableImageError, match="known format") as caught:
        read_image(path)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_postscript_is_never_handed_to_ghostscript() -> None:
    content = encode(Image.new("RGB", (8, 8)), "EPS")
    assert Image.open(io.BytesIO(content)).format == "EPS"
    assert "known format" in reason_of(content)
    assert not {".eps", ".ps"} & IMAGE_SUFFIXES


def test_float_pixels_are_refused() -> None:
    assert "floats" in reason_of(encode(Image.new("F", (4, 4), 0.5), "TIFF"))


def test_32_bit_integers_beyond_16_bits_are_refused() -> None:
    assert "32-bit" in reason_of(encode(Image.new("I", (4, 4), 1 << 20), "TIFF"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="No such file"):
        read_image(tmp_path / "missing.png")


def test_the_error_survives_the_way_out_of_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImageError("a.png", "the file is empty")))
    assert (error.path, error.reason) == ("a.png", "the file is empty")


# ---------------------------------------------------------------- folders


def test_images_are_found_nested_and_sorted_and_other_files_are_named(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/y.webp", "a/deep/x.tiff", "notes.txt", "README", ".hidden.png", ".git/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    images, skipped = find_images(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in images] == [
        "a/deep/x.tiff",
        "a/y.webp",
        "a/z.JPG",
        "b.png",
    ]
    assert [path.name for path, _ in skipped] == ["README", "notes.txt"]
    assert ".txt" in skipped[1].reason


def test_a_link_to_a_folder_is_followed_and_a_loop_of_links_ends(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    other.mkdir()
    (other / "a.png").write_bytes(b"")
    (root / "link").symlink_to(other)
    (other / "back").symlink_to(root)
    assert [path.name for path in find_images(root).images] == ["a.png"]


def test_a_root_that_does_not_exist_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"root.*nowhere"):
        find_images(tmp_path / "nowhere")


# ---------------------------------------------------------------- tensors


def test_8_bit_values_survive_the_way_to_a_tensor_and_back_exactly() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    tensor = frame_to_float(Image.fromarray(values))
    assert tensor.dtype == torch.float32 and tensor.shape == (3, 16, 16)
    assert tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(pixels(to_image(tensor)), values)


def test_a_tensor_has_height_before_width_and_is_contiguous() -> None:
    tensor = frame_to_float(noise(5, 3))
    assert tensor.shape == (3, 3, 5)
    assert tensor.is_contiguous()
    assert tensor[2, 1, 4] == pytest.approx(pixels(noise(5, 3))[1, 4, 2] / 127.5 - 1, abs=1e-6)


def test_to_image_rounds_and_clamps() -> None:
    values = torch.tensor([-7.0, 7.0, 0.6 / 127.5 - 1, 0.4 / 127.5 - 1]).expand(3, 1, 4)
    assert pixels(to_image(values))[0, :, 0].tolist() == [0, 255, 1, 0]


def test_to_image_takes_half_precision() -> None:
    assert pixels(to_image(torch.full((3, 2, 2), -1.0, dtype=torch.bfloat16))).max() == 0


def test_to_image_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match=r"\(3, H, W\).*\(1, 3, 2, 2\)"):
        to_image(torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("mode", ["error", "pad", "crop"])
def test_a_size_that_fits_is_left_alone(mode: Literal["error", "pad", "crop"]) -> None:
    image = noise(16, 8)
    assert fit_to_multiple(image, 8, mode) is image


def test_padding_repeats_the_last_row_and_column() -> None:
    padded = pixels(fit_to_multiple(noise(13, 9), 8, "pad"))
    assert padded.shape == (16, 16, 3)
    assert np.array_equal(padded[:9, :13], pixels(noise(13, 9)))
    assert (padded[:, 13:] == padded[:, 12:13]).all() and (padded[9:] == padded[8:9]).all()


def test_cropping_keeps_the_centre() -> None:
    assert np.array_equal(pixels(fit_to_multiple(noise(13, 10), 8, "crop")), pixels(noise(13, 10))[1:9, 2:10])


def test_a_size_that_does_not_fit_is_one_sentence_with_the_multiple() -> None:
    with pytest.raises(ValueError, match="multiples of 8, got 13×9"):
        fit_to_multiple(noise(13, 9), 8, "error")


def test_an_image_smaller_than_the_multiple_can_not_be_cropped() -> None:
    with pytest.raises(ValueError, match="at least 8 pixels"):
        fit_to_multiple(noise(13, 7), 8, "crop")
