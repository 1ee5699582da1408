"""`encode_dataset`: encodes a whole data set to latents with one call."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from ul_tokenizer.latents.encode import EncodingJob
from ul_tokenizer.latents.encoder import Encoder, identity_of, identity_of_files
from ul_tokenizer.latents.manifest import DTYPES
from ul_tokenizer.latents.summary import EncodingSummary, combined, gather_skipped, write_skipped
from ul_tokenizer.latents.writer import LatentWriter
from ul_tokenizer.media.transforms import CropRule, Preprocessing
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.devices import pick_device
from ul_tokenizer.models.repository import load_autoencoder, locate
from ul_tokenizer.processes import Processes, local_device
from ul_tokenizer.sources.base import Source
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.sources.open import open_source
from ul_tokenizer.sources.video import VideoSource

if TYPE_CHECKING:
    from typing_extensions import Unpack

DEFAULT_MODEL, DEFAULT_VIDEO_MODEL = "ul-photo-f8", "ul-video"
MAX_WORKERS = 16


class SourceOptions(TypedDict, total=False):
    """Options for a source that is given by name; see `ul_tokenizer.sources.open.open_source`."""

    image_column: str
    split: str
    config: str | None
    source_revision: str | None
    keep_duplicates: bool
    clip_frames: int | None
    clip_stride: int | None
    clip_fps: float | None
    clip_without_cuts: bool


def encode_dataset(
    source: str | Path | Source,
    output: str | Path,
    *,
    model: str | UnifiedLatentsAutoencoder | None = None,
    revision: str | None = None,
    resolution: int | None = None,
    crop: CropRule = "center",
    batch_size: int = 32,
    dtype: str | torch.dtype = "float32",
    store_dtype: str | torch.dtype = "float16",
    device: str | torch.device | None = None,
    num_workers: int | None = None,
    flip: bool = False,
    max_skip_fraction: float = 0.1,
    rank: int | None = None,
    world_size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **source_options: Unpack[SourceOptions],
) -> EncodingSummary:
    """Encodes a whole data set to latents, which `LatentDataset` reads. The same call continues an interrupted job.

    Args:
        source: a folder of images, of .tar archives, of .parquet files or of videos; one such file; a hub data set; or
            an object with the protocol of `ul_tokenizer.sources.base`.
        output: folder of the latent data set.
        model: an autoencoder, or its bundled name, folder or hub id. None is "ul-photo-f8", for clips "ul-video".
        revision: branch, tag or commit of a model on the hub.
        resolution: length of the shorter side after scaling, in pixels; None doesn't scale.
        crop: "center" cuts out a square, "multiple" crops to multiples of the compression ratio, "none" skips images
            whose sides aren't such multiples.
        batch_size: number of images in a batch.
        dtype: what the encoder computes in: "float32", "bfloat16" or "float16".
        store_dtype: what latents are stored in: "float32", "float16", "bfloat16" or "int8".
        device: e.g. "cuda:1"; None for that of the autoencoder, or of a model given by name the GPU if there is one.
        num_workers: processes that decode images. 0 uses threads; None chooses 0 on a CPU, and else by the cores.
        flip: also store the mirror image of each image.
        max_skip_fraction: largest share of samples that may be skipped.
        rank: number of this job in an array of `world_size` jobs. Without it, processes that accelerate or torchrun
            started share the work.
        world_size: number of jobs in the array.
        on_progress: called by the main process with the number of its samples dealt with so far, and their total.
        **source_options: see `SourceOptions`.

    Returns:
        what was done, by all processes of a group. `skipped.jsonl` in the folder lists the skipped samples.

    Raises:
        ValueError: an argument is not legal, or the folder holds latents that were made in another way.
        TooManySkippedError: more samples were skipped than allowed; all others are in the data set.
        OSError: the disk is full or can't be written.
    """
    processes = Processes.of(rank, world_size)
    with processes.together():
        name = _default_model(source, source_options) if model is None else model
        encoder = load_encoder(name, revision, device, dtype)
    samples = _open_together(source, source_options, processes)
    with processes.together():
        preprocessing = Preprocessing(resolution, crop, encoder.ratio)
        if not len(samples):
            raise ValueError("source must hold at least one sample, got none.")
        header = make_job_header(encoder, preprocessing, samples, store_dtype, flip)
        workers = pick_workers(encoder.device) if num_workers is None else num_workers
        share = processes.rank, processes.world_size
        job = EncodingJob(samples, preprocessing, encoder, batch_size, workers, flip, *share)
    with encoder.in_use():
        summary = _run(job, Path(output), header, processes, on_progress)
    summary.check(max_skip_fraction)
    return summary


def _run(
    job: EncodingJob,
    output: Path,
    header: dict[str, Any],
    processes: Processes,
    on_progress: Callable[[int, int], None] | None,
) -> EncodingSummary:
    # No process writes before all know that the arguments are right. Afterwards they may drift apart by hours.
    with processes.apart():
        with LatentWriter(output, header, processes.rank, processes.world_size) as writer:
            summary = job.run(writer, on_progress if processes.is_main else None)
        summary.output = output
        write_skipped(output, summary.skipped, processes.rank)
    total = combined(processes.gather(summary))
    if processes.is_main:
        gather_skipped(output, processes.world_size)
    processes.wait()
    return total


# ---------------------------------------------------------------- the model


def load_encoder(
    model: str | UnifiedLatentsAutoencoder,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
) -> Encoder:
    """An autoencoder on its device, ready to encode; arguments as in `encode_dataset`.

    Raises:
        ValueError: there is no such model or device, or a revision for an autoencoder in memory.
    """
    name_of_dtype = str(dtype).removeprefix("torch.")
    if isinstance(model, str):
        autoencoder = load_autoencoder(model, revision=revision)
        files = locate(model, revision=autoencoder.commit_hash or revision)
        identity = identity_of_files(model, files)
        autoencoder.to(pick_device(device or local_device()))
    else:
        if revision is not None:
            raise ValueError(f"revision must be None for an autoencoder in memory, got {revision!r}.")
        autoencoder, identity = model, identity_of(model)
        if device is not None:
            autoencoder.to(pick_device(device))
    return Encoder(autoencoder, identity, name_of_dtype)


def pick_workers(device: torch.device) -> int:
    """A number of decoding processes: 0 on a CPU, where they would take the encoder's cores."""
    if device.type == "cpu":
        return 0
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(MAX_WORKERS, cores - 1))


