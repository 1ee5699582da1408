"""Encodes a data set to latents on a Ray cluster: read → decode → encode in actors that hold the model → write.

    pip install 'ul_tokenizer[ray]'
    python examples/encode_dataset_ray.py SRC -o OUT --model ul-photo-f8 --resolution 256 --actors 8 --gpus 1

SRC and OUT must be on a file system that all machines share. Latents are small, so this process alone writes them. If
an actor or a machine dies, Ray computes its batches again, and each sample still arrives once. If this process is
killed, the same command continues the job. Latents and files are those of `ul-tokenizer encode-dataset`, in another
order.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import ray
import torch
import typer
from torch import Tensor

from ul_tokenizer.latents.encode import Decoded, decode_sample, encode_batch, views
from ul_tokenizer.latents.job import load_encoder, make_job_header
from ul_tokenizer.latents.summary import EncodingSummary, gather_skipped, write_skipped
from ul_tokenizer.latents.writer import LatentWriter
from ul_tokenizer.media.transforms import Preprocessing
from ul_tokenizer.sources.base import SkippedSample, Source
from ul_tokenizer.sources.open import open_source

Row = dict[str, Any]
Batch = dict[str, Any]  # columns, as Ray Data hands them around
BLOCK_BATCHES = 4  # batches that are lost with an actor
ACTOR_CPUS = 0.5  # less than one, so that decoding gets some where there are as many actors as cores


class Encoder:
    """An actor, which holds the model and encodes batches of pixels."""

    def __init__(self, model: str, revision: str | None, dtype: str, batch_size: int) -> None:
        self.encode, self.batch_size = load_encoder(model, revision, dtype=dtype), batch_size
        self.encode.in_use().__enter__()  # for as long as the actor lives

    def __call__(self, batch: Batch) -> Batch:
        """Pixels become latents; samples that could not be read pass through."""
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
    """Makes a tensor of bytes that were sent."""
    return torch.from_numpy(np.frombuffer(content, dtype).reshape([int(side) for side in shape]).copy())


def decode(row: Row, source: Source, preprocessing: Preprocessing, flip: bool) -> list[Row]:
    """A sample's number → a row for each of its views, or a row with the reason why it is skipped."""
    sample = decode_sample(source, preprocessing, int(row["id"]))
    if isinstance(sample, SkippedSample):
        return [{"id": sample.id, "reason": sample.reason, "bytes": b"", "shape": [], "columns": ""}]
    return [pack(view) for view in views(sample, flip)]


def pack(view: Decoded) -> Row:
    """A row of plain values, whatever the image's shape."""
    content, shape = view.pixels.numpy().tobytes(), list(view.pixels.shape)
    return {"id": view.id, "reason": "", "bytes": content, "shape": shape, "columns": json.dumps(view.columns)}


def write(rows: Iterable[Row], writer: LatentWriter, summary: EncodingSummary) -> None:
    """Writes rows into the data set, and skipped samples into the summary."""
    for row in rows:
        if row["reason"]:
            summary.skipped.append(SkippedSample(row["id"], row["reason"]))
        elif row["id"] not in writer.done_ids:  # one of a mirrored pair may be stored already
            z = to_tensor(row["bytes"], row["shape"], np.float32)
            writer.append([row["id"]], z[None], [json.loads(row["columns"])])
            summary.encoded += 1


def check_resources(actors: int, gpus: float) -> None:
    """Refuses actors that the cluster can't start; Ray would wait for them forever.

    Raises:
        ValueError: the cluster has too few CPUs or GPUs.
    """
    resources = ray.cluster_resources()
    for name, wanted in (("CPU", actors * ACTOR_CPUS + 1), ("GPU", actors * gpus)):
        found = resources.get(name, 0)
        if wanted > found:
            raise ValueError(f"--actors {actors} needs {wanted:g} {name}s, with one for decoding, got {found:g}.")


def main(
    source: Annotated[str, typer.Argument(metavar="SRC", help="As in encode-dataset.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the latent data set.")],
    model: Annotated[str, typer.Option(help="Autoencoder: bundled name, folder or hub id.")] = "ul-photo-f8",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")] = None,
    resolution: Annotated[int | None, typer.Option(min=1, help="Scale the shorter side to this many pixels.")] = None,
    crop: Annotated[str, typer.Option(help="center, multiple or none, as in encode-dataset.")] = "center",
    batch_size: Annotated[int, typer.Option(min=1, help="Number of images in a batch.")] = 32,
    dtype: Annotated[str, typer.Option(help="What encoders compute in: float32, bfloat16 or float16.")] = "float32",
    store_dtype: Annotated[
        str, typer.Option(help="What latents are stored in: float32, float16, bfloat16 or int8.")
    ] = "float16",
    flip: Annotated[bool, typer.Option("--flip", help="Also store the mirror image of each image.")] = False,
    max_skip_fraction: Annotated[float, typer.Option(min=0, max=1, help="Exit 1 if a larger share is skipped.")] = 0.1,
    actors: Annotated[int, typer.Option(min=1, help="Number of actors, each of which holds the model.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of an actor; 0 uses the CPU.")] = 0,
    address: Annotated[
        str | None, typer.Option(help="The cluster.", show_default="$RAY_ADDRESS, or this machine alone")
    ] = None,
) -> None:
    """Encode a whole data set to latents on a Ray cluster; options are those of `ul-tokenizer encode-dataset`."""
    start = time.perf_counter()
    encoder = load_encoder(model, revision, "cpu", dtype)
    preprocessing = Preprocessing(resolution, crop, encoder.ratio)  # type: ignore[arg-type]  # which checks it
    samples = open_source(source)
    writer = LatentWriter(output, make_job_header(encoder, preprocessing, samples, store_dtype, flip))
    pending = [index for index in range(len(samples)) if samples.id(index) not in writer.done_ids]
    found = len(samples) - len(pending)
    summary = EncodingSummary(found=found, skipped=list(samples.skipped), output=output)

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
            fn_constructor_args=(model, revision, dtype, batch_size),
            batch_size=batch_size,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=ACTOR_CPUS,
            num_gpus=gpus,
        )
    )
    with writer:
        write(rows.iter_rows() if pending else (), writer, summary)
    summary.seconds = time.perf_counter() - start
    write_skipped(output, summary.skipped)
    gather_skipped(output, world_size=1)
    print(summary, file=sys.stderr)
    summary.check(max_skip_fraction)


if __name__ == "__main__":
    try:
        typer.run(main)
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
