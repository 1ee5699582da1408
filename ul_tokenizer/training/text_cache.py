"""Hidden states of captions on the disk, so that the text encoder runs once for each caption and not in every epoch.

```
a caption ─ hash ─ place in the index: file, first token, last token ─ (L, D) of a mapped safetensors file
```

Each file is written as a whole, so a run that is killed loses only the captions of one file, and several runs may fill
one folder. Files of another encoder, or of another number of tokens, lie in another folder.
"""

from __future__ import annotations

import hashlib
import itertools
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ul_tokenizer.files import whole_file
from ul_tokenizer.processes import Processes
from ul_tokenizer.progress import progress
from ul_tokenizer.sources.base import caption_in
from ul_tokenizer.training.text import TextEncoder, TextStates, padded

FILE_CAPTIONS = 2048
DTYPE = torch.float16  # hidden states follow a normalisation, so they lie well within its range
Array = np.ndarray[Any, np.dtype[Any]]


def hash_of(caption: str) -> int:
    """64 bits of the sha256 of a caption."""
    return int.from_bytes(hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest()[:8], "little")


class _Places(NamedTuple):
    """Where hidden states lie, sorted by the captions' hashes; arrays, which worker processes share."""

    hashes: Array  # (N,) uint64
    files: Array  # (N,) int32
    starts: Array  # (N,) int64
    stops: Array  # (N,) int64


