"""Many short strings in one block of memory."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import numpy as np


class CompactNames:
    """A read-only list of strings, stored as one block of bytes and an array of offsets.

    Ten million file names take a few hundred megabytes, where a list of `str` takes over a gigabyte. Forked worker
    processes share the block, since no reference count is touched when a name is read.

    Args:
        names: The strings.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._offsets = np.fromiter(accumulate(map(len, encoded), initial=0), np.int64, len(encoded) + 1)
        self._content = b"".join(encoded)

    def __len__(self) -> int:
        """Number of strings."""
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        """String number `index`, which must not be negative."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be from 0 to {len(self) - 1}, got {index}.")
        return self._content[self._offsets[index] : self._offsets[index + 1]].decode("utf-8", "surrogateescape")
