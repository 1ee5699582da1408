"""Encodes a data set to latents on a Ray cluster: read → decode → encode in actors that hold the model → write.

    pip install 'ul_tokenizer[ray]'
    python examples/encode_dataset_ray.py SRC -o OUT --model ul-photo-f8 --resolution 256 --actors 8 --gpus 1

SRC and OUT lie on a file system that all machines see. Latents are small, so this process alone writes them: an actor
or a machine that dies costs its batches, which Ray computes again, and each sample arrives once. Killed itself, the
same command goes on. Latents and files are those of `ul-tokenizer encode-dataset`, in another order.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import numpy as np
import ray
import torch
import typer
from torch import Tensor

from ul_tokenizer.cli import encode_dataset as command
from ul_tokenizer.latents.encode import Decoded, Summary, decode_sample, encode_batch, views, write_skipped
from ul_tokenizer.latents.writer import LatentWriter
from ul_tokenizer.media.transforms import Preprocessing
from ul_tokenizer.sources.base import SkippedSample, Source
from ul_tokenizer.sources.open import open_source

Row = dict[str, Any]
Batch = dict[str, Any]  # columns, as Ray Data hands them around
BLOCK_BATCHES = 4  # what is lost with an actor
ACTOR_CPUS = 0.5  # so that decoding has some left where there are as many actors as cores


class Encoder:
    """An actor: holds the model, and takes batches of encoded images' pixels."""

    def __init__(self, model: str, revision: str | None, compute: str, batch_size: int) -> None:
        autoencoder, device, _ = command.load_encoder(model, revision, None)
        self.encode: Callable[[Tensor], Tensor] = command.make_encode(autoencoder, device, compute)
        self.batch_size = batch_size

    def __call__(self, batch: Batch) -> Batch:
        """Pixels become latents; what could not be read passes through."""
        latents: list[tuple[bytes, list[int]]] = [(b"", [])] * len(batch["id"])
        by_shape: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for position, shape in enumerate(batch["shape"]):
            by_shape[tuple(shape)].append(position)
        by_shape.pop((), None)  # skipped samples have no pixels
        for shape, positions in by_shape.items():
            pixels = [to_tensor(batch["bytes"][p], shape, np.uint8) for p in positions]
            for position, z in zip(positions, encode_batch(self.encode, pixels, self.batch_size), strict=True):
                latents[position] = z.contiguous().numpy().tobytes(), list(z.shape)
        return {**batch, "bytes": [content for content, _ in latents], "shape": [shape for _, shape in latents]}


def to_tensor(content: bytes, shape: Iterable[int], dtype: type[np.generic]) -> Tensor:
    """What was sent as bytes."""
    return torch.from_numpy(np.frombuffer(content, dtype).reshape([int(side) for side in shape]).copy())


def decode(row: Row, source: Source, preprocessing: Preprocessing, flip: bool) -> list[Row]:
    """A sample's number → a row for each view of it, or one that says why it is skipped."""
    sample = decode_sample(source, preprocessing, int(row["id"]))
    if isinstance(sample, SkippedSample):
        return [{"id": sample.id, "reason": sample.reason, "bytes": b"", "shape": [], "columns": ""}]
    return [pack(view) for view in views(sample, flip)]


def pack(view: Decoded) -> Row:
    """A row of plain values, whatever the image's shape."""
    content, shape = view.pixels.numpy().tobytes(), list(view.pixels.shape)
    return {"id": view.id, "reason": "", "bytes": content, "shape": shape, "columns": json.dumps(view.columns)}


def write(rows: Iterable[Row], writer: LatentWriter, summary: Summary) -> None:
    """Rows into the data set, and what was skipped into the summary."""
    for row in rows:
        if row["reason"]:
            summary.skipped.append(SkippedSample(row["id"], row["reason"]))
        elif row["id"] not in writer.done_ids:  # of a mirrored pair, one may be
            z = to_tensor(row["bytes"], row["shape"], np.float32)
            writer.append([row["id"]], z[None], [json.loads(row["columns"])])
            summary.encoded += 1


def check_resources(actors: int, gpus: float) -> None:
    """Refuses what the cluster can't start, for which Ray would wait forever.

    Raises:
        ValueError: more CPUs or GPUs than it has.
    """
    there = ray.cluster_resources()
    for name, wanted in (("CPU", actors * ACTOR_CPUS + 1), ("GPU", actors * gpus)):
        if wanted > there.get(name, 0):
            raise ValueError(
                f"--actors {actors} need {wanted:g} {name}s with those that decode, got {there.get(name, 0):g}."
            )


def main(
    source: command.Source,
    output: command.Output,
    model: Annotated[str, typer.Option(help="Autoencoder: bundled name, folder or hub id.")] = "ul-photo-f8",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")] = None,
    resolution: Annotated[int | None, typer.Option(min=1, help="Scale the shorter side to so many pixels.")] = None,
    crop: Annotated[command.CropChoice, typer.Option(help="As in encode-dataset.")] = command.CropChoice.CENTER,
    batch_size: Annotated[int, typer.Option("--batch-size", "--batch_size", min=1, help="Images at a time.")] = 32,
    dtype: Annotated[command.Stored, typer.Option(help="What latents are stored as.")] = command.Stored.float16,
    compute: Annotated[command.Compute, typer.Option(help="What encoders compute in.")] = command.Compute.float32,
    flip: Annotated[bool, typer.Option("--flip", help="Store each image mirrored, too.")] = False,
    max_skip_fraction: Annotated[float, typer.Option(min=0, max=1, help="Exit 1 if more is skipped.")] = 0.1,
    actors: Annotated[int, typer.Option(min=1, help="Actors, each of which holds the model.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of an actor; 0 for the CPU.")] = 0,
    address: Annotated[
        str | None, typer.Option(help="The cluster.", show_default="$RAY_ADDRESS, or this machine alone")
    ] = None,
) -> None:
    """Encode a whole data set to latents on a Ray cluster; options are those of `ul-tokenizer encode-dataset`."""
    start = time.perf_counter()
    autoencoder, _, header = command.load_encoder(model, revision, "cpu")
    preprocessing = Preprocessing(resolution, crop.value, autoencoder.spatial_compression_ratio)
    samples = open_source(source)
    writer = LatentWriter(output, header | command.describe_job(preprocessing, samples, dtype.value, flip))
    pending = [index for index in range(len(samples)) if samples.id(index) not in writer.done_ids]
    summary = Summary(found=len(samples) - len(pending), skipped=list(samples.skipped))

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    check_resources(actors, gpus)
    ray.data.DataContext.get_current().enable_progress_bars = sys.stderr.isatty()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    blocks = max(1, -(-len(pending) // (BLOCK_BATCHES * batch_size)))
    rows = (
        ray.data.from_items([{"id": index} for index in pending], override_num_blocks=blocks)
        .flat_map(functools.partial(decode, source=samples, preprocessing=preprocessing, flip=flip))
        .map_batches(
            Encoder,
            fn_constructor_args=(model, revision, compute.value, batch_size),
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=ACTOR_CPUS,
            num_gpus=gpus,
        )
    )
    with writer:
        write(rows.iter_rows() if pending else (), writer, summary)
    summary.seconds = time.perf_counter() - start
    write_skipped(output / "skipped-r000.jsonl", summary.skipped)
    command.gather_skipped(output)
    command.report(summary, output)
    command.check(summary, max_skip_fraction)


if __name__ == "__main__":
    try:
        typer.run(main)
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
