"""Reads images of every kind that Pillow knows, from folders and from Hub datasets, as 8-bit RGB.

An image that can't be read is an `UnreadableImageError` that says which one and why; whoever walks over many of them
catches it, counts it and goes on.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

# Stubs that identify a file and can't decode it, and EPS, which would run Ghostscript on it.
_REFUSED_FORMATS = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
IMAGE_SUFFIXES = frozenset(
    suffix
    for suffix, name in Image.registered_extensions().items()
    if (name in Image.OPEN and name not in _REFUSED_FORMATS) or name == "MPO"  # which JPEG's plugin opens
)
"""Suffixes, in lower case and with their dot, of the files that are taken for images."""
_FORMATS = sorted(set(Image.OPEN) - _REFUSED_FORMATS)  # after registered_extensions(), which loads the plugins
MAX_PIXELS = 89_000_000  # just under the size from which Pillow itself warns of decompression bombs


class UnreadableImageError(ValueError):
    """An image that can't be read: `path` says which, `reason` why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"Image {path} can't be read: {reason}.")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImageError], tuple[str, str]]:
        """Lets it travel out of a data loader's worker process."""
        return type(self), (self.path, self.reason)


# ---------------------------------------------------------------- finding


class Skipped(NamedTuple):
    """A file that is passed over, and why."""

    path: Path
    reason: str


class FoundImages(NamedTuple):
    """What a folder holds: files with an image's suffix, and the others."""

    images: list[Path]
    skipped: list[Skipped]


def find_images(root: str | Path) -> FoundImages:
    """Lists all images below a folder, sorted; hidden files and folders are not looked at.

    Args:
        root: a folder, whose links to other folders are followed, or a single image.

    Raises:
        ValueError: if `root` doesn't exist.
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

    EXIF rotation is applied, transparency composited on white, 16-bit grey scaled to 8 bits, and palettes, grey and
    CMYK converted. The size is checked in the header, before anything is decoded.

    Args:
        source: a path, the bytes of a file, or a file opened for reading, which stays open.
        max_pixels: larger images are refused; Pillow has its own limit too, twice `PIL.Image.MAX_IMAGE_PIXELS`.
        shorter_side: JPEGs that are twice as large or more are decoded at an eighth, a quarter or half of their size,
            where both sides stay at least twice this long; `info["whole_size"]` is then their own (width, height).

    Raises:
        UnreadableImageError: if it is missing, empty, truncated, animated, too large, of no known format, or has pixels
            without a known range (floats).
    """
    name = _name_of(source)
    try:
        if isinstance(source, (str, Path)):
            with open(source, "rb") as file:
                return _decode(file, max_pixels, shorter_side)
        return _decode(io.BytesIO(source) if isinstance(source, bytes) else source, max_pixels, shorter_side)
    except _RefusalError as refusal:
        raise UnreadableImageError(name, str(refusal)) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise UnreadableImageError(name, _reason(error)) from error


class _RefusalError(Exception):
    """Our own reasons, apart from Pillow's."""


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


def _decode(file: IO[bytes], max_pixels: int, shorter_side: int | None) -> Image.Image:
    if not file.seekable():
        file = io.BytesIO(file.read())
    start = file.tell()
    if not file.read(1):
        raise _RefusalError("the file is empty")
    file.seek(start)
    # Closing the image would close the caller's file; that is left to whoever opened it.
    image = Image.open(file, formats=_FORMATS)
    _check_header(image, max_pixels)
    whole_size = image.size
    if shorter_side is not None:
        image.draft(None, (2 * shorter_side, 2 * shorter_side))  # twice, so that scaling has something to average
    image.load()
    is_reduced = image.size != whole_size
    rgb = _to_rgb(_upright(image))
    if is_reduced:
        rgb.info["whole_size"] = whole_size if _is_wide(whole_size) == _is_wide(rgb.size) else whole_size[::-1]
    return rgb


def _is_wide(size: tuple[int, int]) -> bool:
    return size[0] > size[1]


