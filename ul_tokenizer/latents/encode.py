"""The engine of the encoding job: samples of a source, through an encoder, into a latent data set.

```
source ─ read and decoded by threads or processes ─ batches of one shape ─ encoder ─ writer, in a thread
```
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ul_tokenizer.latents.packed_values import Array
from ul_tokenizer.latents.summary import EncodingSummary
from ul_tokenizer.latents.transfers import Arriving, Transfers
from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.media.pixels import to_float
from ul_tokenizer.media.transforms import Preprocessing
from ul_tokenizer.sources.base import SkippedSample, Source

FLIPPED = "#flipped"  # the end of a mirrored view's id
QUEUED_BATCHES = 4  # batches that a GPU still computes, or that wait for the writer
_LOOKED_UP = 1 << 14  # ids that are looked up together
# Pixels (B, 3, [T,] H, W) in [−1, 1] → z_clean (B, c, [t,] h, w). If it has a `device`, it gets pixels there.
Encode = Callable[[Tensor], Tensor]


# ---------------------------------------------------------------- one sample, one batch: for any engine, such as Ray


@dataclass(frozen=True)
class Decoded:
    """A sample that was read and decoded."""

    id: str
    pixels: Tensor  # (3, [T,] H, W) uint8
    columns: dict[str, Any]


def decode_sample(source: Source, preprocessing: Preprocessing, index: int) -> Decoded | SkippedSample:
    """Reads sample `index`. A failure is returned as a value, since an exception would end the job."""
    name = source.id(index)
    try:
        pixels, size = preprocessing(source.open(index))
        columns = {"height": size[0], "width": size[1], **source.columns(index)}
    except UnreadableImageError as error:
        return SkippedSample(name, error.reason)
    except (ValueError, OSError) as error:
        return SkippedSample(name, " ".join(str(error).split()).rstrip("."))
    return Decoded(name, pixels, columns)


def views(sample: Decoded, flip: bool) -> list[Decoded]:
    """The views of a sample that are stored: the sample itself, and with `flip` also its mirror image."""
    if not flip:
        return [sample]
    mirrored = Decoded(sample.id + FLIPPED, sample.pixels.flip(-1), {**sample.columns, "flipped": True})
    # The sample itself comes last: if it is stored, its mirror image is stored, too.
    return [mirrored, Decoded(sample.id, sample.pixels, {**sample.columns, "flipped": False})]


def encode_batch(encode: Encode, pixels: Sequence[Tensor], batch_size: int) -> Tensor:
    """Pixels of one shape, (3, [T,] H, W) uint8 each → z_clean (B, c, [t,] h, w) fp32, on the CPU.

    The encoder always gets `batch_size` rows, so that no latent depends on the size of its batch.
    """
    return _encoded(encode, Transfers(_device_of(encode)), pixels, batch_size).get()


def _encoded(encode: Encode, transfers: Transfers, pixels: Sequence[Tensor], batch_size: int) -> Arriving:
    """`encode_batch`, which a GPU does later; floats would be four times the bytes, so it converts the pixels, too."""
    latents = encode(to_float(transfers.batch(pixels, batch_size)))
    return transfers.latents(latents[: len(pixels)])


def _device_of(encode: Encode) -> torch.device:
    device: torch.device = getattr(encode, "device", torch.device("cpu"))
    return device


# ---------------------------------------------------------------- the job


class Ids(Protocol):
    """A set of ids."""

    def contains(self, names: Sequence[str], /) -> list[bool]:
        """Which of several ids are in the set."""
        ...

    def __contains__(self, name: str, /) -> bool: ...


class Writer(Protocol):
    """Stores latents."""

    @property
    def done_ids(self) -> Ids:
        """Ids of the latents that are stored already, by all processes."""
        ...

    def append(self, ids: Sequence[str], latents: Tensor, columns: Sequence[dict[str, Any]], /) -> None:
        """Stores a batch."""
        ...


OnProgress = Callable[[int, int], None]  # (samples dealt with so far, their total)


@dataclass(frozen=True)
class EncodingJob:
    """Encodes those samples of a source that are not stored yet.

    Args:
        source: the samples.
        preprocessing: images → pixels.
        encode: pixels (B, 3, [T,] H, W) in [−1, 1] → z_clean (B, c, [t,] h, w). It gets pixels on the device that its
            attribute `device` names, or on the CPU.
        batch_size: number of rows in a batch.
        num_workers: number of processes that read and decode, beside an encoder on a GPU. With 0, threads of this
            process decode one batch, as many as torch computes with, before it is encoded. That is best if the encoder
            runs on the same cores, because OpenMP's threads wait for the slowest of them.
        flip_views: whether to store the mirror image of each image, too.
        rank: number of this process, below `world_size`; each process takes its own part of the samples.
        world_size: number of processes that share the source.

    Raises:
        ValueError: `batch_size` is not positive.
    """

    source: Source
    preprocessing: Preprocessing
    encode: Encode
    batch_size: int = 32
    num_workers: int = 0
    flip_views: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")

    def run(self, writer: Writer, on_progress: OnProgress | None = None) -> EncodingSummary:
        """Encodes and writes; closing the writer is left to the caller.

        Args:
            writer: stores the latents; samples that it has already are not encoded again.
            on_progress: called with the number of samples dealt with so far, and with their total.

        Returns:
            what this process did.

        Raises:
            OSError: the writer's.
        """
        start = time.perf_counter()
        mine = range(self.rank, len(self.source), self.world_size)
        done = writer.done_ids
        pending = self._pending(mine, done)
        summary = EncodingSummary(found=len(mine) - len(pending))
        if self.rank == 0:
            summary.skipped += self.source.skipped
        count = _Counter(summary.found, len(mine), on_progress)
        transfers = Transfers(_device_of(self.encode))

        def store(ids: Sequence[str], latents: Arriving, columns: Sequence[dict[str, Any]]) -> None:
            writer.append(ids, latents.get(), columns)

        with _background(store) as append:
            for samples in self._batches(pending, done, summary, count):
                latents = _encoded(self.encode, transfers, [sample.pixels for sample in samples], self.batch_size)
                append([sample.id for sample in samples], latents, [sample.columns for sample in samples])
                summary.encoded += len(samples)
        summary.seconds = time.perf_counter() - start
        return summary

    def _pending(self, mine: range, done: Ids) -> Array:
        """Numbers of the samples that are not stored yet, (N,) int64."""
        parts = [np.empty(0, np.int64)]
        for first in range(0, len(mine), _LOOKED_UP):
            part = mine[first : first + _LOOKED_UP]
            is_done = np.array(done.contains([self.source.id(index) for index in part]))
            parts.append(np.array(part, np.int64)[~is_done])
        return np.concatenate(parts)

    def _batches(self, pending: Array, done: Ids, summary: EncodingSummary, count: _Counter) -> Iterator[list[Decoded]]:
        """Yields batches of one shape each; samples that can't be read go to the summary."""
        waiting: defaultdict[tuple[int, ...], list[Decoded]] = defaultdict(list)
        for decoded in self._decoded(pending):
            count.up()
            if isinstance(decoded, SkippedSample):
                summary.skipped.append(decoded)
                continue
            for view in views(decoded, self.flip_views):
                if self.flip_views and view.id in done:  # one of a mirrored pair may be stored already
                    continue
                same_shape = waiting[tuple(view.pixels.shape)]
                same_shape.append(view)
                if len(same_shape) == self.batch_size:
                    yield same_shape
                    waiting[tuple(view.pixels.shape)] = []
        yield from filter(None, waiting.values())

    def _decoded(self, pending: Array) -> Iterator[Decoded | SkippedSample]:
        if not self.num_workers:
            yield from self._decoded_by_threads(pending)
            return
        loader: DataLoader[Any] = DataLoader(
            _DecodingDataset(self.source, self.preprocessing, pending),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_as_they_are,
        )
        for batch in loader:
            yield from batch

    def _decoded_by_threads(self, pending: Array) -> Iterator[Decoded | SkippedSample]:
        """Decodes one batch at a time, not ahead of the encoder: that would slow the encoder by the time it saves."""
        decode = partial(decode_sample, self.source, self.preprocessing)
        with ThreadPoolExecutor(torch.get_num_threads(), "decoding") as pool:
            for first in range(0, len(pending), self.batch_size):
                yield from list(pool.map(decode, pending[first : first + self.batch_size].tolist()))


