"""Training arguments: one dataclass field with its help is the flag, the YAML key and the documentation.

Precedence: a flag wins over the `--config` file, which wins over the default.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml


def arg(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """A field with its help text; a callable default makes the value, e.g. `dict`."""
    metadata = {"help": help, "choices": choices}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class TrainingArguments:
    """What both stages share."""

    output_dir: str = arg("runs/unified-latents", "Folder for checkpoints, logs and the trained model.")
    seed: int = arg(0, "Seed of data order, crops and all noise.")

    # Data
    train_data_dir: str | None = arg(None, "Folder of images, searched recursively.")
    dataset_name: str | None = arg(None, "Hub data set of images, in place of a folder (needs the `data` extra).")
    dataset_config_name: str | None = arg(None, "Configuration of the hub data set.")
    image_column: str = arg("image", "Column of the hub data set that holds the image.")
    validation_data_dir: str | None = arg(
        None, "Folder of held-out images; without it some training images are held out."
    )
    validation_fraction: float = arg(
        0.02, "Fraction of the training images to hold out if there is no validation folder."
    )
    resolution: int = arg(64, "Side of the square crops, in pixels.")
    scale_min: float = arg(0.5, "Images are scaled by a random factor from here to 1 before cropping.")
    center_crop: bool = arg(False, "Crop at the centre rather than at random.")
    random_flip: bool = arg(True, "Mirror half of the crops.")
    cache_images_gb: float = arg(2.0, "Memory for decoded images, per process, in GB.")
    dataloader_num_workers: int = arg(0, "Worker processes that read and crop.")

    # Optimisation
    train_batch_size: int = arg(32, "Batch size per process.")
    gradient_accumulation_steps: int = arg(1, "Micro-batches per step.")
    max_train_steps: int | None = arg(10_000, "Optimiser steps in all.")
    num_train_epochs: int | None = arg(None, "Epochs, in place of max_train_steps.")
    learning_rate: float = arg(3e-4, "Peak learning rate.")
    lr_scheduler: str = arg("cosine", "Schedule of the learning rate, as diffusers' get_scheduler names it.")
    lr_warmup_steps: int = arg(200, "Steps of linear warm-up of the learning rate.")
    adam_beta1: float = arg(0.9, "AdamW β₁.")
    adam_beta2: float = arg(0.99, "AdamW β₂.")
    adam_weight_decay: float = arg(1e-4, "AdamW weight decay.")
    adam_epsilon: float = arg(1e-8, "AdamW ε.")
    max_grad_norm: float = arg(1.0, "Gradients are clipped to this norm.")
    use_ema: bool = arg(True, "Keep an exponential moving average of the weights, and validate and save with it.")
    ema_decay: float = arg(0.999, "Decay of the average, per step.")
    mixed_precision: str = arg("no", "Compute precision of the networks.", choices=("no", "bf16", "fp16"))
    allow_tf32: bool = arg(False, "Allow TF32 matrix products on GPUs that have them.")
    gradient_checkpointing: bool = arg(False, "Recompute activations in the backward pass to save memory.")
    compile: bool = arg(False, "torch.compile the networks' repeated blocks.")
    max_nonfinite_steps: int = arg(
        10, "Stop after this many non-finite steps in a row; single ones are skipped and counted."
    )

    # Validation, checkpoints, logs
    validation_steps: int = arg(500, "Steps between validations.")
    num_validation_images: int = arg(64, "Held-out crops per validation.")
    validation_resolution: int | None = arg(None, "Side of the validation crops; the training resolution if not given.")
    logging_steps: int = arg(20, "Steps between log lines; values are means over them.")
    checkpointing_steps: int = arg(500, "Steps between checkpoints.")
    checkpoints_total_limit: int | None = arg(3, "Checkpoints to keep.")
    resume_from_checkpoint: str | None = arg(None, "A checkpoint folder, or 'latest' (starts anew if there is none).")
    report_to: str | None = arg(None, "Tracker beside the JSON lines: tensorboard, wandb, …")
    tracker_project_name: str = arg("unified-latents", "Project name in the tracker.")
    dry_run: bool = arg(False, "Print the resolved configuration, model sizes and data, then exit.")

    def __post_init__(self) -> None:
        self._check_positive(
            "resolution", "train_batch_size", "gradient_accumulation_steps", "validation_steps", "logging_steps"
        )
        self._check_positive("checkpointing_steps", "num_validation_images", "learning_rate", "max_nonfinite_steps")
        if self.train_data_dir and self.dataset_name:
            raise ValueError("--train_data_dir and --dataset_name exclude each other, got both.")
        if (self.max_train_steps is None) == (self.num_train_epochs is None):
            self.max_train_steps = None if self.num_train_epochs is not None else TrainingArguments.max_train_steps
        if not 0 < self.scale_min <= 1:
            raise ValueError(f"--scale_min must be above 0 and at most 1, got {self.scale_min}.")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"--validation_fraction must be at least 0 and below 1, got {self.validation_fraction}.")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name} must be positive, got {getattr(self, name)}.")

    def to_yaml(self) -> str:
        """The resolved configuration, as a file for `--config`."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)


