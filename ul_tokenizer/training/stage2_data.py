"""What stage 2 trains on: images or stored latents, and which of the latents are held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Subset

from ul_tokenizer.latents.dataset import LatentDataset
from ul_tokenizer.latents.manifest import check_header
from ul_tokenizer.randomness import Stream, numpy_generator
from ul_tokenizer.sources.base import CAPTION, caption_in
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.training.data import make_sources
from ul_tokenizer.training.draws.buckets import BucketedOrder
from ul_tokenizer.training.draws.crops import NO_LABEL
from ul_tokenizer.training.draws.latents import LatentDraws
from ul_tokenizer.training.frozen import FrozenAutoencoder
from ul_tokenizer.training.stage2_arguments import Stage2Arguments

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass
class Stage2Data:
    """The data of a run: images, or latents."""

    class_names: tuple[str, ...]
    images: DecodedImages | None = None
    held_out_images: DecodedImages | None = None
    latents: LatentDataset | None = None


def open_data(args: Stage2Arguments) -> Stage2Data:
    """Opens the data, before any network is loaded.

    Raises:
        ValueError: the data can't be opened, has other classes in validation, too few samples, or no captions for
            a text encoder.
        ImportError: parquet files or a hub data set without the extra `data`.
    """
    if args.latent_dataset is not None:
        latents = LatentDataset(args.latent_dataset)
        if len(latents) <= args.num_validation_images:
            raise ValueError(
                f"--latent_dataset must hold more than the {args.num_validation_images} samples of "
                f"--num_validation_images, got {len(latents)}."
            )
        data = Stage2Data(latents.class_names, latents=latents)
    else:
        train, held_out = make_sources(args)
        if train.class_names != held_out.class_names:
            raise ValueError(
                f"--validation_data_dir must have the {len(train.class_names)} classes of the training images, "
                f"got {len(held_out.class_names)} classes or other names."
            )
        data = Stage2Data(train.class_names, train, held_out)
    if args.has_text:
        _check_captions(data, "text_encoder" if args.text_encoder_config is None else "text_encoder_config")
    return data


def _check_captions(data: Stage2Data, option: str) -> None:
    """Refuses data of which no sample has a caption; of many images, only some are looked at."""
    if data.images is not None:
        flag, column = "--train_data_dir or --dataset_name", data.images.caption_column
        has_captions = data.images.has_captions
    else:
        assert data.latents is not None  # there are images or latents
        flag, column, has_captions = "--latent_dataset", CAPTION, CAPTION in data.latents.column_names
    if not has_captions:
        raise ValueError(f"--{option} needs captions, got none in the column {column!r} of {flag}.")


# ----------------------------------------------------------------------------------------------------------------
# Stored latents
# ----------------------------------------------------------------------------------------------------------------


def check_latents(args: Stage2Arguments, latents: LatentDataset, autoencoder: FrozenAutoencoder) -> None:
    """Refuses latents of another autoencoder.

    Raises:
        ValueError: the number of channels or, for our autoencoders, the noise level differs.
    """
    expected = {"latent_channels": autoencoder.latent_channels}
    if autoencoder.is_ours:
        expected["latent_logsnr"] = autoencoder.vae.config.latent_logsnr
    check_header(latents.header, expected, f"Latent data set {args.latent_dataset}")


def latent_frames(args: Stage2Arguments, latents: LatentDataset | None) -> int | None:
    """Number of latent frames in most clips; None for images.

    Raises:
        ValueError: some clips have no more frames than the context, or images have none.
    """
    shapes = latents.shapes if latents is not None else {(0, 0, 0): 1}
    for shape in shapes:
        num_frames = shape[1] if len(shape) == 4 else None
        if args.num_context_latents and (num_frames is None or num_frames <= args.num_context_latents):
            got = "images" if num_frames is None else f"clips of {num_frames} frames"
            raise ValueError(
                f"--num_context_latents {args.num_context_latents} needs a --latent_dataset of clips with more latent "
                f"frames, got {got}."
            )
    commonest = max(shapes, key=lambda shape: shapes[shape])
    return commonest[1] if len(commonest) == 4 else None


def check_sizes(latents: LatentDataset, multiple: int) -> None:
    """Refuses latents of a height or width that the base model can't take.

    Raises:
        ValueError: a side is not a multiple of `multiple`.
    """
    for shape, count in latents.shapes.items():
        if any(side % multiple for side in shape[-2:]):
            raise ValueError(
                f"--latent_dataset must have sides that are multiples of {multiple} for this base model, got {count} "
                f"latents of {shape[-2]}×{shape[-1]}."
            )


class Split(NamedTuple):
    """Numbers of the samples of a latent data set."""

    train: Indices
    held_out: Indices


def split_latents(latents: LatentDataset, num_held_out: int) -> Split:
    """Chooses held-out samples: the same ones in every run, and of each class its share.

    They all have the commonest shape, so that validation can compare them in one batch.

    Raises:
        ValueError: fewer samples than `num_held_out` have this shape.
    """
    shapes = shape_numbers(latents)
    counts = np.bincount(shapes)
    candidates = np.flatnonzero(shapes == counts.argmax())
    if len(candidates) < num_held_out or len(latents) == num_held_out:
        raise ValueError(
            f"--num_validation_images must be at most the {len(candidates)} latents of the commonest shape, got "
            f"{num_held_out}."
        )
    held_out = candidates[_stratified(_labels(latents)[candidates], num_held_out)]
    return Split(np.setdiff1d(np.arange(len(latents)), held_out), held_out)


def _stratified(labels: Indices, count: int) -> Indices:
    """Positions of `count` samples, evenly spread over the samples in the order of their classes."""
    random = numpy_generator(0, Stream.HELD_OUT)
    by_class = np.lexsort((random.permutation(len(labels)), labels))
    return np.sort(by_class[((np.arange(count) + random.random()) * len(labels) / count).astype(np.int64)])


def _labels(latents: LatentDataset) -> Indices:
    """(N,), NO_LABEL for samples without a label."""
    labels = [NO_LABEL if label is None else int(label) for label in column_of(latents, "label")]
    return np.array(labels, np.int64)


def column_of(latents: LatentDataset, name: str) -> Iterator[Any]:
    """The values of a column for all samples; None where there is none."""
    for shard in latents.shards:
        values = shard.columns.get(name)
        yield from [None] * len(shard.ids) if values is None else values


def shape_numbers(latents: LatentDataset) -> Indices:
    """(N,), the number of each sample's shape among the shapes."""
    numbers: dict[tuple[int, ...], int] = {}
    parts = [
        np.full(shard.shape[0], numbers.setdefault(tuple(shard.shape[1:]), len(numbers))) for shard in latents.shards
    ]
    return np.concatenate(parts)


def draws_of(latents: LatentDataset, indices: Indices, seed: int, group_size: int) -> LatentDraws:
    """Draws from some samples; if they have several shapes, all draws of a group have one shape.

    Args:
        latents: the data set.
        indices: numbers of the samples.
        seed: seed of the order.
        group_size: number of draws in an optimiser step.
    """
    shapes = shape_numbers(latents)[indices]
    order = BucketedOrder(shapes, group_size, seed) if len(np.unique(shapes)) > 1 else None
    part = Subset(latents, indices)  # type: ignore[arg-type]  # an array, which worker processes share
    return LatentDraws(part, seed, order)


def captions_of(data: LatentDataset | DecodedImages | None, part: Indices | None = None) -> Iterator[str | None]:
    """The captions of all samples of a latent data set, or of a part of them, or of images."""
    if isinstance(data, LatentDataset):
        is_in = np.ones(len(data), bool) if part is None else np.isin(np.arange(len(data)), part)
        captions = zip(column_of(data, CAPTION), is_in, strict=True)
        yield from (caption_in({CAPTION: caption}) for caption, wanted in captions if wanted)
    elif data is not None:
        yield from (data.label_and_caption(index)[1] for index in range(len(data)))
