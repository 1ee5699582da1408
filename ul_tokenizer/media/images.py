"""Reads images of all formats that Pillow supports as 8-bit RGB, and finds image files below a folder.

An image that can't be read raises an `UnreadableImageError` with the path and the reason. Code that reads many images
catches it, counts it and continues.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Formats that Pillow identifies but can't decode, and EPS, for which it would run Ghostscript.
_REFUSED_FORMATS = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
IMAGE_SUFFIXES = frozenset(
    suffix
    for suffix, name in Image.registered_extensions().items()
    if (name in Image.OPEN and name not in _REFUSED_FORMATS) or name == "MPO"  # opened by the plugin for JPEG
)
"""Suffixes of image files, in lower case and with the dot."""
_FORMATS = sorted(set(Image.OPEN) - _REFUSED_FORMATS)  # after registered_extensions(), which loads the plugins
MAX_PIXELS = 89_000_000  # just below the size at which Pillow warns of decompression bombs
_JPEG_FORMATS = ("JPEG", "MPO")
_ORIENTATION = 0x0112  # EXIF tag; from 5 on, width and height are swapped
Value = TypeVar("Value")


class UnreadableImageError(ValueError):
    """An image can't be read.

    Attributes:
        path: The file, or another name of the image.
        reason: Why it can't be read, without a full stop.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"Image {path} can't be read: {reason}.")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImageError], tuple[str, str]]:
        """Makes the error picklable."""
        return type(self), (self.path, self.reason)


# ---------------------------------------------------------------- finding


class Skipped(NamedTuple):
    """A file that is not an image, or a folder that can't be listed, with the reason."""

    path: Path
    reason: str


class FoundImages(NamedTuple):
    """The files below a folder: those with the suffix of an image, and the others."""

    images: list[Path]
    skipped: list[Skipped]


def find_images(root: str | Path) -> FoundImages:
    """Lists all images below a folder, sorted by path; hidden files and folders are ignored.

    Args:
        root: A folder, or a single image. Symbolic links to other folders are followed.

    Raises:
        ValueError: `root` doesn't exist.
    """
    root = Path(root)
    if not root.exists():
        raise ValueError(f"root must be a folder or an image that exists, got {root}.")
    skipped: list[Skipped] = []
    images: list[Path] = []
    for path in sorted(_files_below(root, skipped)) if root.is_dir() else [root]:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        else:
            skipped.append(Skipped(path, f"{path.suffix or 'no suffix'} is not the suffix of an image"))
    return FoundImages(images, skipped)


def _files_below(root: Path, skipped: list[Skipped]) -> list[Path]:
    def note(error: OSError) -> None:
        skipped.append(Skipped(Path(error.filename), error.strerror or "unreadable folder"))

    files: list[Path] = []
    seen: set[str] = set()  # links can make a loop
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=note):
        if os.path.realpath(folder) in seen:
            subfolders.clear()
            continue
        seen.add(os.path.realpath(folder))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return files


# ---------------------------------------------------------------- reading


def read_image(
    source: str | Path | bytes | IO[bytes], *, max_pixels: int = MAX_PIXELS, shorter_side: int | None = None
) -> Image.Image:
    """Reads one still image as 8-bit RGB.

    EXIF rotation is applied and transparency is composited on white. 16-bit grey is scaled to 8 bits; palettes, grey
    and CMYK are converted. The size is checked in the header, before anything is decoded.

    Args:
        source: A path, the bytes of a file, or a binary file, which stays open.
        max_pixels: Images with more pixels are refused. Pillow refuses twice `PIL.Image.MAX_IMAGE_PIXELS` as well.
        shorter_side: Decodes large JPEGs faster, at half, a quarter or an eighth of their size, as long as both sides
            stay at least twice this long; see `reduction_of`. `info["whole_size"]` of a JPEG is its full (width,
            height).

    Raises:
        UnreadableImageError: The image is missing, empty, truncated, animated, too large, of an unknown format, or
            has pixels without a known range (floats).
    """
    return _read(source, lambda file: _decode(file, max_pixels, shorter_side))


