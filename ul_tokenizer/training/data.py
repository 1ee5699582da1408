"""The images that a stage trains on and those that it holds out for validation, from any source."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.sources.base import CAPTION, BlockedSource, Source
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.sources.open import has_splits, open_source
from ul_tokenizer.sources.sizes import image_sizes
from ul_tokenizer.sources.subset import Subset
from ul_tokenizer.sources.table import TableSource
from ul_tokenizer.training.arguments import TrainingArguments
from ul_tokenizer.training.draws.aspect_ratios import AspectBuckets
from ul_tokenizer.training.draws.blocks import BlockOrder
from ul_tokenizer.training.draws.buckets import BucketedOrder
from ul_tokenizer.training.draws.crops import CropSource, Order, RandomCropDataset

MIN_HELD_OUT = 2  # readable images: validation compares two of them

# ----------------------------------------------------------------------------------------------------------------
# Sources
# ----------------------------------------------------------------------------------------------------------------


def make_sources(args: TrainingArguments) -> tuple[DecodedImages, DecodedImages]:
    """Opens the training images and the held-out images, which have no image in common.

    `--train_data_dir` and `--validation_data_dir` take everything that `open_source` finds on this machine,
    `--dataset_name` takes data sets of the hub as well.

    Returns:
        Training images, of which decoded ones are cached, and held-out images.

    Raises:
        ValueError: A source can't be opened, has no captions or has too few readable images.
        ImportError: Parquet files or a hub data set without the extra `data`.
    """
    flag = "dataset_name" if args.dataset_name else "train_data_dir"
    source = _open(args, flag, args.dataset_split)
    if args.validation_data_dir or args.validation_split:
        if args.validation_split:
            other, held_out = "validation_split", _open(args, flag, args.validation_split)
        else:
            other, held_out = "validation_data_dir", _open(args, "validation_data_dir")
        train: Source = source
        for name, part in (("--train_data_dir or --dataset_name", train), (f"--{other}", held_out)):
            if not any(_is_readable(DecodedImages(part), index) for index in range(len(part))):
                raise ValueError(f"{name} must hold readable images, got none among {len(part)}.")
    else:
        train, held_out = _split(source, args.validation_fraction, in_order=args.shuffle_buffer_size is not None)
    # Each worker has a cache of its own.
    cache_bytes = int(args.cache_images_gb * 1e9) // max(1, args.dataloader_num_workers)
    column = args.caption_column or CAPTION
    return DecodedImages(train, cache_bytes, caption_column=column), DecodedImages(held_out, caption_column=column)


def _open(args: TrainingArguments, flag: str, split: str = "train") -> Source:
    """The source that a flag names; what it leaves out is reported."""
    name = getattr(args, flag)
    if flag != "dataset_name" and not Path(name).exists():
        raise ValueError(f"--{flag} must be a folder, an archive or a parquet file that exists, got {name}.")
    if split != "train" and not has_splits(name):
        raise ValueError(
            "--dataset_split and --validation_split need a data set of the hub or a folder in its layout "
            f"(data/train-0.parquet), got {name}."
        )
    try:
        source = open_source(
            name,
            image_column=args.image_column,
            label_column=args.label_column,
            split=split,
            config=args.dataset_config_name if flag == "dataset_name" else None,
            keep_duplicates=True,
            random_access=args.shuffle_buffer_size is None,
        )
    except ValueError as error:
        raise ValueError(f"--{flag}: {error}") from error
    if args.caption_column is not None:
        _check_captions(source, args.caption_column, name)
    for sample, reason in source.skipped:
        say(f"skipped {sample}: {reason}")
    if source.skipped:
        say(f"--{flag}: {len(source.skipped)} files skipped, {len(source)} images.")
    return source


def _check_captions(source: Source, column: str, name: str) -> None:
    if isinstance(source, TableSource):
        if column not in source.column_names:
            raise ValueError(f"--caption_column must be one of {list(source.column_names)} in {name}, got {column!r}.")
    elif not DecodedImages(source, caption_column=column).has_captions:
        raise ValueError(f"--caption_column must be a column of the samples in {name}, got {column!r}.")


def _split(source: Source, fraction: float, in_order: bool) -> tuple[Subset, Subset]:
    """Training and held-out samples; the split depends on nothing but the number of samples and the fraction.

    With `in_order`, both parts keep the order of the source, in which its blocks are read.
    """
    images = DecodedImages(source)
    order = split_order(len(source))
    readable = (place for place, index in enumerate(order, 1) if _is_readable(images, int(index)))
    places = list(itertools.islice(readable, MIN_HELD_OUT + 1))  # one more, for training
    held_out = max([round(len(source) * fraction), *places[:MIN_HELD_OUT]])
    if len(places) <= MIN_HELD_OUT or held_out >= len(source):
        raise ValueError(
            f"--train_data_dir or --dataset_name must hold more than {MIN_HELD_OUT} readable images, as some are held "
            f"out for validation, got {len(places)} among {len(source)} with --validation_fraction {fraction}."
        )
    train = np.sort(order[held_out:]) if in_order else order[held_out:]
    return Subset(source, train), Subset(source, order[:held_out])


def split_order(count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A random order (count,) of samples, always the same, whose first ones are held out."""
    order: np.ndarray[Any, np.dtype[np.int64]] = torch.randperm(
        count, generator=torch.Generator().manual_seed(0)
    ).numpy()
    return order


