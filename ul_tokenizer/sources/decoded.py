"""The decoded images of a source, as training and evaluation read them."""

from __future__ import annotations

from PIL import Image

from ul_tokenizer.media.clips import ClipPart
from ul_tokenizer.media.images import MAX_PIXELS, UnreadableImageError, read_image, reduction_of
from ul_tokenizer.sources.base import CAPTION, Source, caption_in, label_in, label_of

_PROBES = 64  # samples among which a caption is sought


class DecodedImages:
    """The images of any source, decoded and kept in memory as far as they fit.

    Args:
        source: Where the encoded images come from.
        cache_bytes: How many bytes decoded images may take in memory; every process has a cache of its own.
        max_pixels: Images with more pixels are refused, as by `read_image`.
        caption_column: The samples' column with the captions.
    """

    def __init__(
        self,
        source: Source,
        cache_bytes: int = 0,
        *,
        max_pixels: int = MAX_PIXELS,
        caption_column: str = CAPTION,
    ) -> None:
        self.source, self.cache_bytes, self.max_pixels = source, cache_bytes, max_pixels
        self.caption_column = caption_column
        self._cache: dict[tuple[int, int], Image.Image] = {}  # by index, and factor by which a JPEG was reduced
        self._cached_bytes = 0
        self._jpeg_sizes: dict[int, tuple[int, int]] = {}  # of those in the cache

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of the source; empty if it has none."""
        return self.source.class_names

    def __len__(self) -> int:
        """Number of images, including those that turn out to be unreadable."""
        return len(self.source)

    def id(self, index: int) -> str:
        """The sample's id in the source."""
        return self.source.id(index)

    def label(self, index: int) -> int | None:
        """The image's class, or None if it has none; errors as those of `label_of`."""
        return label_of(self.source, index)

    def label_and_caption(self, index: int) -> tuple[int | None, str | None]:
        """The image's class and its caption, each None if it has none; errors as those of `label_of`."""
        columns = self.source.columns(index)
        return label_in(columns, self.source, index), caption_in(columns, self.caption_column)

    @property
    def has_captions(self) -> bool:
        """Whether any of some samples, spread over the whole source, has a caption."""
        step = max(1, len(self) // _PROBES)
        return any(self.label_and_caption(index)[1] is not None for index in range(0, len(self), step))

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        """The image as 8-bit RGB. It may be shared with the cache, so it must not be changed.

        Args:
            index: Number of the image.
            shorter_side: Reads large JPEGs at a reduced size, as `read_image` does.

        Raises:
            UnreadableImageError: The image can't be read; the message has the sample's id.
        """
        cached = self._cache.get((index, self._reduction(index, shorter_side)))
        if cached is not None:
            return cached
        image = self._decode(index, shorter_side)
        size = 4 * image.width * image.height  # Pillow stores RGB in four bytes
        if self._cached_bytes + size <= self.cache_bytes:
            if "whole_size" in image.info:
                self._jpeg_sizes[index] = image.info["whole_size"]
            self._cache[index, self._reduction(index, shorter_side)] = image
            self._cached_bytes += size
        return image

    def _reduction(self, index: int, shorter_side: int | None) -> int:
        """By which factor the image is reduced; 1 as well for those that were never cached."""
        size = self._jpeg_sizes.get(index)
        return 1 if size is None else reduction_of(size, shorter_side)

    def _decode(self, index: int, shorter_side: int | None) -> Image.Image:
        try:
            encoded = self.source.open(index)
            if isinstance(encoded, ClipPart):
                raise UnreadableImageError(self.id(index), "it is a clip of a video")
            return read_image(encoded, max_pixels=self.max_pixels, shorter_side=shorter_side)
        except UnreadableImageError as error:
            raise UnreadableImageError(self.id(index), error.reason) from error
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise UnreadableImageError(self.id(index), reason) from error