def reduction_of(size: tuple[int, int], shorter_side: int | None) -> int:
    """By which factor, 1, 2, 4 or 8, `read_image` reduces a JPEG of this size."""
    if shorter_side is None:
        return 1
    return next((factor for factor in (8, 4, 2) if min(size) // (2 * shorter_side) >= factor), 1)


def image_size(source: str | Path | bytes | IO[bytes], *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of an image as `read_image` returns it, from its header: no pixel is decoded.

    Arguments and errors are those of `read_image`; damage behind the header is not found.
    """
    return _read(source, lambda file: _size_in_header(file, max_pixels))


def _read(source: str | Path | bytes | IO[bytes], read: Callable[[IO[bytes]], Value]) -> Value:
    """What a function reads from an image's file; whatever goes wrong is an `UnreadableImageError`."""
    name = _name_of(source)
    try:
        if isinstance(source, (str, Path)):
            with open(source, "rb") as file:
                return read(file)
        return read(io.BytesIO(source) if isinstance(source, bytes) else source)
    except _RefusalError as refusal:
        raise UnreadableImageError(name, str(refusal)) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise UnreadableImageError(name, _reason(error)) from error


class _RefusalError(Exception):
    """We refuse an image that Pillow could read."""


def _name_of(source: str | Path | bytes | IO[bytes]) -> str:
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    return str(source) if isinstance(source, (str, Path)) else str(getattr(source, "name", "<file>"))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known format"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "it has more pixels than PIL.Image.MAX_IMAGE_PIXELS allows"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def _opened(file: IO[bytes], max_pixels: int) -> Image.Image:
    """The image behind a header that was checked; its pixels are not decoded yet."""
    if not file.seekable():
        file = io.BytesIO(file.read())
    start = file.tell()
    if not file.read(1):
        raise _RefusalError("the file is empty")
    file.seek(start)
    # The image is not closed, since that would close the caller's file.
    image = Image.open(file, formats=_FORMATS)
    _check_header(image, max_pixels)
    return image


def _size_in_header(file: IO[bytes], max_pixels: int) -> tuple[int, int]:
    image = _opened(file, max_pixels)
    if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode the image in search of EXIF data
        return image.size
    try:
        is_turned = image.getexif().get(_ORIENTATION, 1) >= 5
    except Exception:  # damaged, as in `_upright`
        is_turned = False
    return image.size[::-1] if is_turned else image.size


def _decode(file: IO[bytes], max_pixels: int, shorter_side: int | None) -> Image.Image:
    image = _opened(file, max_pixels)
    whole_size, is_jpeg = image.size, image.format in _JPEG_FORMATS
    if shorter_side is not None:
        image.draft(None, (2 * shorter_side, 2 * shorter_side))  # twice, so that scaling has something to average
    image.load()
    rgb = _to_rgb(_upright(image))
    if is_jpeg:
        rgb.info["whole_size"] = whole_size if _is_wide(whole_size) == _is_wide(rgb.size) else whole_size[::-1]
    return rgb


def _is_wide(size: tuple[int, int]) -> bool:
    return size[0] > size[1]


def _check_header(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise _RefusalError(f"{image.width}×{image.height} is more than the {max_pixels:,} pixels that are allowed")
    # In these two formats the first image is the photograph, and the others are previews or layers.
    if image.format not in ("MPO", "PSD") and getattr(image, "is_animated", False):
        raise _RefusalError(f"it is animated or has several pages ({getattr(image, 'n_frames', 'many')} frames)")


def _upright(image: Image.Image) -> Image.Image:
    with suppress(Exception):  # the EXIF data are damaged, but the pixels have been decoded already
        ImageOps.exif_transpose(image, in_place=True)  # otherwise it copies all images
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise _RefusalError("its pixels are floats, which have no known range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise _RefusalError("its pixels are 32-bit integers, which have no known range")
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255  # transparency is composited on white
    return Image.fromarray(grey)


# ---------------------------------------------------------------- sizes


def fit_to_multiple(image: Image.Image, multiple: int, mode: Literal["error", "pad", "crop"]) -> Image.Image:
    """Makes an image's height and width multiples of `multiple`.

    Args:
        image: An RGB image.
        multiple: The autoencoder's compression ratio.
        mode: "pad" repeats the last row and column, "crop" cuts around the centre, "error" accepts no other sizes.

    Raises:
        ValueError: A side is not a multiple (mode "error"), or is shorter than `multiple` (mode "crop").
    """
    extra = image.width % multiple, image.height % multiple
    if extra == (0, 0):
        return image
    size = f"{image.width}×{image.height} (width×height)"
    if mode == "pad":
        right, below = (-side % multiple for side in image.size)
        return Image.fromarray(np.pad(np.asarray(image), ((0, below), (0, right), (0, 0)), mode="edge"))
    if mode == "crop" and min(image.size) >= multiple:
        left, top = extra[0] // 2, extra[1] // 2
        return image.crop((left, top, left + image.width - extra[0], top + image.height - extra[1]))
    if mode == "crop":
        raise ValueError(f"image must be at least {multiple} pixels wide and high to be cropped, got {size}.")
    raise ValueError(f"image must have sides that are multiples of {multiple}, got {size}; pad or crop it.")