def _default_model(source: object, options: SourceOptions) -> str:
    is_of_clips = options.get("clip_frames") is not None or isinstance(source, VideoSource)
    return DEFAULT_VIDEO_MODEL if is_of_clips else DEFAULT_MODEL


# ---------------------------------------------------------------- the samples


def open_samples(source: str | Path | Source, options: SourceOptions) -> Source:
    """The source that a name stands for, or the source itself.

    Raises:
        ValueError: options of clips without `clip_frames`, or options for a source that is no name.
    """
    if not isinstance(source, (str, Path)):
        if options:
            raise ValueError(f"{next(iter(options))} must not be given for a source that is an object.")
        return source
    of_clips = [name for name in ("clip_stride", "clip_fps", "clip_without_cuts") if options.get(name)]
    if of_clips and options.get("clip_frames") is None:
        raise ValueError(f"{of_clips[0]} needs clip_frames, got none.")
    others: dict[str, Any] = {name: value for name, value in options.items() if name != "source_revision"}
    return open_source(str(source), revision=options.get("source_revision"), **others)


def _open_together(source: str | Path | Source, options: SourceOptions, processes: Processes) -> Source:
    """`open_samples` by all processes; one of them reads the files that may be equal, and not each of them."""
    searches = isinstance(source, (str, Path)) and not options.get("keep_duplicates")
    with processes.together():
        samples = open_samples(source, {**options, "keep_duplicates": True} if searches else options)
    if searches and isinstance(samples, FolderSource):
        samples.drop_duplicates(processes)
    return samples


def make_job_header(
    encoder: Encoder, preprocessing: Preprocessing, source: Source, store_dtype: str | torch.dtype, flip: bool
) -> dict[str, Any]:
    """The header of the data set that a job makes.

    Raises:
        ValueError: latents can't be stored in this dtype.
    """
    stored = str(store_dtype).removeprefix("torch.")
    if stored not in DTYPES:
        raise ValueError(f"store_dtype must be one of {', '.join(DTYPES)}, got {stored!r}.")
    return {
        **encoder.header(),
        "dtype": stored,
        "class_names": list(source.class_names),
        "preprocessing": {"resolution": preprocessing.resolution, "crop": preprocessing.crop, "flip_views": flip},
        **({"clips": source.settings} if isinstance(source, VideoSource) else {}),
    }
