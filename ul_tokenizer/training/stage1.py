"""Stage 1: an autoencoder and its prior, trained together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, PartialState
from diffusers import ModelMixin
from PIL import Image
from torch import Tensor, nn

from ul_tokenizer.diffusion.objective import (
    RandomLatentLevel,
    SigmoidWeighting,
    Variant,
    bits_per_pixel_divisor,
    stratified_times,
)
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.media.pixels import to_float
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.presets import build_autoencoder, build_prior, check_config_keys
from ul_tokenizer.models.repository import PRIOR, load_autoencoder, load_prior
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.randomness import Stream, torch_generator
from ul_tokenizer.training.algorithm1 import Stage1Model, Stage1Noise
from ul_tokenizer.training.data import say
from ul_tokenizer.training.draws.crops import CropBatch, CropSample, collate_crops
from ul_tokenizer.training.draws.noise import Draws, sample_noise
from ul_tokenizer.training.engine.loop import run_stage
from ul_tokenizer.training.estimate.stages import estimate_autoencoder
from ul_tokenizer.training.stage1_arguments import Stage1Arguments as Stage1Arguments
from ul_tokenizer.training.stage1_data import Stage1Data
from ul_tokenizer.training.validation import collapse_warning, validate_autoencoder
from ul_tokenizer.training.validation_metrics import ValidationMetrics
from ul_tokenizer.training.warmup import PriorWarmup

PARTS = ("encoder", "decoder", "prior")
# Unified latents need no normalisation. Statistics in the config of a pretrained model don't hold after the training.
NOT_NORMALIZED = {"scaling_factor": 1.0, "shift_factor": 0.0, "latents_mean": None, "latents_std": None}


def train_autoencoder(args: Stage1Arguments) -> bool:
    """Trains an encoder, its prior and its decoder together, or fine-tunes them (stage 1).

    The trained model is written to `args.output_dir`, which `UnifiedLatentsAutoencoder.from_pretrained` loads; its
    prior is in the subfolder `prior`. Progress is printed on standard error.

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
    return run_stage(args, Stage1, estimate_autoencoder)