Arguments = TypeVar("Arguments", bound=TrainingArguments)


def parse_arguments(cls: type[Arguments], argv: Sequence[str] | None = None, description: str = "") -> Arguments:
    """Reads flags and the `--config` file; a wrong flag, key or value ends the program with status 2 and one sentence."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--config", type=Path, default=None, help="YAML file with any of these arguments as keys.")
    for name, kind in _field_types(cls).items():
        _add_flag(parser, cls.__dataclass_fields__[name], kind)
    flags = vars(parser.parse_args(argv))
    config_path = flags.pop("config")
    given = {name: value for name, value in flags.items() if value is not MISSING}
    try:
        config = {} if config_path is None else _read_config(cls, config_path)
        return cls(**{**config, **given})
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _field_types(cls: type[TrainingArguments]) -> dict[str, type]:
    """Field name → type, with `X | None` reduced to X."""
    kinds = {}
    for name, hint in typing.get_type_hints(cls).items():
        options = [o for o in typing.get_args(hint) if o is not type(None)]
        kinds[name] = options[0] if isinstance(hint, types.UnionType) else hint
    return kinds


def _add_flag(parser: argparse.ArgumentParser, spec: dataclasses.Field[Any], kind: type) -> None:
    default = spec.default if spec.default is not MISSING else spec.default_factory()  # type: ignore[misc]
    help = f"{spec.metadata['help']} (default: {default})".replace("%", "%%")
    options: dict[str, Any] = {"default": MISSING, "help": help, "choices": spec.metadata["choices"]}
    if kind is bool:
        options.update(action=argparse.BooleanOptionalAction)
        options.pop("choices")
    else:
        options.update(type=json.loads if typing.get_origin(kind) is dict else kind, metavar=spec.name.upper())
    parser.add_argument(f"--{spec.name}", **options)


def _read_config(cls: type[TrainingArguments], path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise ValueError(f"--config {path} must hold a mapping of arguments, got {type(config).__name__}.")
    kinds = _field_types(cls)
    for key, value in config.items():
        if key not in kinds:
            raise ValueError(f"--config {path} has an unknown key {key!r}.")
        config[key] = _checked(path, cls.__dataclass_fields__[key], kinds[key], value)
    return config


def _checked(path: Path, spec: dataclasses.Field[Any], kind: type, value: Any) -> Any:
    """The value of a config key in the field's type; YAML reads 1e-3 as text, and 1 where 1.0 is meant."""
    if value is None:
        return None
    kind = typing.get_origin(kind) or kind
    try:
        converted = kind(value) if kind in (int, float) and not isinstance(value, bool) else value
    except (TypeError, ValueError):
        converted = None
    choices = spec.metadata["choices"]
    if not isinstance(converted, kind) or (kind is int and converted != value) or (choices and value not in choices):
        legal = f"one of {', '.join(choices)}" if choices else f"of type {kind.__name__}"
        raise ValueError(f"--config {path}: {spec.name} must be {legal}, got {value!r}.")
    return converted
