"""The images that a stage trains on and those that it holds out for validation, from any source."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.sources.base import Source
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.sources.open import open_source
from ul_tokenizer.sources.subset import Subset
from ul_tokenizer.training.arguments import TrainingArguments

MIN_HELD_OUT = 2  # readable images: validation compares two of them


def make_sources(args: TrainingArguments) -> tuple[DecodedImages, DecodedImages]:
    """Opens the training images and the held-out images, which have no image in common.

    `--train_data_dir` and `--validation_data_dir` take everything that `open_source` finds on this machine,
    `--dataset_name` takes data sets of the hub as well.

    Returns:
        Training images, of which decoded ones are cached, and held-out images.

    Raises:
        ValueError: A source can't be opened or has too few readable images.
        ImportError: Parquet files or a hub data set without the extra `data`.
    """
    source = _open(args, "dataset_name" if args.dataset_name else "train_data_dir")
    if args.validation_data_dir:
        train, held_out = source, _open(args, "validation_data_dir")
        for flag, part in (("--train_data_dir or --dataset_name", train), ("--validation_data_dir", held_out)):
            if not any(_is_readable(DecodedImages(part), index) for index in range(len(part))):
                raise ValueError(f"{flag} must hold readable images, got none among {len(part)}.")
    else:
        train, held_out = _split(source, args.validation_fraction)
    return DecodedImages(train, int(args.cache_images_gb * 1e9)), DecodedImages(held_out)


def _open(args: TrainingArguments, flag: str) -> Source:
    """The source that a flag names; what it leaves out is reported."""
    name = getattr(args, flag)
    if flag != "dataset_name" and not Path(name).exists():
        raise ValueError(f"--{flag} must be a folder, an archive or a parquet file that exists, got {name}.")
    try:
        source = open_source(
            name,
            image_column=args.image_column,
            label_column=args.label_column,
            config=args.dataset_config_name if flag == "dataset_name" else None,
            keep_duplicates=True,
            random_access=True,
        )
    except ValueError as error:
        raise ValueError(f"--{flag}: {error}") from error
    for sample, reason in source.skipped:
        say(f"skipped {sample}: {reason}")
    if source.skipped:
        say(f"--{flag}: {len(source.skipped)} files skipped, {len(source)} images.")
    return source


def _split(source: Source, fraction: float) -> tuple[Subset, Subset]:
    """Training and held-out samples; the split depends on nothing but the number of samples and the fraction."""
    images = DecodedImages(source)
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0)).numpy()
    readable = (place for place, index in enumerate(order, 1) if _is_readable(images, int(index)))
    places = list(itertools.islice(readable, MIN_HELD_OUT + 1))  # one more, for training
    held_out = max([round(len(source) * fraction), *places[:MIN_HELD_OUT]])
    if len(places) <= MIN_HELD_OUT or held_out >= len(source):
        raise ValueError(
            f"--train_data_dir or --dataset_name must hold more than {MIN_HELD_OUT} readable images, as some are held "
            f"out for validation, got {len(places)} among {len(source)} with --validation_fraction {fraction}."
        )
    return Subset(source, order[held_out:]), Subset(source, order[:held_out])


def _is_readable(images: DecodedImages, index: int) -> bool:
    try:
        images.read(index)
    except UnreadableImageError:
        return False
    return True


def say(message: str, everywhere: bool = False) -> None:
    """Prints a note on standard error, from the main process only or from every process."""
    if everywhere or PartialState().is_main_process:
        print(message, file=sys.stderr, flush=True)
