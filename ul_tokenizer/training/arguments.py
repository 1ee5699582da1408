"""Training arguments: one dataclass field with its help text is the flag, the YAML key and the documentation.

A flag wins over the `--config` file, and the file wins over the default.
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

from ul_tokenizer.training.kinds import Kind, kinds_of


class Legal(NamedTuple):
    """The values that a number may have."""

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
    """Arguments of all stages; error messages name them by their flags.

    Raises:
        ValueError: an argument has an illegal value, or several contradict each other.
    """

    EXCLUSIVE: ClassVar[tuple[tuple[str, str], ...]] = (
        ("train_data_dir", "dataset_name"),
        ("validation_data_dir", "validation_split"),
        ("max_train_steps", "num_train_epochs"),
    )
    """Pairs of arguments that exclude each other; a flag replaces the other one if a config file sets it."""
    PATHS: ClassVar[tuple[str, ...]] = (
        "output_dir",
        "train_data_dir",
        "validation_data_dir",
        "validation_feature_weights",
        "resume_from_checkpoint",
    )
    """Arguments that are paths: a leading ~ means the home folder, and a `Path` is taken as well as a text."""
    DATA: ClassVar[tuple[str, ...]] = ("train_data_dir", "dataset_name", "train_video_dir", "latent_dataset")
    """Arguments of any stage that name training data."""
    RENAMED: ClassVar[dict[str, str]] = {}
    """Old name → new name, for a helpful error message."""
    GROUPS: ClassVar[dict[str, str]] = {
        "train_data_dir": "data",
        "train_batch_size": "optimisation",
        "use_ema": "averages of the weights",
        "mixed_precision": "speed and memory",
        "max_nonfinite_steps": "optimisation",
        "validation_steps": "validation",
        "logging_steps": "logs, checkpoints and processes",
        "push_to_hub": "hub",
        "dry_run": "dry run",
    }
    """First argument of a group → its title in `--help`, in the order of the help. Those of one title are one group."""
    DEFAULT_STEPS: ClassVar[int] = 10_000
    VALIDATION_METRICS: ClassVar[tuple[str, ...]] = ()
    """Names that `validation_metrics` may have in this stage."""

    output_dir: str = arg("runs/unified-latents", "Write checkpoints, logs and the trained model to this folder.")
    seed: int = arg(0, "Seed for the order of the data, the crops and all noise.", NOT_NEGATIVE)

    # Data
    train_data_dir: str | None = arg(
        None, "Train on a folder of images, of .tar archives or of .parquet files, or on one such file."
    )
    dataset_name: str | None = arg(
        None, "Train on this data set from the Hugging Face Hub instead of --train_data_dir (needs the `data` extra)."
    )
    dataset_config_name: str | None = arg(None, "Configuration of the hub data set.")
    dataset_split: str = arg("train", "Split to train on, of a hub data set or of a folder in its layout.")
    validation_split: str | None = arg(None, "Validate on this split of the training data set.")
    image_column: str = arg("image", "Column with the images, in parquet files and hub data sets.")
    label_column: str | None = arg(None, "Column with the class labels, in parquet files and hub data sets.")
    caption_column: str | None = arg(
        None,
        "Column with the captions, in tables, in metadata files of folders or in JSON files of .tar archives. Without "
        "it, the column caption is used if there is one; in .tar archives, that is the .txt file of a sample.",
    )
    validation_data_dir: str | None = arg(
        None, "Validate on these images, in any form of --train_data_dir; by default some training images are held out."
    )
    validation_fraction: float = arg(
        0.02, "Fraction of the training images to hold out if no validation folder is given.", BELOW_1
    )
    resolution: int = arg(64, "Side of the square crops, in pixels.", POSITIVE)
    scaling: Literal["native", "short_side"] = arg(
        "native",
        "native crops windows of the images at their own scale. short_side first scales each image so that its "
        "shorter side is the resolution, as `encode-dataset` does, or up to 1 / --scale_min times as long.",
    )
    scale_min: float = arg(
        0.5,
        "Before cropping, scale each image by a random factor between this value and 1; with --scaling short_side, "
        "make the crop's side a random fraction between this value and 1 of the shorter side.",
        POSITIVE_FRACTION,
    )
    center_crop: bool = arg(False, "Crop at the centre instead of at a random position.")
    random_flip: bool = arg(True, "Mirror each crop with probability 0.5.")
    aspect_ratio_buckets: bool = arg(
        False,
        "Train on crops of several aspect ratios, up to 2:1, with about as many pixels as a square. Each step has "
        "one of them. Needs --scaling short_side.",
    )
    shuffle_buffer_size: int | None = arg(
        None,
        "Shuffle this number of samples at a time instead of all of them. Archives and parts of tables then come in a "
        "new order in each epoch, and tables are read in place; by default, they are first copied to the cache of the "
        "library datasets. Each worker keeps about this number of encoded images of a table in memory.",
        POSITIVE,
    )
    cache_images_gb: float = arg(
        2.0, "Memory for decoded images in each process, in GB; its workers share it.", NOT_NEGATIVE
    )
    dataloader_num_workers: int = arg(
        0, "Number of worker processes that read and crop images; 0 uses the main process.", NOT_NEGATIVE
    )
    dataloader_prefetch_factor: int | None = arg(
        None, "Number of batches that each worker prepares in advance. PyTorch's default is 2.", POSITIVE
    )
    dataloader_persistent_workers: bool = arg(
        False, "Keep workers alive after the end of the data. Within a run they are kept alive in any case."
    )

    # Optimisation
    train_batch_size: int = arg(32, "Batch size in each process.", POSITIVE)
    gradient_accumulation_steps: int = arg(1, "Number of batches per optimiser step.", POSITIVE)
    global_batch_size: int | None = arg(
        None,
        "Samples per optimiser step on all processes together. The number of batches per step then follows from it, "
        "and --gradient_accumulation_steps is not used.",
        POSITIVE,
    )
    max_train_steps: int | None = arg(
        None, f"Number of optimiser steps; {DEFAULT_STEPS} if the number of epochs is not given either.", POSITIVE
    )
    num_train_epochs: int | None = arg(None, "Number of epochs, instead of --max_train_steps.", POSITIVE)
    optimizer: Literal["adamw", "adamw8bit", "muon"] = arg(
        "adamw",
        "Optimiser. adamw8bit keeps its state in 8 bits (needs the package bitsandbytes). muon uses Muon for the "
        "matrices of the transformer blocks and AdamW for all other weights.",
    )
    learning_rate: float = arg(3e-4, "Highest learning rate.", POSITIVE)
    lr_scheduler: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "rsqrt",
        "warmup_stable_decay",
    ] = arg(
        "cosine",
        "Learning rate schedule: one of diffusers, rsqrt (constant, then falling with the inverse square root of the "
        "step) or warmup_stable_decay (constant, then falling in the last --lr_decay_steps).",
    )
    lr_warmup_steps: int = arg(200, "Number of steps over which the learning rate rises from 0.", NOT_NEGATIVE)
    lr_min_ratio: float = arg(
        0.0, "The learning rate falls to this fraction of its highest value instead of to 0.", FRACTION
    )
    lr_num_cycles: int = arg(1, "Number of restarts of cosine_with_restarts.", POSITIVE)
    lr_power: float = arg(1.0, "Exponent of polynomial.", POSITIVE)
    lr_rsqrt_steps: int | None = arg(
        None, "Step after which rsqrt falls. Without it, this is the end of the warm-up.", POSITIVE
    )
    lr_decay_steps: int | None = arg(
        None, "Number of steps over which warmup_stable_decay falls; without it, a fifth of all steps.", POSITIVE
    )
    lr_decay_shape: Literal["linear", "cosine", "sqrt"] = arg(
        "linear", "How warmup_stable_decay falls; sqrt falls fast first, as 1 − √(progress)."
    )
    adam_beta1: float = arg(0.9, "β₁ of AdamW.", BELOW_1)
    adam_beta2: float = arg(0.99, "β₂ of AdamW.", BELOW_1)
    adam_weight_decay: float = arg(1e-4, "Weight decay of the optimiser.", NOT_NEGATIVE)
    adam_epsilon: float = arg(1e-8, "ε of AdamW.", POSITIVE)
    muon_momentum: float = arg(0.95, "Momentum of Muon.", BELOW_1)
    max_grad_norm: float = arg(1.0, "Clip the gradient to this norm.", POSITIVE)
    clip_grad_norm: Literal["parts", "global"] = arg(
        "parts",
        "Clip the gradient of each network by its own norm (encoder, decoder and prior in stage 1), or all of them by "
        "their common norm.",
    )
    use_ema: bool = arg(
        True, "Keep an exponential moving average of the weights; validate it and save it as the result."
    )
    ema_decay: tuple[float, ...] = arg(
        (0.999,),
        "Decay of the moving average per step. Several decays, separated by commas, make several averages: the first "
        "one is validated and saved as the result, the others are saved in subfolders.",
        FRACTION,
    )
    ema_std: tuple[float, ...] = arg(
        (),
        "Also keep averages whose length grows with the training (power functions as in EDM2), of these relative "
        "standard deviations, separated by commas. After the training, "
        "conversion/training_checkpoint_to_diffusers.py makes an average of any other length out of two or more.",
        Legal("above 0 and at most 0.28", lambda value: 0 < value <= 0.28),
    )
    mixed_precision: Literal["no", "bf16", "fp16"] | None = arg(
        None, "Precision in which the networks compute. By default, that of accelerate's launcher, or no without one."
    )
    allow_tf32: bool = arg(False, "Allow TF32 in matrix products and convolutions on GPUs that support it.")
    cudnn_benchmark: bool = arg(
        False, "Let cuDNN time its convolutions and take the fastest. This pays if all batches have the same size."
    )
    gradient_checkpointing: bool = arg(
        False, "Save memory by computing activations a second time in the backward pass."
    )
    checkpointing_policy: Literal["full", "selective"] = arg(
        "full",
        "What --gradient_checkpointing computes a second time. full: everything in a block. selective: only what is "
        "cheap; the results of matrix products, convolutions and attention are kept.",
    )
    compile: bool = arg(
        False,
        "Compile networks and loss with torch.compile, which takes minutes at the start. It can pay on GPUs. On "
        "CPUs, steps are no faster.",
    )
    max_nonfinite_steps: int = arg(
        10, "Stop after this number of non-finite gradients in a row. Fewer are skipped and counted.", POSITIVE
    )

    # Validation, checkpoints, logs
    validation_steps: int = arg(500, "Number of steps between validations.", POSITIVE)
    num_validation_images: int = arg(64, "Number of held-out crops in each validation.", AT_LEAST_2)
    validation_resolution: int | None = arg(
        None, "Side of the validation crops, in pixels. Without it, they have the training resolution.", POSITIVE
    )
    validation_metrics: str | None = arg(None, "Metrics to log at validation, separated by commas.")
    validation_features: str = arg(
        "efficientnet-lite0", "Network whose features the metric kid compares, as named in `ul-tokenizer evaluate`."
    )
    validation_feature_weights: str | None = arg(
        None, "File or folder with the weights of that network, if they are not installed with it."
    )
    logging_steps: int = arg(20, "Number of steps between log entries, which contain means over these steps.", POSITIVE)
    checkpointing_steps: int = arg(500, "Number of steps between checkpoints.", POSITIVE)
    async_checkpoints: bool = arg(
        True,
        "Write checkpoints while the training goes on, from a copy of weights, averages and optimiser in the CPU's "
        "memory.",
    )
    checkpoints_total_limit: int | None = arg(3, "Number of newest checkpoints to keep; null keeps all.", POSITIVE)
    resume_from_checkpoint: str | None = arg(
        None, "Resume from this checkpoint folder, or from the 'latest' one if there is any."
    )
    process_group_timeout_minutes: float | None = arg(
        None,
        "Longest time that processes wait for one another, such as for a validation by the main process. By default, "
        "torch's timeout applies.",
        POSITIVE,
    )
    report_to: str | None = arg(
        None,
        "Experiment tracker to use in addition to the JSON lines, such as tensorboard or wandb. It also gets the "
        "arguments and the validation pictures.",
    )
    tracker_project_name: str = arg("unified-latents", "Project name for the experiment tracker.")
    push_to_hub: bool = arg(
        False, "Push the model to the hub at every checkpoint and at the end, without pausing the training."
    )
    hub_model_id: str | None = arg(
        None, "Repository to push to, as owner/name. Without it, the name of the output folder is used."
    )
    hub_private_repo: bool | None = arg(
        None, "Make a new repository private. Without it, your default on the hub applies."
    )
    hub_token: str | None = arg(
        None, "Access token for the hub. `hf auth login` is safer, because other users can see the flags of a command."
    )
    dry_run: bool = arg(
        False,
        "Print the resolved configuration, the sizes of the networks and what the run needs: FLOPs, memory, GPU-hours. "
        "Needs neither data nor a trained autoencoder, and trains nothing; data that are given are checked, too.",
    )
    dry_run_gpus: int = arg(1, "Number of GPUs for which a dry run plans.", POSITIVE)
    dry_run_gpu: Literal["h100", "a100", "l40s", "rtx4090"] = arg("h100", "GPU for which a dry run plans.")
    dry_run_utilization: float = arg(
        0.4, "Fraction of the GPU's peak FLOP/s with which a dry run plans.", POSITIVE_FRACTION
    )

    def __post_init__(self) -> None:
        for name in self.PATHS:
            if getattr(self, name):
                setattr(self, name, os.path.expanduser(getattr(self, name)))
        kinds = kinds_of(type(self))
        for spec in dataclasses.fields(self):
            setattr(self, spec.name, _checked(spec, kinds[spec.name], getattr(self, spec.name)))
        for one, other in self.EXCLUSIVE:
            if getattr(self, one) and getattr(self, other):
                raise ValueError(f"--{one} and --{other} exclude each other, got both.")
        if self.dataset_config_name and not self.dataset_name:
            raise ValueError("--dataset_config_name needs --dataset_name.")
        self._check_crops_and_workers()
        if self.num_train_epochs is None and self.max_train_steps is None:
            self.max_train_steps = self.DEFAULT_STEPS
        if self.train_data_dir and self.validation_data_dir and _overlap(self.train_data_dir, self.validation_data_dir):
            raise ValueError(
                "--train_data_dir and --validation_data_dir must not lie within one another, "
                f"got {self.train_data_dir} and {self.validation_data_dir}."
            )

        self._check_metrics()
        self._check_optimisation()

    def _check_optimisation(self) -> None:
        for option, schedule in (("lr_rsqrt_steps", "rsqrt"), ("lr_decay_steps", "warmup_stable_decay")):
            if getattr(self, option) is not None and self.lr_scheduler != schedule:
                raise ValueError(f"--{option} needs --lr_scheduler {schedule}, got {self.lr_scheduler}.")
        for name in ("ema_decay", "ema_std"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"--{name} must be different numbers, got {','.join(map(str, values))}.")
        if not self.ema_decay:
            raise ValueError("--ema_decay must have at least one number; use --no-use_ema for no averages.")

    def _check_crops_and_workers(self) -> None:
        if self.aspect_ratio_buckets and self.scaling != "short_side":
            raise ValueError(f"--aspect_ratio_buckets needs --scaling short_side, got {self.scaling}.")
        if self.aspect_ratio_buckets and self.shuffle_buffer_size is not None:
            raise ValueError("--aspect_ratio_buckets and --shuffle_buffer_size exclude each other, got both.")
        for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
            if getattr(self, name) and not self.dataloader_num_workers:
                raise ValueError(f"--{name} needs --dataloader_num_workers above 0, got 0.")

    def _check_metrics(self) -> None:
        legal = self.VALIDATION_METRICS
        if not set(self.metric_names) <= set(legal):
            several = f"one or more of {', '.join(legal)}, separated by commas" if len(legal) > 1 else legal[0]
            raise ValueError(f"--validation_metrics must be {several}, or null, got {self.validation_metrics!r}.")

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names in `validation_metrics`, each once."""
        names = () if self.validation_metrics is None else self.validation_metrics.split(",")
        return tuple(dict.fromkeys(name.strip() for name in names))

    @property
    def names_data(self) -> bool:
        """Whether any argument names training data; only a dry run can do without."""
        return any(getattr(self, name, None) for name in self.DATA)

    def shareable(self) -> dict[str, Any]:
        """The resolved configuration, name → value, without the dry run's arguments and the hub's token."""
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if not k.startswith("dry_run") and k != "hub_token"}

    def to_yaml(self) -> str:
        """The text of a file for `--config` with what `shareable` returns."""
        return yaml.safe_dump(self.shareable(), sort_keys=False, allow_unicode=True)


def _overlap(one: str, other: str) -> bool:
    a, b = Path(one).resolve(), Path(other).resolve()
    return a.is_relative_to(b) or b.is_relative_to(a)


def _checked(spec: dataclasses.Field[Any], kind: Kind, value: Any) -> Any:
    try:
        value = kind.checked(value)
    except ValueError as error:
        raise ValueError(f"--{spec.name} {error}.") from error
    legal: Legal | None = spec.metadata.get("legal")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"--{spec.name} must be a finite number, got {number}.")
        if legal is not None and number is not None and not legal.check(number):
            raise ValueError(f"--{spec.name} must be {legal.text}, got {number}.")
    return value
