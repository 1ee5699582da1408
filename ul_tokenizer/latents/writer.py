"""Writes latent data sets; a process that is killed at any moment loses only the samples of unfinished shards."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from ul_tokenizer.files import append_line, cut_off_partial_line, sync_folder, write_json, write_whole
from ul_tokenizer.latents.ids import IdSet
from ul_tokenizer.latents.manifest import (
    HEADER,
    VOLATILE,
    Header,
    Shard,
    check_header,
    make_header,
    manifest_name,
    read_all_shards,
    read_header,
    read_shards,
    shard_name,
)
from ul_tokenizer.latents.statistics import channel_statistics

if TYPE_CHECKING:
    from typing_extensions import Self

SHARD_BYTES = 64_000_000
SHARD_SAMPLES = 1024  # the most that a kill costs, for each shape


class LatentWriter:
    """Appends latents to a data set. The same arguments continue a data set after a kill.

    ```
    append ─ one waiting list per shape ─ full? ─ temporary file, fsync ─ rename ─ line in the manifest, fsync
    ```

    Args:
        folder: folder of the data set; made if needed.
        header: what made the latents, and how. `latent_channels`, `latent_logsnr` and `dtype` ("float32", "float16",
            "bfloat16" or "int8") are required; `docs/reference/latent-format.md` lists the other fields. A data set
            that is continued must have the same header.
        rank: number of this process, below `world_size`; each process writes its own files.
        world_size: number of processes that write now.
        shard_samples: largest number of samples in a shard.
        shard_bytes: approximate largest size of a shard.

    Attributes:
        done_ids: the ids that the data set has, of all processes; supports `in` and `len`.

    Raises:
        ValueError: the folder holds a data set with another header.
        OSError: the folder can't be written.

    Example:
        ```python
        header = {"latent_channels": 16, "latent_logsnr": 5.0, "dtype": "float16", "class_names": ["cat", "dog"]}
        with LatentWriter("latents/", header) as writer:
            for names, images, labels in batches:  # images: (B, 3, H, W) in [−1, 1]
                latents = autoencoder.encode(images).latent
                writer.append(names, latents, [{"label": label} for label in labels])
        ```
    """

    def __init__(
        self,
        folder: str | Path,
        header: Mapping[str, Any],
        rank: int = 0,
        world_size: int = 1,
        shard_samples: int = SHARD_SAMPLES,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.folder, self.rank = Path(folder), rank
        self.shard_samples, self.shard_bytes = shard_samples, shard_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.header = self._agree(make_header(**{k: v for k, v in header.items() if k not in ("format", "version")}))
        self._manifest = self.folder / manifest_name(rank)
        self._waiting: defaultdict[tuple[int, ...], _Waiting] = defaultdict(_Waiting)
        self._recover(world_size)
        self.done_ids = IdSet(shard.ids for shard in read_all_shards(self.folder))
        self._next = self._first_free_number()

    def _agree(self, header: Header) -> Header:
        path = self.folder / HEADER
        if path.exists():
            found = read_header(self.folder)
            wanted = {key: value for key, value in header.items() if key not in VOLATILE}
            check_header(found, {**dict.fromkeys(set(found) - set(header) - set(VOLATILE)), **wanted}, str(path))
            return found
        if any(self.folder.glob("*.safetensors")):
            raise ValueError(f"Folder {self.folder} holds other safetensors files and no {HEADER}; use another folder.")
        # Every process writes the same bytes.
        write_json(path, header)
        return header

    def _recover(self, world_size: int) -> None:
        """Removes unfinished files of killed processes: of this rank, and on rank 0 of ranks beyond `world_size`."""
        ranks = [self.rank, *(self._ranks_from(world_size) if self.rank == 0 else [])]
        for rank in ranks:
            manifest = self.folder / manifest_name(rank)
            cut_off_partial_line(manifest)
            finished = {shard.file for shard in read_shards(manifest)} if manifest.is_file() else set()
            for path in self.folder.glob(f"shard-r{rank:03d}-*"):
                if path.name not in finished:
                    path.unlink()
            for path in self.folder.glob(f".shard-r{rank:03d}-*.tmp"):
                path.unlink()

    def _ranks_from(self, first: int) -> list[int]:
        numbers = {int(path.name.split("-")[1][1:].split(".")[0]) for path in self.folder.glob("*-r[0-9]*")}
        return sorted(number for number in numbers if number >= first)

    def _first_free_number(self) -> int:
        files = self.folder.glob(f"shard-r{self.rank:03d}-*.safetensors")
        return 1 + max((int(path.stem.split("-")[2]) for path in files), default=-1)

    # ------------------------------------------------------------------------------------------------------------
    # Writing
    # ------------------------------------------------------------------------------------------------------------

    def append(self, ids: Sequence[str], latents: Tensor, columns: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Adds samples of one shape. They are on the disk once their shard is full, or after `flush`.

        Args:
            ids: unique names.
            latents: z_clean, (B, c, [t,] h, w), on any device and in any floating dtype.
            columns: for each sample its columns, with values that JSON can hold; None if there are none.

        Raises:
            ValueError: the data set has an id already, or latents don't fit the header or aren't finite.
            OSError: the disk is full or can't be written; finished shards stay.
        """
        rows = [{} for _ in ids] if columns is None else [dict(row) for row in columns]
        self._check(ids, latents, rows)
        waiting = self._waiting[tuple(latents.shape[1:])]
        waiting.add(ids, latents.detach().float().cpu(), rows)
        self.done_ids.update(ids)
        limit = self._limit(latents.shape[1:])
        while len(waiting) >= limit:
            self._write(waiting.take(limit))

    def _check(self, ids: Sequence[str], latents: Tensor, rows: Sequence[dict[str, Any]]) -> None:
        if not len(ids) == len(latents) == len(rows):
            counts = f"{len(ids)}, {len(latents)}, {len(rows)}"
            raise ValueError(f"ids, latents and columns must have the same length, got {counts}.")
        if latents.ndim not in (4, 5) or latents.shape[1] != self.header["latent_channels"]:
            raise ValueError(
                f"latents must be (B, {self.header['latent_channels']}, [t,] h, w), got {tuple(latents.shape)}."
            )
        if not latents.isfinite().all():
            raise ValueError("latents must be finite, got NaN or infinity.")
        known = next((name for name, is_known in zip(ids, self.done_ids.contains(ids), strict=True) if is_known), None)
        if known is not None or len(set(ids)) != len(ids):
            raise ValueError(f"ids must be unique, got {known or 'one'} twice.")

    def _limit(self, shape: Sequence[int]) -> int:
        width = 1 if self.header["dtype"] == "int8" else getattr(torch, self.header["dtype"]).itemsize
        return max(1, min(self.shard_samples, self.shard_bytes // (width * int(torch.Size(shape).numel()))))

    def _write(self, samples: _Samples) -> None:
        number, self._next = self._next, self._next + 1
        tensors, rounding = _stored(samples.latents, self.header["dtype"])
        content = save(tensors)
        path = self.folder / shard_name(self.rank, number)
        write_whole(path, content)
        sync_folder(self.folder)
        shard = Shard(
            file=path.name,
            sha256=hashlib.sha256(content).hexdigest(),
            bytes=len(content),
            shape=tuple(tensors["latents"].shape),
            dtype=self.header["dtype"],
            ids=samples.ids,
            columns=_columnar(samples.rows),
            statistics=channel_statistics(samples.latents).to_json(),
            rounding=rounding,
        )
        append_line(self._manifest, shard.to_line())

    def flush(self) -> None:
        """Writes all waiting samples, in shards that are not full."""
        for waiting in self._waiting.values():
            while len(waiting):
                self._write(waiting.take(self.shard_samples))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error waiting samples are lost, as after a kill; the next run makes them again.
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.flush()


class _Samples(NamedTuple):
    """Samples of one shape, ready for a shard; their latents stay in batches, which saves a second copy."""

    ids: list[str]
    latents: list[Tensor]
    rows: list[dict[str, Any]]


class _Waiting:
    """Samples of one shape that are in no shard yet."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._latents: deque[Tensor] = deque()
        self._rows: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: Sequence[str], latents: Tensor, rows: list[dict[str, Any]]) -> None:
        self._ids += ids
        self._latents.append(latents)
        self._rows += rows

    def take(self, count: int) -> _Samples:
        """Removes and returns the first samples, at most `count`."""
        taken = _Samples(self._ids[:count], list(self._take_latents(min(count, len(self)))), self._rows[:count])
        self._ids, self._rows = self._ids[count:], self._rows[count:]
        return taken

    def _take_latents(self, count: int) -> Iterator[Tensor]:
        while count:
            batch = self._latents.popleft()
            if len(batch) > count:
                self._latents.appendleft(batch[count:])
                batch = batch[:count]
            count -= len(batch)
            yield batch


# ---------------------------------------------------------------- bytes


def _stored(batches: Sequence[Tensor], dtype: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors of a shard and their rounding error; batch by batch, which keeps temporary tensors small."""
    scale = _int8_scale(batches) if dtype == "int8" else None
    stored = torch.empty((sum(map(len, batches)), *batches[0].shape[1:]), dtype=getattr(torch, dtype))
    largest, squares = 0.0, 0.0
    for latents, place in zip(batches, torch.split(stored, [len(batch) for batch in batches]), strict=True):
        place.copy_(latents if scale is None else (latents / scale).round())
        error = (place.float() * (1 if scale is None else scale) - latents).abs()
        if not error.isfinite().all():
            raise ValueError(f"latents must lie within the range of {dtype}, got {float(latents.abs().max()):g}.")
        largest, squares = max(largest, float(error.max())), squares + float(error.double().square().sum())
    tensors = {"latents": stored} if scale is None else {"latents": stored, "scale": scale.flatten()}
    return tensors, {"max": largest, "rms": math.sqrt(squares / stored.numel())}


def _int8_scale(batches: Sequence[Tensor]) -> Tensor:
    """The step between two int8 values of each channel, (1, c, 1, …)."""
    extremes = torch.stack([batch.abs().transpose(0, 1).flatten(1).amax(1) for batch in batches]).amax(0)
    return (extremes.clamp_min(1e-12) / 127).reshape(1, -1, *[1] * (batches[0].ndim - 2))


def _columnar(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
