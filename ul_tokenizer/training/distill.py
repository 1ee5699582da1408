"""Distillation: a decoder that needs few steps, trained on what a trained decoder makes in many."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, PartialState
from diffusers import ModelMixin
from PIL import Image
from torch import Tensor, nn

from ul_tokenizer.diffusion.objective import diffuse, stratified_times
from ul_tokenizer.media.pixels import to_float
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.checkpoint import WrongClassError
from ul_tokenizer.models.repository import (
    PRIOR,
    TEACHER,
    MissingPriorError,
    MissingTeacherError,
    load_autoencoder,
    load_prior,
    load_teacher,
)
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.randomness import Stream, torch_generator
from ul_tokenizer.training.data import make_sources, make_training_crops, say
from ul_tokenizer.training.distill_arguments import DistillArguments as DistillArguments
from ul_tokenizer.training.distill_validation import HeldOutImages, validate_student
from ul_tokenizer.training.distillation import (
    ErrorWeighting,
    MomentsModel,
    PairsModel,
    Teacher,
    decoding_logsnrs,
    start_indices,
)
from ul_tokenizer.training.draws.crops import CropBatch, CropSample, RandomCropDataset, collate_crops
from ul_tokenizer.training.draws.noise import Draws, sample_noise
from ul_tokenizer.training.engine.loop import run_stage
from ul_tokenizer.training.estimate.stages import estimate_distillation
from ul_tokenizer.training.validation_metrics import ValidationMetrics

Values = dict[str, Tensor]


def distill_decoder(args: DistillArguments) -> bool:
    """Trains a student that decodes in one or a few steps what a trained autoencoder decodes in many.

    The encoder is frozen, so latents and bits stay the same. The autoencoder with the student's decoder is written to
    `args.output_dir`, which `UnifiedLatentsAutoencoder.from_pretrained` loads; the model's prior is in the subfolder
    `prior`, and the autoencoder with the teacher's decoder in the subfolder `teacher`. Progress is printed on standard
    error.

    Args:
        args: the arguments of the run.

    Returns:
        whether the training reached its last step; False for a dry run, or if SIGTERM or Ctrl-C stopped it after it
        had saved a checkpoint.

    Raises:
        TrainingError: gradients stay non-finite.
        ValueError: arguments, data, networks or the checkpoint don't fit together.
        OSError: a file can't be read or written, or the hub can't be reached.
        ImportError: an optional package is missing.
    """
    return run_stage(args, Distillation, estimate_distillation)


class Distillation:
    """The distillation for the training loop.

    Args:
        args: the arguments of the run.

    Raises:
        ValueError: arguments, data and networks don't fit together.
        OSError: a model or data can't be read.
        MissingFeatureNetError: a network that a validation metric needs is missing.
    """

    def __init__(self, args: DistillArguments) -> None:
        self.args = args
        self.metrics = ValidationMetrics(args, PartialState().device)
        self.metrics.check_size(args.validation_resolution or args.resolution)
        self._train, self._held_out_source = make_sources(args)
        student, original = load_models(args)
        self.teacher = Teacher(original, args.teacher_inference_steps)
        self._prior = _load_prior_if_any(args)
        self._check_resolutions()
        self.models: dict[str, ModelMixin] = {"autoencoder": student}
        weighting = ErrorWeighting(args.loss_weighting, args.decoder_bias)
        self.model: nn.Module = PairsModel(student, weighting)
        if args.objective == "moments":
            auxiliary = UnifiedLatentsAutoencoder.from_config(original.config, dropout=args.dropout)
            auxiliary.load_state_dict(original.state_dict())
            self.models["auxiliary"] = auxiliary
            self.model = MomentsModel(student, auxiliary, self.teacher, weighting)
        self.dataset: Any = make_training_crops(args, self._train, self._multiple)
        self._held_out: HeldOutImages | None = None

    @property
    def student(self) -> UnifiedLatentsAutoencoder:
        """The autoencoder with the student's decoder: with FSDP, within validation and saving, a whole copy of it."""
        return cast("UnifiedLatentsAutoencoder", self.models["autoencoder"])

    @property
    def _multiple(self) -> int:
        """The networks need sides that are multiples of this."""
        return int(self.teacher.autoencoder.spatial_compression_ratio)

    def _check_resolutions(self) -> None:
        for name in ("resolution", "validation_resolution"):
            if (getattr(self.args, name) or self._multiple) % self._multiple:
                raise ValueError(
                    f"--{name} must be a multiple of {self._multiple} for this model, got {getattr(self.args, name)}."
                )

    # ------------------------------------------------------------------------------------------------------------
    # Loss
    # ------------------------------------------------------------------------------------------------------------

    def collate(self, samples: list[CropSample]) -> CropBatch:
        """Stacks crops."""
        return collate_crops(samples)

    def loss(self, model: nn.Module, batch: CropBatch, draws: Draws) -> tuple[Tensor, Values]:
        """Returns the loss of the objective, 0-dimensional, and values to log."""
        pixels = to_float(batch["pixel_values"])
        return (self._loss_of_pairs if self.args.objective == "pairs" else self._loss_of_moments)(model, pixels, draws)

    def _loss_of_pairs(self, model: nn.Module, pixels: Tensor, draws: Draws) -> tuple[Tensor, Values]:
        latent_noise, x_1 = self._noise(pixels, draws, 1)
        z = self.teacher.encode(pixels, latent_noise)
        trajectory = self.teacher.trajectory(z, x_1)
        starts = self._starts(draws, self.args.teacher_inference_steps)
        start, logsnr = (draws.pick(v, pixels.device) for v in (starts, torch.tensor(self.teacher.logsnrs)[starts]))
        x_t = trajectory.states[start, torch.arange(len(pixels), device=pixels.device)]
        losses = model(x_t, logsnr, z, trajectory.sample)
        return losses.mean(), {"starts_from_noise": (start == 0).float().mean()}

    def _loss_of_moments(self, model: nn.Module, pixels: Tensor, draws: Draws) -> tuple[Tensor, Values]:
        latent_noise, x_1, noise = self._noise(pixels, draws, 2)
        z = self.teacher.encode(pixels, latent_noise)
        levels = decoding_logsnrs(self.teacher.autoencoder, self.args.num_inference_steps)
        starts, logsnrs = self._starts(draws, self.args.num_inference_steps), torch.tensor(levels)
        of_step = (starts, logsnrs[starts], logsnrs[starts + 1])
        start, logsnr_t, end = (draws.pick(values, pixels.device) for values in of_step)
        # Decoding starts from noise alone; later steps start from what images with noise look like.
        x_t = torch.where((start == 0)[:, None, None, None], x_1, diffuse(pixels, x_1, logsnr_t))
        generator = torch_generator(self.args.seed, Stream.DISTILLATION_LEVELS, draws.of_step.start)
        share = draws.pick(stratified_times(len(draws.of_step), generator), pixels.device)
        losses = model(x_t, logsnr_t, z, noise, torch.lerp(logsnr_t, end, share))
        values = {"auxiliary_loss": losses.auxiliary.mean().detach(), "moment_gap": losses.gap.mean()}
        return losses.total, {**values, "starts_from_noise": (start == 0).float().mean()}

    def _noise(self, pixels: Tensor, draws: Draws, num_of_pixels: int) -> list[Tensor]:
        """ε of z_0, then as many of pixels."""
        height, width = (side // self._multiple for side in pixels.shape[-2:])
        latents = (self.teacher.autoencoder.config.latent_channels, height, width)
        shapes = [latents, *[tuple(pixels.shape[1:])] * num_of_pixels]
        return sample_noise(shapes, draws.local, self.args.seed, pixels.device)

    def _starts(self, draws: Draws, num_levels: int) -> Tensor:
        """For each sample of the step, the number of the level at which the student starts."""
        generator = torch_generator(self.args.seed, Stream.DISTILLATION_STARTS, draws.of_step.start)
        return start_indices(len(draws.of_step), num_levels, self.args.start_fraction, generator)

    # ------------------------------------------------------------------------------------------------------------
    # Validation
    # ------------------------------------------------------------------------------------------------------------

    def prepare(self, accelerator: Accelerator) -> None:
        """Moves the teacher to the device and lets it decode the validation images, on the main process.

        Raises:
            ValueError: no image can be read.
        """
        args, side = self.args, self.args.validation_resolution or self.args.resolution
        self.teacher.autoencoder.to(accelerator.device, memory_format=torch.channels_last)
        source, scale = self._held_out_source, (args.scale_min, 1.0)
        crops = RandomCropDataset(source, side, seed=0, scale=scale, scaling=args.scaling)
        samples = [crops[n] for n in range(args.num_validation_images)]
        for reason in sorted({reason for sample in samples for reason in sample["skipped"]}):
            say(f"skipped in validation: {reason}")
        if accelerator.is_main_process:
            pixels = to_float(torch.stack([sample["pixel_values"] for sample in samples]))
            with accelerator.autocast():
                self._held_out = HeldOutImages(self.teacher, pixels, args.train_batch_size, accelerator.device)

    def validate(self, accelerator: Accelerator, step: int) -> tuple[dict[str, float], Image.Image]:
        """Returns the metrics and the picture of `validate_student` for one, two and the student's own steps."""
        assert self._held_out is not None  # `prepare` ran on the main process
        steps = sorted({1, 2, self.args.num_inference_steps})
        with accelerator.autocast():
            return validate_student(self.student, self._held_out, steps, self.metrics)

    def observe(self, step: int, metrics: dict[str, float]) -> str | None:
        """Does nothing: no metric changes this stage."""
        return None

    # ------------------------------------------------------------------------------------------------------------
    # State
    # ------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """This stage has no state beside the weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing."""

    def save(self, folder: Path) -> None:
        """Writes the student to the folder, the prior to its subfolder `prior` and the teacher to `teacher`."""
        self.student.save_pretrained(folder)
        if self._prior is not None:
            self._prior.save_pretrained(folder / PRIOR)
        if self.args.save_teacher:
            self.teacher.autoencoder.save_pretrained(folder / TEACHER)

    def describe(self) -> str:
        """Sizes of networks and data; every line is a YAML comment."""
        sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in self.model.named_children()}
        lines = [f"{name}: {size:,} parameters" for name, size in sizes.items()]
        lines += [f"training images: {len(self._train)}", f"held-out images: {len(self._held_out_source)}"]
        return "\n".join(f"# {line}" for line in lines)


