"""`--cache_latents`: every training image is encoded once, into a latent data set that all processes then map.

With `--cached_crops N`, so are N random crops of every image.

A run that was killed continues where it was, and a later run with the same settings encodes nothing. Each process
encodes its share and nothing is sent between processes, so the latents of millions of images take no memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ul_tokenizer.evaluation.weights import weights_sha256
from ul_tokenizer.latents.dataset import LatentDataset
from ul_tokenizer.latents.writer import LatentWriter
from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.processes import Processes
from ul_tokenizer.progress import Bar, progress
from ul_tokenizer.sources.base import CAPTION
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.training.data import loader_options
from ul_tokenizer.training.draws.crops import NO_LABEL, CropSample, CropSource, RandomCropDataset
from ul_tokenizer.training.engine.signals import leave_signals_to_the_main_process
from ul_tokenizer.training.frozen import FrozenAutoencoder
from ul_tokenizer.training.stage2_arguments import Stage2Arguments
from ul_tokenizer.training.stage2_data import Indices, column_of

FOLDER = "latents"  # in the output folder
INDEX = "source_index"  # column with an image's number, which gives the latents an order that no process count changes
_LOOKED_UP = 1 << 14  # ids that are looked up together


def encode_all(
    args: Stage2Arguments,
    images: DecodedImages,
    crops: RandomCropDataset,
    autoencoder: FrozenAutoencoder,
    latent_logsnr: float,
    device: torch.device,
) -> tuple[LatentDataset, Indices]:
    """Encodes every readable image that is not encoded yet; every process must call it.

    Args:
        args: the arguments of the run.
        images: the training images.
        crops: their crops, which never change.
        autoencoder: the autoencoder, on `device`.
        latent_logsnr: log-SNR of the latents, for the header.
        device: where to encode.

    Returns:
        the data set, and the numbers of its samples in the order of the images.

    Raises:
        ValueError: the folder holds latents of other images, or nodes write to different disks.
        OSError: the disk is full or can't be written.
    """
    processes, folder = Processes.of(), Path(args.output_dir) / FOLDER
    with processes.apart():  # some may have more to encode than others
        header = _header(args, images, autoencoder, latent_logsnr)
        try:
            writer = LatentWriter(folder, header, processes.rank, processes.world_size)
        except ValueError as error:
            raise ValueError(f"--cache_latents would mix latents: {error} Remove {folder} to encode again.") from error
        with writer:
            done = _encode_mine(args, crops, autoencoder, writer, device, processes)
    counts = processes.gather(done)
    with processes.together():
        latents = LatentDataset(folder)
        if len(latents) != sum(counts):
            raise ValueError(
                f"--cache_latents needs an --output_dir that all nodes share, got {folder} with {len(latents)} of "
                f"{sum(counts)} latents."
            )
    return latents, np.argsort(np.fromiter(column_of(latents, INDEX), np.int64))


def _header(
    args: Stage2Arguments, images: DecodedImages, autoencoder: FrozenAutoencoder, latent_logsnr: float
) -> dict[str, Any]:
    ids = hashlib.sha256()
    for index in range(len(images)):
        ids.update(images.id(index).encode("utf-8", "surrogatepass") + b"\n")
    return {
        "autoencoder": None,
        "weights_sha256": weights_sha256(autoencoder.vae),
        "latent_channels": autoencoder.latent_channels,
        "latent_logsnr": latent_logsnr,
        "dtype": "float32",  # the losses are those of images that are encoded anew
        "class_names": list(images.class_names),
        "preprocessing": {
            "resolution": args.resolution,
            "scaling": args.scaling,
            "aspect_ratio_buckets": args.aspect_ratio_buckets,
            "captions": images.caption_column,
            **_random_crops(args),
        },
        "source": {"images": len(images), "ids_sha256": ids.hexdigest()},
    }


def _random_crops(args: Stage2Arguments) -> dict[str, Any]:
    """What random crops depend on; nothing for the crops that never change."""
    names = ("cached_crops", "scale_min", "random_flip", "center_crop", "seed")
    return {} if args.cached_crops is None else {name: getattr(args, name) for name in names}


# ----------------------------------------------------------------------------------------------------------------
# One process
# ----------------------------------------------------------------------------------------------------------------


def _encode_mine(
    args: Stage2Arguments,
    crops: RandomCropDataset,
    autoencoder: FrozenAutoencoder,
    writer: LatentWriter,
    device: torch.device,
    processes: Processes,
) -> int:
    """Encodes the share of this process; returns how many of its images have a latent."""
    mine = range(processes.rank, len(crops.source), processes.world_size)
    pending, size = _pending(crops.source, mine, writer), args.train_batch_size
    skipped, start = 0, len(mine) - len(pending)
    with progress("encoding", len(mine), "images", completed=start, shown=processes.is_main) as bar:
        for samples in _read(crops, pending, args):
            readable = {index: crop for index, crop in samples if not isinstance(crop, str)}
            skipped += _report(crops.source, dict(samples), bar)
            for indices in _of_one_shape(readable):
                pixels = torch.stack([readable[index]["pixel_values"] for index in indices]).to(device)
                latents = autoencoder.encode_clean(pixels, num_rows=size)
                rows = [_columns(index, readable[index]) for index in indices]
                writer.append([crops.source.id(index) for index in indices], latents, rows)
            bar.update(len(samples))
    return len(mine) - skipped


def _pending(images: CropSource, mine: range, writer: LatentWriter) -> list[int]:
    """Numbers of the images that have no latent yet."""
    pending: list[int] = []
    for first in range(0, len(mine), _LOOKED_UP):
        part = mine[first : first + _LOOKED_UP]
        is_done = writer.done_ids.contains([images.id(index) for index in part])
        pending += [index for index, done in zip(part, is_done, strict=True) if not done]
    return pending


def _report(images: CropSource, samples: Mapping[int, CropSample | str], bar: Bar) -> int:
    """Names the images that can't be read; returns their number."""
    reasons = [(index, reason) for index, reason in samples.items() if isinstance(reason, str)]
    for index, reason in reasons:
        bar.write(f"skipped {images.id(index)}: {reason}")
    return len(reasons)


def _columns(index: int, crop: CropSample) -> dict[str, Any]:
    label = None if crop["class_label"] == NO_LABEL else crop["class_label"]
    values = {INDEX: index, "label": label, CAPTION: crop["caption"]}
    return {name: value for name, value in values.items() if value is not None}


def _of_one_shape(crops: Mapping[int, CropSample]) -> list[list[int]]:
    """The numbers of crops, those of each shape together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, crop in crops.items():
        groups.setdefault(tuple(crop["pixel_values"].shape), []).append(index)
    return list(groups.values())


class _Crops(Dataset[tuple[int, Any]]):
    """Numbers of images with their crops, or with the reasons why they can't be read."""

    def __init__(self, crops: RandomCropDataset, indices: list[int]) -> None:
        self.crops, self.indices = crops, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, CropSample | str]:
        index = self.indices[position]
        try:
            return index, self.crops.crop_of(index)
        except UnreadableImageError as error:
            return index, error.reason


def _read(
    crops: RandomCropDataset, indices: list[int], args: Stage2Arguments
) -> Iterator[list[tuple[int, CropSample | str]]]:
    yield from DataLoader(
        _Crops(crops, indices),
        batch_size=args.train_batch_size,
        **loader_options(args),
        worker_init_fn=leave_signals_to_the_main_process,
        collate_fn=_as_they_are,
    )


def _as_they_are(samples: list[Any]) -> list[Any]:
    return samples
