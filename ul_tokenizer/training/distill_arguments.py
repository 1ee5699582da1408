"""Arguments of the distillation. Importing them imports no networks, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ul_tokenizer.models.presets import PRESETS
from ul_tokenizer.training.arguments import AT_LEAST_2, BELOW_1, POSITIVE, Legal, TrainingArguments, arg

HALF_OR_MORE = Legal("from 0.5 to 1", lambda value: 0.5 <= value <= 1)


@dataclass
class DistillArguments(TrainingArguments):
    """Arguments of `distill_decoder`; `ul-tokenizer train distill --help` explains each of them.

    Raises:
        ValueError: an argument has an illegal value, or several contradict each other.
    """

    PATHS: ClassVar[tuple[str, ...]] = (*TrainingArguments.PATHS, "pretrained_model_name_or_path")
    GROUPS: ClassVar[dict[str, str]] = {
        "train_data_dir": "data",
        "pretrained_model_name_or_path": "networks",
        "objective": "objective",
        **TrainingArguments.GROUPS,
    }
    VALIDATION_METRICS: ClassVar[tuple[str, ...]] = ("psnr", "ssim", "ms_ssim", "lpips", "kid")

    # Networks
    pretrained_model_name_or_path: str | None = arg(
        None,
        "Distil the decoder of this autoencoder (bundled name, folder or hub id). If it was distilled before, the "
        "training goes on with its student, and with its teacher in the subfolder `teacher`.",
    )
    revision: str | None = arg(None, "Branch, tag or commit of the pretrained model on the hub.")
    num_inference_steps: int = arg(
        1,
        "Decoding steps of the student: its default, and with --objective moments those that it is trained for.",
        POSITIVE,
    )
    teacher_inference_steps: int = arg(8, "Decoding steps of the teacher, which are deterministic.", AT_LEAST_2)
    dropout: float = arg(0.0, "Dropout probability in the student's decoder.", BELOW_1)
    save_teacher: bool = arg(
        True, "Save the teacher, too, in the subfolder `teacher`. Its single step gives the posterior mean."
    )

    autoencoder_preset: str | None = arg(
        None,
        "Configuration of the autoencoder for a dry run, where a trained one is not needed: one of the presets of "
        "`train autoencoder`.",
    )

    # Objective
    objective: Literal["pairs", "moments"] = arg(
        "pairs",
        "pairs teaches the student the image that the teacher decodes from the same noise. moments matches the "
        "moments of the student's images to those of the teacher (arXiv 2406.04103), which keeps more detail; it "
        "trains a second network and is best started from a student of pairs.",
    )
    start_fraction: float = arg(
        0.5,
        "Fraction of the samples that start from noise, as a single step does. The others start at later levels, "
        "which several steps need.",
        HALF_OR_MORE,
    )
    loss_weighting: Literal["x", "sigmoid"] = arg(
        "x",
        "Weight of the squared error of the image, by noise level. x gives all levels the same weight; sigmoid gives "
        "them sigmoid(b − λ) max(e^λ, 1), as the training of the autoencoder does with --decoder_boost_below 0.",
    )
    decoder_bias: float = arg(4.5, "Bias b of --loss_weighting sigmoid.")

    # Validation
    validation_metrics: str | None = arg(
        "psnr",
        f"Metrics to log at validation, separated by commas: {', '.join(VALIDATION_METRICS)}. They compare the "
        "originals with the images that the student decodes in one step, in two and in its own number of steps, and "
        "with those of the teacher. kid is the kernel distance between features. Sharpness and the PSNR against the "
        "teacher's images are always logged.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.pretrained_model_name_or_path:
            raise ValueError("--pretrained_model_name_or_path must name the model to distil, got none.")
        if not (self.train_data_dir or self.dataset_name or self.dry_run):
            raise ValueError("one of --train_data_dir and --dataset_name is needed, got none.")
        if self.autoencoder_preset is not None and self.autoencoder_preset not in PRESETS:
            raise ValueError(
                f"--autoencoder_preset must be one of {', '.join(PRESETS)}, got {self.autoencoder_preset}."
            )
        if self.teacher_inference_steps <= self.num_inference_steps:
            raise ValueError(
                f"--teacher_inference_steps must be above --num_inference_steps, {self.num_inference_steps}, "
                f"got {self.teacher_inference_steps}."
            )