def _is_readable(images: DecodedImages, index: int) -> bool:
    try:
        images.read(index)
    except UnreadableImageError:
        return False
    return True


# ----------------------------------------------------------------------------------------------------------------
# Crops
# ----------------------------------------------------------------------------------------------------------------


def make_training_crops(args: TrainingArguments, source: CropSource, multiple: int) -> RandomCropDataset:
    """The crops to train on, in the order and the sizes that the arguments ask for.

    Args:
        args: the arguments of the run.
        source: the training images.
        multiple: the networks need sides that are multiples of this.

    Raises:
        ValueError: the resolution is not a multiple, with several aspect ratios.
    """
    order: Order | None = None
    buckets = None
    if args.aspect_ratio_buckets and isinstance(source, DecodedImages):
        sizes = image_sizes(source.source, _origin(args))
        buckets = AspectBuckets.of(sizes, args.resolution, multiple)
        order = BucketedOrder(buckets.of_image, draws_per_step(args), args.seed)
    elif args.shuffle_buffer_size is not None and isinstance(source, DecodedImages):
        order = _block_order(source.source, args.shuffle_buffer_size, args.seed)
    return RandomCropDataset(
        source,
        args.resolution,
        args.seed,
        (args.scale_min, 1.0),
        args.random_flip,
        args.center_crop,
        scaling=args.scaling,
        order=order,
        buckets=buckets,
    )


def _block_order(source: Source, window: int, seed: int) -> BlockOrder | None:
    if not isinstance(source, BlockedSource):
        return None  # any order is equally fast
    order = BlockOrder(source.block_sizes(), window, seed)
    source.keep_blocks(order.most_blocks)
    return order


def _origin(args: TrainingArguments) -> str:
    """What the training images were opened from, as a name that is the same in every run."""
    if args.dataset_name:
        return f"{args.dataset_name} {args.dataset_config_name} {args.dataset_split}"
    return f"{Path(str(args.train_data_dir)).resolve()} {args.dataset_split}"


def draws_per_step(args: TrainingArguments) -> int:
    """Number of samples in an optimiser step, in all processes and micro-batches together."""
    return args.train_batch_size * args.gradient_accumulation_steps * PartialState().num_processes


def loader_options(args: TrainingArguments) -> dict[str, Any]:
    """Options of torch's `DataLoader` for its worker processes."""
    return {
        "num_workers": args.dataloader_num_workers,
        "prefetch_factor": args.dataloader_prefetch_factor,
        "persistent_workers": args.dataloader_persistent_workers,
    }


# ----------------------------------------------------------------------------------------------------------------
# Messages
# ----------------------------------------------------------------------------------------------------------------


def say(message: str, everywhere: bool = False) -> None:
    """Prints a note on standard error, from the main process only or from every process."""
    if everywhere or PartialState().is_main_process:
        print(message, file=sys.stderr, flush=True)