class _Counter:
    """Counts samples, and reports the count."""

    def __init__(self, done: int, total: int, on_progress: OnProgress | None) -> None:
        self.done, self.total, self._report = done, total, on_progress or (lambda done, total: None)
        self._report(done, total)

    def up(self) -> None:
        """One more."""
        self.done += 1
        self._report(self.done, self.total)


class _DecodingDataset(Dataset[Any]):
    """The pending samples, as worker processes read and decode them."""

    def __init__(self, source: Source, preprocessing: Preprocessing, indices: Array) -> None:
        self.source, self.preprocessing = source, preprocessing
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Decoded | SkippedSample:
        return decode_sample(self.source, self.preprocessing, int(self.indices[position]))


def _as_they_are(samples: list[Any]) -> list[Any]:
    return samples


@contextmanager
def _background(work: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """Yields a function that calls `work` in a thread, in order; an error is raised by a later call or at the end."""
    calls: queue.Queue[tuple[Any, ...] | None] = queue.Queue(QUEUED_BATCHES)
    errors: list[BaseException] = []

    def run() -> None:
        while (arguments := calls.get()) is not None:
            if not errors:
                try:
                    work(*arguments)
                except BaseException as error:  # raised in the other thread
                    errors.append(error)

    def call(*arguments: Any) -> None:
        if errors:
            raise errors[0]
        calls.put(arguments)

    thread = threading.Thread(target=run, name="latent-writer", daemon=True)
    thread.start()
    try:
        yield call
    finally:
        calls.put(None)
        thread.join()
    if errors:
        raise errors[0]
