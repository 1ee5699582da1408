"""Training arguments: one dataclass field with its help is the flag, the YAML key and the documentation.

Precedence: a flag wins over the `--config` file, which wins over the default.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import yaml


class Legal(NamedTuple):
    """Which values an argument may have."""

    text: str
    check: Callable[[float], bool]


POSITIVE = Legal("above 0", lambda value: value > 0)
NOT_NEGATIVE = Legal("at least 0", lambda value: value >= 0)
AT_LEAST_2 = Legal("at least 2", lambda value: value >= 2)
FRACTION = Legal("from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_1 = Legal("at least 0 and below 1", lambda value: 0 <= value < 1)
POSITIVE_FRACTION = Legal("above 0 and at most 1", lambda value: 0 < value <= 1)


def arg(default: Any, help: str, legal: Legal | None = None) -> Any:
    """A field with its help text and its legal values."""
    return field(default=default, metadata={"help": help, "legal": legal})


@dataclass
class TrainingArguments:
    """What both stages share."""

    EXCLUSIVE: ClassVar[tuple[tuple[str, str], ...]] = (
        ("train_data_dir", "dataset_name"),
        ("max_train_steps", "num_train_epochs"),
    )
    """Pairs of which one at most is given; a flag beats the other one in a config file."""
    PATHS: ClassVar[tuple[str, ...]] = ("output_dir", "train_data_dir", "validation_data_dir", "resume_from_checkpoint")
    """Arguments in which a leading ~ is the home folder."""
    DEFAULT_STEPS: ClassVar[int] = 10_000

    output_dir: str = arg("runs/unified-latents", "Folder for checkpoints, logs and the trained model.")
    seed: int = arg(0, "Seed of data order, crops and all noise.", NOT_NEGATIVE)

    # Data
    train_data_dir: str | None = arg(None, "Folder of images, searched recursively.")
    dataset_name: str | None = arg(None, "Hub data set of images, in place of a folder (needs the `data` extra).")
    dataset_config_name: str | None = arg(None, "Configuration of the hub data set.")
    image_column: str = arg("image", "Column of the hub data set that holds the image.")
    label_column: str | None = arg(None, "Column of the hub data set that holds the class.")
    validation_data_dir: str | None = arg(
        None, "Folder of held-out images; without it some training images are held out."
    )
    validation_fraction: float = arg(
        0.02, "Fraction of the training images to hold out if there is no validation folder.", BELOW_1
    )
    resolution: int = arg(64, "Side of the square crops, in pixels.", POSITIVE)
    scale_min: float = arg(
        0.5, "Images are scaled by a random factor from here to 1 before cropping.", POSITIVE_FRACTION
    )
    center_crop: bool = arg(False, "Crop at the centre rather than at random.")
    random_flip: bool = arg(True, "Mirror half of the crops.")
    cache_images_gb: float = arg(2.0, "Memory for decoded images, per process, in GB.", NOT_NEGATIVE)
    dataloader_num_workers: int = arg(0, "Worker processes that read and crop.", NOT_NEGATIVE)

    # Optimisation
    train_batch_size: int = arg(32, "Batch size per process.", POSITIVE)
    gradient_accumulation_steps: int = arg(1, "Micro-batches per step.", POSITIVE)
    max_train_steps: int | None = arg(
        None, f"Optimiser steps in all; {DEFAULT_STEPS} if epochs aren't given either.", POSITIVE
    )
    num_train_epochs: int | None = arg(None, "Epochs, in place of max_train_steps.", POSITIVE)
    learning_rate: float = arg(3e-4, "Peak learning rate.", POSITIVE)
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = arg("cosine", "Schedule of the learning rate, one of diffusers'.")
    lr_warmup_steps: int = arg(200, "Steps of linear warm-up of the learning rate.", NOT_NEGATIVE)
    adam_beta1: float = arg(0.9, "AdamW β₁.", BELOW_1)
    adam_beta2: float = arg(0.99, "AdamW β₂.", BELOW_1)
    adam_weight_decay: float = arg(1e-4, "AdamW weight decay.", NOT_NEGATIVE)
    adam_epsilon: float = arg(1e-8, "AdamW ε.", POSITIVE)
    max_grad_norm: float = arg(1.0, "Gradients are clipped to this norm.", POSITIVE)
    use_ema: bool = arg(True, "Keep an exponential moving average of the weights, and validate and save with it.")
    ema_decay: float = arg(0.999, "Decay of the average, per step.", FRACTION)
    mixed_precision: Literal["no", "bf16", "fp16"] = arg("no", "Compute precision of the networks.")
    allow_tf32: bool = arg(False, "Allow TF32 matrix products and convolutions on GPUs that have them.")
    gradient_checkpointing: bool = arg(False, "Recompute activations in the backward pass to save memory.")
    compile: bool = arg(False, "torch.compile the networks' repeated blocks.")
    max_nonfinite_steps: int = arg(
        10, "Stop after this many non-finite steps in a row; single ones are skipped and counted.", POSITIVE
    )

    # Validation, checkpoints, logs
    validation_steps: int = arg(500, "Steps between validations.", POSITIVE)
    num_validation_images: int = arg(64, "Held-out crops per validation.", AT_LEAST_2)
    validation_resolution: int | None = arg(
        None, "Side of the validation crops; the training resolution if not given.", POSITIVE
    )
    logging_steps: int = arg(20, "Steps between log lines; values are means over them.", POSITIVE)
    checkpointing_steps: int = arg(500, "Steps between checkpoints.", POSITIVE)
    checkpoints_total_limit: int | None = arg(3, "Checkpoints to keep; null keeps all.", POSITIVE)
    resume_from_checkpoint: str | None = arg(None, "A checkpoint folder, or 'latest' (starts anew if there is none).")
    report_to: str | None = arg(None, "Tracker beside the JSON lines: tensorboard, wandb, …")
    tracker_project_name: str = arg("unified-latents", "Project name in the tracker.")
    push_to_hub: bool = arg(False, "Push the model to the hub at checkpoints and at the end, while training goes on.")
    hub_model_id: str | None = arg(None, "Repository to push to, owner/name; the output folder's name if not given.")
    hub_private_repo: bool | None = arg(None, "Make that repository private; null is your default on the hub.")
    hub_token: str | None = arg(None, "Token of the hub; better `hf auth login`, since others see a command's flags.")
    dry_run: bool = arg(False, "Print the resolved configuration, model sizes and data, then exit.")

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            _check_legal(spec, getattr(self, spec.name))
        for one, other in self.EXCLUSIVE:
            if getattr(self, one) and getattr(self, other):
                raise ValueError(f"--{one} and --{other} exclude each other, got both.")
        if self.dataset_config_name and not self.dataset_name:
            raise ValueError("--dataset_config_name needs --dataset_name.")
        if self.num_train_epochs is None and self.max_train_steps is None:
            self.max_train_steps = self.DEFAULT_STEPS
        for name in self.PATHS:
            if getattr(self, name):
                setattr(self, name, os.path.expanduser(getattr(self, name)))
        if self.train_data_dir and self.validation_data_dir and _overlap(self.train_data_dir, self.validation_data_dir):
            raise ValueError(
                "--train_data_dir and --validation_data_dir must not lie within one another, "
                f"got {self.train_data_dir} and {self.validation_data_dir}."
            )

    def to_yaml(self) -> str:
        """The resolved configuration, as a file for `--config`."""
        values = dataclasses.asdict(self)
        del values["dry_run"], values["hub_token"]
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _overlap(one: str, other: str) -> bool:
    a, b = Path(one).resolve(), Path(other).resolve()
    return a.is_relative_to(b) or b.is_relative_to(a)


def _check_legal(spec: dataclasses.Field[Any], value: Any) -> None:
    legal: Legal | None = spec.metadata.get("legal")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"--{spec.name} must be a finite number, got {value}.")
    if legal is not None and value is not None and not legal.check(value):
        raise ValueError(f"--{spec.name} must be {legal.text}, got {value}.")