class Stage1:
    """Stage 1 for the training loop.

    Args:
        args: the arguments of the run.

    Raises:
        ValueError: arguments, data and networks don't fit together.
        OSError: a model or data can't be read.
        MissingFeatureNetError: a network that a validation metric needs is missing.
    """

    def __init__(self, args: Stage1Arguments) -> None:
        self.args = args
        side = args.validation_resolution or args.resolution
        self.metrics = ValidationMetrics(args, PartialState().device)
        self.metrics.check_size(side)
        self._data = Stage1Data(args)  # before anything large is allocated
        autoencoder, prior = _make_models(args)
        self.models: dict[str, ModelMixin] = {"autoencoder": autoencoder, "prior": prior}
        latent_logsnr = autoencoder.config.latent_logsnr
        prior_schedule = LogSNRSchedule(latent_logsnr, args.prior_logsnr_min, args.prior_schedule)
        weighting = SigmoidWeighting(args.loss_factor, args.decoder_bias, args.decoder_boost_below)
        self.model: nn.Module = Stage1Model(autoencoder, prior, prior_schedule, weighting, _variant(args, autoencoder))
        if args.train_only:
            for part in PARTS:
                getattr(self.model, part).requires_grad_(part == args.train_only)
        self.warmup = PriorWarmup(
            args.prior_hold_weight,
            args.prior_min_hold_steps,
            args.prior_hold_gap_db,
            args.prior_ramp_steps,
            args.prior_max_hold_steps,
            ramp_start=None if args.prior_warmup else -args.prior_ramp_steps,
        )
        self._check_resolutions()
        self.dataset: Any = self._data.training(self._multiple())  # crops or clips
        self._held_out: Any = self._data.held_out()
        self._validation_pixels: Tensor | None = None

    @property
    def autoencoder(self) -> UnifiedLatentsAutoencoder:
        """The autoencoder: with FSDP, within validation and saving, a whole copy of it."""
        return cast("UnifiedLatentsAutoencoder", self.models["autoencoder"])

    @property
    def prior(self) -> UnifiedLatentsTransformer:
        """Its prior, likewise."""
        return cast("UnifiedLatentsTransformer", self.models["prior"])

    def _multiple(self) -> int:
        """The networks need sides that are multiples of this."""
        return int(self.autoencoder.spatial_compression_ratio * self.prior.size_multiple)

    def _check_resolutions(self) -> None:
        multiple = self._multiple()
        for name in ("resolution", "validation_resolution"):
            if (getattr(self.args, name) or multiple) % multiple:
                raise ValueError(
                    f"--{name} must be a multiple of {multiple} for these networks, got {getattr(self.args, name)}."
                )

    # ------------------------------------------------------------------------------------------------------------
    # Loss
    # ------------------------------------------------------------------------------------------------------------

    def collate(self, samples: list[CropSample]) -> CropBatch:
        """Stacks crops."""
        return collate_crops(samples)

    def loss(self, model: nn.Module, batch: CropBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns L in bits per pixel, and its terms, all 0-dimensional."""
        pixels = to_float(batch["pixel_values"])
        divisor = bits_per_pixel_divisor(*pixels.shape[-2:]) * (pixels.shape[2] if pixels.ndim == 5 else 1)
        self.warmup.begin(draws.step)
        progress = self.warmup.progress(draws.step)
        losses = model(pixels, self._noise(pixels, draws), progress)
        weight = self.warmup.weight(draws.step)
        values = {
            "prior_bits_per_pixel": losses.prior.mean() / divisor,
            "terminal_kl_bits_per_pixel": losses.terminal_kl.mean() / divisor,
            "decoder_loss_bits_per_pixel": losses.decoder.mean() / divisor,
            "prior_weight": torch.full((), weight, device=pixels.device),
        }
        if losses.latent_kl is not None:
            values["latent_kl_bits_per_pixel"] = losses.latent_kl.mean() / divisor
        return losses.total(divisor, weight), values

    def _noise(self, pixels: Tensor, draws: Draws) -> Stage1Noise:
        ratio, channels = self.autoencoder.spatial_compression_ratio, self.autoencoder.config.latent_channels
        frames = [-(-pixels.shape[2] // self.autoencoder.temporal_compression_ratio)] if pixels.ndim == 5 else []
        latent_shape = (channels, *frames, pixels.shape[-2] // ratio, pixels.shape[-1] // ratio)
        shapes = [latent_shape, latent_shape, tuple(pixels.shape[1:])]
        if self.autoencoder.config.learned_variance:
            shapes.append(latent_shape)
        prior, latent, decoder, *variance = sample_noise(shapes, draws.local, self.args.seed, pixels.device)
        if pixels.ndim == 5:  # every other clip has the same noise in all frames, as in `decode`
            still = draws.are_even(pixels.device)
            decoder = torch.where(still[:, None, None, None, None], decoder[:, :, :1], decoder)
        generator = torch_generator(self.args.seed, Stream.TIMES, draws.of_step.start)
        # Levels are spread over all samples of the step, so that they don't depend on how these are divided up.
        count = 2 if self.args.latent_logsnr_bias is None else 3
        t_prior, t_decoder, *t_latent = (
            draws.pick(stratified_times(len(draws.of_step), generator), pixels.device) for _ in range(count)
        )
        optional = {"t_latent": t_latent, "variance": variance}
        return Stage1Noise(t_prior, t_decoder, prior, latent, decoder, **{k: v[0] for k, v in optional.items() if v})

    # ------------------------------------------------------------------------------------------------------------
    # Validation
    # ------------------------------------------------------------------------------------------------------------

    def validate(self, accelerator: Accelerator, step: int) -> tuple[dict[str, float], Image.Image]:
        """Returns the metrics and the picture of `validate_autoencoder` on the held-out crops."""
        args = self.args
        with accelerator.autocast():
            return validate_autoencoder(
                self.autoencoder,
                self.prior,
                self._fixed_pixels(),
                args.train_batch_size,
                args.validation_inference_steps,
                accelerator.device,
                self.metrics,
            )

    def prepare(self, accelerator: Accelerator) -> None:
        """Reads the validation images, so that errors show before the training and not hours later.

        Raises:
            ValueError: no image can be read.
        """
        pixels = self._fixed_pixels()
        if accelerator.is_main_process:
            self.metrics.distance_from(lambda: pixels.split(self.args.train_batch_size))

    def _fixed_pixels(self) -> Tensor:
        if self._validation_pixels is None:
            crops = [self._held_out[n] for n in range(self.args.num_validation_images)]
            self._validation_pixels = to_float(torch.stack([crop["pixel_values"] for crop in crops]))
            for reason in sorted({reason for crop in crops for reason in crop["skipped"]}):
                say(f"skipped in validation: {reason}")
        return self._validation_pixels

    def observe(self, step: int, metrics: dict[str, float]) -> str | None:
        """Ends the hold of the prior's weight once the decoder uses the latent; warns of a collapse or a long hold."""
        gap = metrics["latent_gap_db"]
        self.warmup.observe(step, gap)
        return collapse_warning(step, metrics) or self.warmup.warning(step, gap)

    # ------------------------------------------------------------------------------------------------------------
    # State
    # ------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The step at which the prior's weight began to rise."""
        return {"prior_ramp_start": self.warmup.ramp_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores that step, unless the warm-up was turned off."""
        if self.args.prior_warmup:
            self.warmup.ramp_start = state["prior_ramp_start"]

    def save(self, folder: Path) -> None:
        """Writes the autoencoder to the folder and the prior to its subfolder `prior`."""
        self.autoencoder.save_pretrained(folder)
        self.prior.save_pretrained(folder / PRIOR)

    def describe(self) -> str:
        """Sizes of networks and data; every line is a YAML comment."""
        sizes = {name: sum(p.numel() for p in getattr(self.model, name).parameters()) for name in PARTS}
        lines = [f"{name}: {size:,} parameters" for name, size in sizes.items()]
        lines += self._data.describe()
        return "\n".join(f"# {line}" for line in lines)


def _variant(args: Stage1Arguments, autoencoder: UnifiedLatentsAutoencoder) -> Variant:
    """What the run changes of the paper's objective; refuses what excludes each other or the networks can't do."""
    config = autoencoder.config
    if config.learned_variance and args.latent_cost == "normal":
        raise ValueError("--latent_cost normal needs an encoder without learned_variance, got one with it.")
    if args.latent_logsnr_bias is None:
        return Variant(args.latent_cost, args.kl_weight, args.reconstruction)
    if config.learned_variance:
        raise ValueError("--latent_logsnr_bias needs an encoder without learned_variance, got one with it.")
    if config.latent_logsnr_min is None:
        raise ValueError("--latent_logsnr_bias needs a latent_logsnr_min in --autoencoder_config, got none.")
    level = RandomLatentLevel(args.latent_logsnr_bias, config.latent_logsnr_min, config.latent_logsnr)
    return Variant(args.latent_cost, args.kl_weight, args.reconstruction, level)


def _make_models(args: Stage1Arguments) -> tuple[UnifiedLatentsAutoencoder, UnifiedLatentsTransformer]:
    torch.manual_seed(args.seed)  # fresh weights are the same on every process and in every run
    if args.pretrained_model_name_or_path is None:
        autoencoder = build_autoencoder(args.preset, args.autoencoder_config)
    else:
        check_config_keys(UnifiedLatentsAutoencoder, args.autoencoder_config)
        config = {**NOT_NORMALIZED, **args.autoencoder_config}
        autoencoder = load_autoencoder(args.pretrained_model_name_or_path, revision=args.revision, **config)
    if args.pretrained_model_name_or_path is None or args.fresh_prior:
        latents = {"in_channels": autoencoder.config.latent_channels, "latent_logsnr": autoencoder.config.latent_logsnr}
        prior = build_prior(args.preset, {**latents, **args.prior_config})
    else:
        check_config_keys(UnifiedLatentsTransformer, args.prior_config)
        prior = load_prior(args.pretrained_model_name_or_path, revision=args.revision, **args.prior_config)
    for key, name in (("latent_channels", "in_channels"), ("latent_logsnr", "latent_logsnr")):
        if autoencoder.config[key] != prior.config[name]:
            raise ValueError(
                f"--prior_config must have the {name} of the autoencoder's latents, {autoencoder.config[key]}, "
                f"got {prior.config[name]}."
            )
    return autoencoder, prior
