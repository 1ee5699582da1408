"""Every image several times, so that several crops of it have numbers of their own."""

from __future__ import annotations

from PIL import Image

from ul_tokenizer.sources.decoded import DecodedImages


class RepeatedImages(DecodedImages):
    """Images of which each comes `times` times in a row, under the ids "id#0", "id#1" and so on.

    Args:
        images: The images.
        times: How often each comes.
    """

    def __init__(self, images: DecodedImages, times: int) -> None:
        super().__init__(images.source, max_pixels=images.max_pixels, caption_column=images.caption_column)
        self.images, self.times = images, times

    def __len__(self) -> int:
        """Number of images, each counted `times` times."""
        return len(self.images) * self.times

    def id(self, index: int) -> str:
        """The sample's id in the source, and which of its repetitions this is."""
        return f"{self.images.id(index // self.times)}#{index % self.times}"

    def label(self, index: int) -> int | None:
        """As for `DecodedImages`."""
        return self.images.label(index // self.times)

    def label_and_caption(self, index: int) -> tuple[int | None, str | None]:
        """As for `DecodedImages`."""
        return self.images.label_and_caption(index // self.times)

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """As for `DecodedImages`; an error has the id of the image itself."""
        return self.images.read(index // self.times, shorter_side)
