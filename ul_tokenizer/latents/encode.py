"""The encoding job: a source's samples through an encoder into a latent data set, from wherever it stopped."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ul_tokenizer.files import write_whole
from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.media.pixels import to_float
from ul_tokenizer.media.transforms import Preprocessing
from ul_tokenizer.sources.base import SkippedSample, Source

FLIPPED = "#flipped"  # behind the id of a mirrored view
QUEUED_BATCHES = 4  # encoded and not yet written
Encode = Callable[[Tensor], Tensor]  # pixels (B, 3, [T,] H, W) in [−1, 1] → z_clean (B, c, [t,] h, w)


# ---------------------------------------------------------------- one sample, one batch: for any engine


@dataclass(frozen=True)
class Decoded:
    """A sample that was read."""

    id: str
    pixels: Tensor  # (3, [T,] H, W) uint8
    columns: dict[str, Any]


def decode_sample(source: Source, preprocessing: Preprocessing, index: int) -> Decoded | SkippedSample:
    """Reads sample `index`; what goes wrong with it is a value, since an exception would end the job."""
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
    """The views of a sample that are stored: itself, with `flip` also its mirror image."""
    if not flip:
        return [sample]
    mirrored = Decoded(sample.id + FLIPPED, sample.pixels.flip(-1), {**sample.columns, "flipped": True})
    # The image itself comes last: once it is done, so is the mirrored view.
    return [mirrored, Decoded(sample.id, sample.pixels, {**sample.columns, "flipped": False})]


def encode_batch(encode: Encode, pixels: Sequence[Tensor], batch_size: int) -> Tensor:
    """Pixels of one shape, (3, [T,] H, W) uint8 each → z_clean (B, c, [t,] h, w) fp32, on the CPU.

    The encoder always sees `batch_size` rows, the last one repeated where samples are lacking: a sample's latent does
    not depend, by a rounding, on which samples it is encoded with.
    """
    filled = torch.stack([*pixels, *[pixels[-1]] * (batch_size - len(pixels))])
    return encode(to_float(filled))[: len(pixels)].float().cpu()


# ---------------------------------------------------------------- the job


class Writer(Protocol):
    """Where latents go."""

    @property
    def done_ids(self) -> Any:
        """Ids that are safely stored, of all processes."""

    def append(self, ids: Sequence[str], latents: Tensor, columns: Sequence[dict[str, Any]]) -> None:
        """Takes a batch."""


@dataclass
class Summary:
    """What a job did, on this process."""

    encoded: int = 0
    found: int = 0  # stored already, by an earlier run
    skipped: list[SkippedSample] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Of this run."""
        return self.encoded / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class EncodingJob:
    """Encodes the samples of a source that are not stored yet.

    Args:
        source: the samples.
        preprocessing: images → pixels.
        encode: pixels → z_clean, on whichever device.
        batch_size: rows of a batch.
        num_workers: processes that read and decode, beside an encoder on a GPU. 0 does it in this one, a batch at a
            time by as many threads as torch computes with: best where the encoder needs the same cores, since threads
            of OpenMP wait for the slowest of them.
        flip_views: whether each image is stored mirrored, too.
        rank: this process's number, of `world_size`; every process takes its own part of the samples.
        world_size: how many processes share the source.
    """

    source: Source
    preprocessing: Preprocessing
    encode: Encode
    batch_size: int = 32
    num_workers: int = 0
    flip_views: bool = False
    rank: int = 0
    world_size: int = 1

    def run(self, writer: Writer, on_progress: Callable[[int], None] | None = None) -> Summary:
        """Encodes and writes; the writer is closed by whoever made it.

        Args:
            writer: where latents go; what it says is done is not encoded again.
            on_progress: called with the number of images that were just dealt with.

        Returns:
            what was done.

        Raises:
            OSError: what the writer raises.
        """
        start = time.perf_counter()
        mine = range(self.rank, len(self.source), self.world_size)
        done = writer.done_ids
        pending = [index for index in mine if self.source.id(index) not in done]
        summary = Summary(found=len(mine) - len(pending))
        if self.rank == 0:
            summary.skipped += self.source.skipped
        with _background(writer.append) as append:
            for samples in self._batches(pending, done, summary, on_progress or (lambda _: None)):
                latents = encode_batch(self.encode, [sample.pixels for sample in samples], self.batch_size)
                append([sample.id for sample in samples], latents, [sample.columns for sample in samples])
                summary.encoded += len(samples)
        summary.seconds = time.perf_counter() - start
        return summary

    def _batches(
        self, pending: list[int], done: Any, summary: Summary, on_progress: Callable[[int], None]
    ) -> Iterator[list[Decoded]]:
        """Batches of one shape each; samples that can't be read go to the summary."""
        waiting: defaultdict[tuple[int, ...], list[Decoded]] = defaultdict(list)
        for decoded in self._decoded(pending):
            on_progress(1)
            if isinstance(decoded, SkippedSample):
                summary.skipped.append(decoded)
                continue
            for view in views(decoded, self.flip_views):
                if view.id in done:  # of a mirrored pair, one may be
                    continue
                same_shape = waiting[tuple(view.pixels.shape)]
                same_shape.append(view)
                if len(same_shape) == self.batch_size:
                    yield same_shape
                    waiting[tuple(view.pixels.shape)] = []
        yield from filter(None, waiting.values())

    def _decoded(self, pending: list[int]) -> Iterator[Decoded | SkippedSample]:
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

    def _decoded_by_threads(self, pending: list[int]) -> Iterator[Decoded | SkippedSample]:
        """Not ahead of the encoder, beside which they would take the time that they save."""
        decode = partial(decode_sample, self.source, self.preprocessing)
        with ThreadPoolExecutor(torch.get_num_threads(), "decoding") as pool:
            for first in range(0, len(pending), self.batch_size):
                yield from list(pool.map(decode, pending[first : first + self.batch_size]))


class _DecodingDataset(Dataset[Any]):
    """The samples that are wanted, in processes that read and decode."""

    def __init__(self, source: Source, preprocessing: Preprocessing, indices: list[int]) -> None:
        self.source, self.preprocessing = source, preprocessing
        self.indices = torch.tensor(indices)  # one block of memory, which worker processes share

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Decoded | SkippedSample:
        return decode_sample(self.source, self.preprocessing, int(self.indices[position]))


def _as_they_are(samples: list[Any]) -> list[Any]:
    return samples


@contextmanager
def _background(work: Callable[..., None]) -> Iterator[Callable[..., None]]:
    """Calls of the result are made in a thread, in order; the first error is raised at a later call or at the end."""
    calls: queue.Queue[tuple[Any, ...] | None] = queue.Queue(QUEUED_BATCHES)
    errors: list[BaseException] = []

    def run() -> None:
        while (arguments := calls.get()) is not None:
            if not errors:
                try:
                    work(*arguments)
                except BaseException as error:  # for the thread that waits
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


def write_skipped(path: Path, skipped: Sequence[SkippedSample]) -> None:
    """Writes what was passed over as JSON lines, whole or not at all."""
    write_whole(path, "".join(json.dumps(skip._asdict(), ensure_ascii=False) + "\n" for skip in skipped))