# ----------------------------------------------------------------------------------------------------------------
# Networks
# ----------------------------------------------------------------------------------------------------------------


def load_models(args: DistillArguments) -> tuple[UnifiedLatentsAutoencoder, UnifiedLatentsAutoencoder]:
    """The student as it starts, and the autoencoder with the teacher's decoder.

    Raises:
        ValueError: the model has no decoder that can be distilled.
    """
    name, flag = str(args.pretrained_model_name_or_path), "--pretrained_model_name_or_path"
    changes: dict[str, Any] = {"num_inference_steps": args.num_inference_steps, "dropout": args.dropout}
    try:
        student = load_autoencoder(name, revision=args.revision, **changes)
    except WrongClassError as error:
        raise ValueError(
            f"{flag} {name} can't be distilled, because its decoder has no noise schedule: {error}"
        ) from error
    if student.temporal_compression_ratio > 1:
        raise ValueError(f"{flag} must be an autoencoder of images, got {name}, which is one of videos.")
    try:
        return student, load_teacher(name, revision=args.revision)
    except MissingTeacherError:
        return student, load_autoencoder(name, revision=args.revision)


def _load_prior_if_any(args: DistillArguments) -> UnifiedLatentsTransformer | None:
    try:
        return load_prior(str(args.pretrained_model_name_or_path), revision=args.revision)
    except MissingPriorError:
        return None
