"""Where a stage's images come from: a folder or a hub data set, and the part that is held out for validation."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.sources.image_folder import HubImages, ImageFolder, ImageSource, SubsetOfImages
from ul_tokenizer.training.arguments import TrainingArguments

MIN_HELD_OUT = 2  # readable images: validation compares two of them


def make_sources(args: TrainingArguments) -> tuple[ImageSource, ImageSource]:
    """Training and held-out images, disjoint.

    Raises:
        ValueError: too few readable images.
        ImportError: a hub data set without the extra that reads it.
    """
    train = _make_source(args)
    if not args.validation_data_dir:
        return _split(train, args.validation_fraction)
    held_out = _make_folder("validation_data_dir", args.validation_data_dir)
    for flag, source in (("--train_data_dir or --dataset_name", train), ("--validation_data_dir", held_out)):
        if not any(_is_readable(source, index) for index in range(len(source))):
            raise ValueError(f"{flag} must hold readable images, got none among {len(source)}.")
    return train, held_out


def _split(source: ImageSource, fraction: float) -> tuple[ImageSource, ImageSource]:
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0)).tolist()
    readable = (place for place, index in enumerate(order, 1) if _is_readable(source, index))
    places = list(itertools.islice(readable, MIN_HELD_OUT + 1))  # one more, for training
    held_out = max([round(len(source) * fraction), *places[:MIN_HELD_OUT]])
    if len(places) <= MIN_HELD_OUT or held_out >= len(source):
        raise ValueError(
            f"--train_data_dir or --dataset_name must hold more than {MIN_HELD_OUT} readable images, as some are held "
            f"out for validation, got {len(places)} among {len(source)} with --validation_fraction {fraction}."
        )
    return SubsetOfImages(source, order[held_out:]), SubsetOfImages(source, order[:held_out])


def _is_readable(source: ImageSource, index: int) -> bool:
    try:
        source.read(index)
    except UnreadableImageError:
        return False
    return True


def _make_source(args: TrainingArguments) -> ImageSource:
    if args.dataset_name:
        return HubImages(
            args.dataset_name,
            args.dataset_config_name,
            image_column=args.image_column,
            label_column=args.label_column,
        )
    assert args.train_data_dir is not None  # the stage's arguments see to it that one of the two is given
    return _make_folder("train_data_dir", args.train_data_dir, int(args.cache_images_gb * 1e9))


def _make_folder(flag: str, path: str, cache_bytes: int = 0) -> ImageFolder:
    try:
        source = ImageFolder(Path(path), cache_bytes=cache_bytes)
    except ValueError as error:
        raise ValueError(f"--{flag}: {error}") from None
    for skipped in source.skipped:
        say(f"skipped {skipped.path}: {skipped.reason}")
    if source.skipped:
        say(f"--{flag}: {len(source.skipped)} files skipped, {len(source)} images.")
    return source


def say(message: str, everywhere: bool = False) -> None:
    """A note on standard error, from the main process or from all."""
    if everywhere or PartialState().is_main_process:
        print(message, file=sys.stderr, flush=True)
