"""The decoded images of a source, as training and evaluation read them."""

from __future__ import annotations

from PIL import Image

from ul_tokenizer.media.clips import ClipPart
from ul_tokenizer.media.images import MAX_PIXELS, UnreadableImageError, read_image
from ul_tokenizer.sources.base import Source, label_of


class DecodedImages:
    """The images of any source, decoded and kept in memory as far as they fit.

    Args:
        source: Where the encoded images come from.
        cache_bytes: How many bytes decoded images may take in memory; every process has a cache of its own.
        max_pixels: Images with more pixels are refused, as by `read_image`.
    """

    def __init__(self, source: Source, cache_bytes: int = 0, *, max_pixels: int = MAX_PIXELS) -> None:
        self.source, self.cache_bytes, self.max_pixels = source, cache_bytes, max_pixels
        self._cache: dict[int, Image.Image] = {}
        self._cached_bytes = 0

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

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB. It may be shared with the cache, so it must not be changed.

        Raises:
            UnreadableImageError: The image can't be read; the message has the sample's id.
        """
        if index in self._cache:
            return self._cache[index]
        image = self._decode(index)
        size = 4 * image.width * image.height  # Pillow stores RGB in four bytes
        if self._cached_bytes + size <= self.cache_bytes:
            self._cache[index] = image
            self._cached_bytes += size
        return image

    def _decode(self, index: int) -> Image.Image:
        try:
            encoded = self.source.open(index)
            if isinstance(encoded, ClipPart):
                raise UnreadableImageError(self.id(index), "it is a clip of a video")
            return read_image(encoded, max_pixels=self.max_pixels)
        except UnreadableImageError as error:
            raise UnreadableImageError(self.id(index), error.reason) from error
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise UnreadableImageError(self.id(index), reason) from error
