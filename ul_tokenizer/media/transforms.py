"""Images of any size to the pixels that are encoded: scaling, cropping, and multiples of the compression ratio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.media.clips import ClipPart
from ul_tokenizer.media.images import fit_to_multiple, read_image
from ul_tokenizer.media.pixels import frame_to_uint8

CropRule = Literal["center", "multiple", "none"]
CROPS: tuple[CropRule, ...] = ("center", "multiple", "none")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes pixels.

    Args:
        resolution: length of the shorter side after scaling; None leaves the size as it is.
        crop: "center" cuts a square of that side, "multiple" cuts what the compression ratio doesn't divide, around
            the centre, and keeps the aspect, "none" refuses what the ratio doesn't divide.
        multiple: the compression ratio.

    Raises:
        ValueError: a resolution that the ratio doesn't divide, or a square of no size.
    """

    resolution: int | None = None
    crop: CropRule = "center"
    multiple: int = 8

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}, got {self.crop!r}.")
        if self.resolution is None and self.crop == "center":
            raise ValueError("resolution must be given for the crop 'center', got None.")
        if self.resolution is not None and (self.resolution < 1 or self.resolution % self.multiple):
            raise ValueError(f"resolution must be a positive multiple of {self.multiple}, got {self.resolution}.")

    def __call__(self, source: Path | bytes | ClipPart) -> tuple[Tensor, tuple[int, int]]:
        """An encoded image → pixels (3, H, W) uint8, or a clip → (3, T, H, W), and its own height and width.

        Raises:
            UnreadableImageError: it can't be read.
            ValueError: its size is not allowed by the crop rule.
        """
        if isinstance(source, ClipPart):
            frames = [Image.fromarray(frame) for frame in source.read()]
            pixels = torch.stack([frame_to_uint8(self._crop(self._scale(frame))) for frame in frames], dim=1)
            return pixels, (frames[0].height, frames[0].width)
        # JPEGs are decoded at an eighth, a quarter or half of their size where that still is above the resolution.
        image, size = read_image_and_size(source, self.resolution)
        return frame_to_uint8(self._crop(self._scale(image))), size

    def _scale(self, image: Image.Image) -> Image.Image:
        if self.resolution is None or min(image.size) == self.resolution:
            return image
        scale = self.resolution / min(image.size)
        width, height = (max(self.resolution, round(side * scale)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)

    def _crop(self, image: Image.Image) -> Image.Image:
        if self.crop == "center":
            assert self.resolution is not None  # checked above
            left, top = (image.width - self.resolution) // 2, (image.height - self.resolution) // 2
            return image.crop((left, top, left + self.resolution, top + self.resolution))
        return fit_to_multiple(image, self.multiple, "crop" if self.crop == "multiple" else "error")


def read_image_and_size(source: Path | bytes, shorter_side: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """An image, of a JPEG perhaps a smaller version whose sides are at least `shorter_side`, and its whole (H, W)."""
    image = read_image(source, shorter_side=shorter_side)
    width, height = image.info.get("whole_size", image.size)
    return image, (height, width)
