"""From an image of any size to the pixels that are encoded: scaling, and cropping to the compression ratio."""

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
    """Scales and crops images and clips before they are encoded.

    Args:
        resolution: Length of the shorter side after scaling, in pixels; None doesn't scale.
        crop: "center" cuts a square with sides of `resolution`. "multiple" keeps the aspect ratio and cuts as few
            pixels as needed to make both sides multiples of `multiple`. "none" doesn't crop: other sizes are an error.
        multiple: The autoencoder's compression ratio.

    Raises:
        ValueError: `resolution` is not a multiple of `multiple`, or missing for the crop "center".
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
        """Reads, scales and crops an image or a clip.

        Args:
            source: An image file, its bytes, or the place of a clip.

        Returns:
            Pixels, uint8, (3, H, W) of an image or (3, T, H, W) of a clip; and the (height, width) before scaling.

        Raises:
            UnreadableImageError: The image or clip can't be read.
            ValueError: The crop "none" doesn't allow its size.
        """
        if isinstance(source, ClipPart):
            frames = [Image.fromarray(frame) for frame in source.read()]
            pixels = torch.stack([frame_to_uint8(self._crop(self._scale(frame))) for frame in frames], dim=1)
            return pixels, (frames[0].height, frames[0].width)
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
    """Reads an image, large JPEGs at a reduced size as `read_image` does, and returns it with its full (H, W)."""
    image = read_image(source, shorter_side=shorter_side)
    width, height = image.info.get("whole_size", image.size)
    return image, (height, width)
