"""Classical codecs of Pillow, as what tokenizers are compared with: real files, with their real bytes."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import PIL
import torch
from PIL import Image, features
from torch import Tensor

from ul_tokenizer.media.pixels import frame_to_uint8

FORMATS = ("jpeg", "webp", "avif")
# Pillow's own settings apart from the quality, but for WebP's slowest and best compression.
_OPTIONS: dict[str, dict[str, Any]] = {"jpeg": {"optimize": True}, "webp": {"method": 6}, "avif": {}}


@dataclass(frozen=True)
class Codec:
    """A codec at one quality, such as `jpeg:30`.

    Args:
        format: "jpeg", "webp" or "avif".
        quality: Pillow's quality, 0 to 100.

    Raises:
        ValueError: another format or quality, or a format that this build of Pillow can't write.
    """

    format: str
    quality: int

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"codec must be one of {', '.join(FORMATS)}, got {self.format!r}.")
        if not 0 <= self.quality <= 100:
            raise ValueError(f"quality must be from 0 to 100, got {self.quality} for {self.format}.")
        if self.format != "jpeg" and not features.check(self.format):
            raise ValueError(f"Pillow {PIL.__version__} was built without {self.format}; install Pillow from PyPI.")

    @classmethod
    def parse(cls, text: str) -> Codec | None:
        """The codec that a text such as "webp:40" names; None if it names none."""
        name, _, quality = text.partition(":")
        if name not in FORMATS or not quality.removeprefix("-").isdecimal():
            return None
        return cls(name, int(quality))

    def __str__(self) -> str:
        return f"{self.format}:{self.quality}"

    def compress(self, pixels: Tensor) -> bytes:
        """(3, H, W) uint8 → the bytes of a file."""
        image, file = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()), io.BytesIO()
        image.save(file, self.format, quality=self.quality, **_OPTIONS[self.format])
        return file.getvalue()

    def decompress(self, data: bytes) -> Tensor:
        """The bytes of a file → (3, H, W) uint8."""
        return frame_to_uint8(Image.open(io.BytesIO(data)).convert("RGB"))

    def facts(self) -> dict[str, Any]:
        """Settings, as a result file states them."""
        return {"format": self.format, "quality": self.quality, **_OPTIONS[self.format], "pillow": PIL.__version__}


def mosaic(pixels: Tensor) -> Tensor:
    """Arranges images in a grid without gaps, as square as their number allows.

    Args:
        pixels: (B, 3, H, W).

    Returns:
        (3, rows · H, columns · W).
    """
    columns = next(n for n in range(math.isqrt(len(pixels) - 1) + 1, len(pixels) + 1) if len(pixels) % n == 0)
    return torch.cat([torch.cat(list(line), -1) for line in pixels.split(columns)], -2)


def from_mosaic(picture: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `mosaic`: (3, rows · H, columns · W) → (B, 3, H, W)."""
    return torch.stack([image for line in picture.split(height, -2) for image in line.split(width, -1)])


def compress_within(file_format: str, pixels: Tensor, most: int) -> tuple[Codec, bytes]:
    """Compresses an image with the highest quality whose file has at most `most` bytes, found by bisection.

    Args:
        file_format: "jpeg", "webp" or "avif".
        pixels: (3, H, W), uint8.
        most: bytes of the file, header included.

    Returns:
        the codec and the file's bytes; quality 0, whose file is larger than `most`, where none is small enough.
    """
    best, high = Codec(file_format, 0), 101
    data = best.compress(pixels)
    while len(data) <= most and high - best.quality > 1:
        codec = Codec(file_format, (best.quality + high) // 2)
        file = codec.compress(pixels)
        if len(file) <= most:
            best, data = codec, file
        else:
            high = codec.quality
    return best, data