class TextCache:
    """The hidden states of captions by one encoder.

    Args:
        folder: folder of the caches of all encoders; made if needed.
        encoder: the encoder.

    Raises:
        OSError: the folder can't be written.
        ValueError: a file in it is damaged.
    """

    def __init__(self, folder: Path, encoder: TextEncoder) -> None:
        self.folder = folder / hashlib.sha256(encoder.identity().encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.width = encoder.width
        self.refresh()

    def refresh(self) -> None:
        """Finds the files that this and other processes have written."""
        self._files = sorted(self.folder.glob("*.safetensors"))
        parts = [_places_in(path, number) for number, path in enumerate(self._files)]
        empty = _Places(*(np.empty(0, dtype) for dtype in (np.uint64, np.int32, np.int64, np.int64)))
        joined = _Places(*(np.concatenate(arrays) for arrays in zip(empty, *parts, strict=True)))
        order = np.argsort(joined.hashes, kind="stable")
        self._places = _Places(*(array[order] for array in joined))
        self._open: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The state without mapped files, which can't be sent to other processes."""
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        """Number of stored captions; those that two processes wrote count twice."""
        return len(self._places.hashes)

    # ------------------------------------------------------------------------------------------------------------
    # Reading
    # ------------------------------------------------------------------------------------------------------------

    def __getitem__(self, caption: str | None) -> Tensor:
        """Hidden states (L, D) of a caption; L = 0 without one.

        Raises:
            KeyError: the caption is not stored.
        """
        if not caption:
            return torch.zeros(0, self.width, dtype=DTYPE)
        place = self._find(caption)
        if place is None:
            raise KeyError(f"The caption {caption!r} has no embedding in {self.folder}.")
        file, start, stop = (int(array[place]) for array in self._places[1:])
        if file not in self._open:
            self._open[file] = safe_open(self._files[file], framework="pt").__enter__()  # it stays open
        states: Tensor = self._open[file].get_slice("states")[start:stop]
        return states

    def _find(self, caption: str) -> int | None:
        key = np.uint64(hash_of(caption))
        place = int(np.searchsorted(self._places.hashes, key))
        return place if place < len(self) and self._places.hashes[place] == key else None

    # ------------------------------------------------------------------------------------------------------------
    # Writing
    # ------------------------------------------------------------------------------------------------------------

    def missing(self, captions: Iterable[str | None]) -> list[str]:
        """Those of some captions that are not stored, each once."""
        return list(dict.fromkeys(text for text in captions if text and self._find(text) is None))

    def add(
        self, captions: Sequence[str], encoder: TextEncoder, batch_size: int, on_progress: Callable[[int], None]
    ) -> None:
        """Encodes captions and stores them; they can be read after `refresh`.

        Args:
            captions: see `missing`.
            encoder: the encoder, on its device.
            batch_size: captions that are encoded at once.
            on_progress: called with the number of captions of each batch.

        Raises:
            OSError: the disk is full or can't be written.
            ValueError: hidden states are not finite.
        """
        by_length = sorted(captions, key=len)  # so that batches hold little padding
        for first in range(0, len(by_length), FILE_CAPTIONS):
            texts = by_length[first : first + FILE_CAPTIONS]
            states: list[Tensor] = []
            for start in range(0, len(texts), batch_size):
                batch = encoder(texts[start : start + batch_size])
                states += [row[mask].to("cpu", DTYPE) for row, mask in zip(*batch, strict=True)]
                on_progress(len(batch.states))
            self._write(texts, states)

    def _write(self, texts: Sequence[str], states: Sequence[Tensor]) -> None:
        joined = torch.cat(list(states))
        if not joined.isfinite().all():
            raise ValueError("--cache_text_embeddings needs hidden states that are finite in half precision.")
        tensors = {
            "hashes": torch.from_numpy(np.array([hash_of(text) for text in texts], np.uint64).view(np.int64)),
            "stops": torch.tensor(list(itertools.accumulate(map(len, states)))),
            "states": joined,
        }
        with whole_file(self.folder / f"{uuid.uuid4().hex}.safetensors") as temporary:
            save_file(tensors, temporary)


def _places_in(path: Path, number: int) -> _Places:
    try:
        with safe_open(path, framework="pt") as file:
            hashes, stops = (file.get_tensor(name).numpy() for name in ("hashes", "stops"))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged, remove it: {str(error).strip().splitlines()[0].rstrip('.')}.") from error
    starts = np.concatenate([[0], stops[:-1]])
    return _Places(hashes.view(np.uint64), np.full(len(hashes), number, np.int32), starts, stops)


def fill_cache(folder: Path, encoder: TextEncoder, captions: Iterable[str | None], batch_size: int) -> TextCache:
    """Encodes the captions that are not stored yet; every process must call it, and encodes its share.

    Args:
        folder: folder of the caches of all encoders.
        encoder: the encoder, on its device.
        captions: the captions of all samples, the same ones on every process.
        batch_size: captions that are encoded at once.

    Raises:
        OSError: the disk is full or can't be written.
        ValueError: a file of the cache is damaged, or nodes write to different disks.
    """
    processes = Processes.of()
    with processes.together():
        cache = TextCache(folder, encoder)
        missing = cache.missing(captions)  # before any process writes, so that all find the same
    with processes.apart():
        mine = missing[processes.rank :: processes.world_size]
        with progress("encoding", len(mine), "captions", shown=processes.is_main) as bar:
            cache.add(mine, encoder, batch_size, bar.update)
    with processes.together():
        cache.refresh()
        if cache.missing(missing):
            raise ValueError(f"--cache_text_embeddings needs a folder that all nodes share, got {folder}.")
    return cache


class CachedText:
    """Samples with the hidden states of their captions under "text"; another data set of draws.

    Args:
        draws: the samples.
        cache: has their captions.
    """

    def __init__(self, draws: Any, cache: TextCache) -> None:
        self.draws, self.cache = draws, cache

    def __len__(self) -> int:
        """Number of draws in an epoch."""
        return len(self.draws)

    def __getitem__(self, n: int) -> dict[str, Any]:
        """Draw n, with its text (L, D)."""
        sample = self.draws[n]
        return {**sample, "text": self.cache[caption_in(sample)]}


def collate_text(samples: Sequence[dict[str, Any]]) -> TextStates | None:
    """The padded hidden states of samples of `CachedText`; None of others."""
    return padded([sample["text"] for sample in samples]) if "text" in samples[0] else None