def _check_header(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise _RefusalError(f"{image.width}×{image.height} is more than the {max_pixels:,} pixels that are allowed")
    # The further pictures of these two are previews and layers; the first one is the photograph.
    if image.format not in ("MPO", "PSD") and getattr(image, "is_animated", False):
        raise _RefusalError(f"it is animated or has several pages ({getattr(image, 'n_frames', 'many')} frames)")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data; the pixels were decoded before and are good
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise _RefusalError("its pixels are floats, which have no known range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise _RefusalError("its pixels are 32-bit integers, which have no known range")
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    grey[values == image.info.get("transparency", -1)] = 255  # on white, as everywhere
    return Image.fromarray(grey)


# ---------------------------------------------------------------- tensors


def to_tensor(image: Image.Image) -> Tensor:
    """8-bit image → (3, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB") if image.mode != "RGB" else image))
    return pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_image(tensor: Tensor) -> Image.Image:
    """(3, H, W) float in [-1, 1] → 8-bit image; rounds, and clamps what lies outside. The inverse of `to_tensor`.

    Raises:
        ValueError: if the shape is another one.
    """
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(f"tensor must have the shape (3, H, W), got {tuple(tensor.shape)}.")
    pixels = tensor.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def fit_to_multiple(image: Image.Image, multiple: int, mode: Literal["error", "pad", "crop"]) -> Image.Image:
    """Makes height and width multiples of `multiple`.

    Args:
        image: RGB.
        multiple: the autoencoder's compression ratio.
        mode: what to do with other sizes: refuse, repeat the last row and column, or crop around the centre.

    Raises:
        ValueError: in mode `error`, if a side is no multiple; in mode `crop`, if a side is shorter than `multiple`.
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


# ---------------------------------------------------------------- sources


class ImageSource(Protocol):
    """A numbered collection of images, each with a name to report it by."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def name(self, index: int) -> str:
        """What to call an image in messages."""
        ...

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB, not to be changed; raises `UnreadableImageError`."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the labels stand for; empty where images have none."""
        ...

    def label(self, index: int) -> int | None:
        """The image's class, below `len(class_names)`; None where images have none."""
        ...


class ImageFolder:
    """All images below a folder; where each lies in a subfolder, the subfolders' names are classes, in sorted order.

    Args:
        root: the folder, or a single image.
        cache_bytes: how much memory decoded images may take; each worker process has its own cache.
        max_pixels: as in `read_image`.

    Attributes:
        skipped: the files that have no image's suffix.
        class_names: of the subfolders; empty where images lie in the folder itself.

    Raises:
        ValueError: if there is no image.
    """

    def __init__(self, root: str | Path, *, cache_bytes: int = 0, max_pixels: int = MAX_PIXELS) -> None:
        self.root, self.cache_bytes, self.max_pixels = Path(root), cache_bytes, max_pixels
        paths, self.skipped = find_images(root)
        if not paths:
            raise ValueError(f"root must hold at least one image, got {root} with {len(self.skipped)} other files.")
        self._is_file = paths == [self.root]
        # Strings, since millions of `Path`s would be gigabytes.
        self._names = [p.name if self._is_file else p.relative_to(self.root).as_posix() for p in paths]
        folders = {name.partition("/")[0] if "/" in name else "" for name in self._names}
        self.class_names = () if "" in folders else tuple(sorted(folders))
        self._cache: dict[int, Image.Image] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        """Number of images, readable or not."""
        return len(self._names)

    def name(self, index: int) -> str:
        """Path relative to the folder."""
        return self._names[index]

    def path(self, index: int) -> Path:
        """The file."""
        return self.root if self._is_file else self.root / self._names[index]

    def label(self, index: int) -> int | None:
        """The class of its subfolder, if subfolders are classes."""
        if not self.class_names:
            return None
        return self.class_names.index(self._names[index].partition("/")[0])

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB, not to be changed; raises `UnreadableImageError`."""
        if index in self._cache:
            return self._cache[index]
        image = read_image(self.path(index), max_pixels=self.max_pixels)
        size = 4 * image.width * image.height  # Pillow stores RGB in four bytes
        if self._cached_bytes + size <= self.cache_bytes:
            self._cache[index] = image
            self._cached_bytes += size
        return image


class HubImages:
    """The images of a dataset of the Hugging Face Hub (or of a local one that `datasets` can load).

    Args:
        name: as in `datasets.load_dataset`.
        config: the dataset's configuration.
        split: which part of it.
        image_column: the column with the images.
        label_column: the column with their classes, a `ClassLabel` of `datasets`.
        revision: branch, tag or commit.
        max_pixels: as in `read_image`.

    Raises:
        ImportError: if the extra `data` is not installed.
        ValueError: if the dataset has no such column.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        *,
        split: str = "train",
        image_column: str = "image",
        label_column: str | None = None,
        revision: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        try:
            import datasets
        except ImportError as error:
            raise ImportError("Datasets of the Hub need an extra: pip install ul_tokenizer[data].") from error
        rows = datasets.load_dataset(name, config, split=split, revision=revision)
        if image_column not in rows.column_names:
            raise ValueError(f"image_column must be one of {rows.column_names}, got {image_column!r}.")
        self.class_names, self._labels = _classes(rows, label_column)
        # Undecoded, so that a damaged image is one that we name and not an exception inside `datasets`.
        self._rows: Any = rows.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
        self._name, self._column, self.max_pixels = f"{name}/{split}", image_column, max_pixels

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def name(self, index: int) -> str:
        """Dataset, split and number of the row."""
        return f"{self._name}[{index}]"

    def label(self, index: int) -> int | None:
        """The class in the label column, if one was named."""
        return self._labels[index] if self.class_names else None

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB; raises `UnreadableImageError`."""
        cell = self._rows[index][self._column]
        if not cell or not (cell["bytes"] or cell["path"]):
            raise UnreadableImageError(self.name(index), "the row holds no image")
        try:
            return read_image(cell["bytes"] or cell["path"], max_pixels=self.max_pixels)
        except UnreadableImageError as error:
            raise UnreadableImageError(self.name(index), error.reason) from error


def _classes(rows: Any, label_column: str | None) -> tuple[tuple[str, ...], list[int]]:
    """Names and labels of a hub data set's classes; both empty if no column is named."""
    if label_column is None:
        return (), []
    if label_column not in rows.column_names:
        raise ValueError(f"label_column must be one of {rows.column_names}, got {label_column!r}.")
    names = getattr(rows.features[label_column], "names", None)
    if names is None:
        raise ValueError(
            f"label_column must hold class labels, got {label_column!r} with {rows.features[label_column]}."
        )
    labels = list(rows[label_column])
    stray = [label for label in labels if label is None or not 0 <= label < len(names)]
    if stray:
        raise ValueError(f"label_column must hold labels from 0 to {len(names) - 1}, got {stray[0]}.")
    return tuple(names), labels


class SubsetOfImages:
    """Some images of another source, e.g. a held-out split.

    Args:
        source: the other source.
        indices: which of its images, in the order wanted.
    """

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self.source, self.indices = source, list(indices)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def name(self, index: int) -> str:
        """As the source calls it."""
        return self.source.name(self.indices[index])

    def read(self, index: int) -> Image.Image:
        """As the source reads it."""
        return self.source.read(self.indices[index])

    @property
    def class_names(self) -> tuple[str, ...]:
        """As the source has them."""
        return self.source.class_names

    def label(self, index: int) -> int | None:
        """As the source says."""
        return self.source.label(self.indices[index])
