"""What is particular to stage 1: its arguments, its loss and what its validation shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from accelerate import Accelerator, PartialState
from diffusers import ModelMixin
from PIL import Image
from torch import Tensor, nn

from ul_tokenizer.diffusion.objective import SigmoidWeighting, bits_per_pixel_divisor, stratified_times
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.latents.statistics import ChannelStatistics, channel_statistics
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.presets import PRESETS, build_autoencoder, build_prior, check_config_keys
from ul_tokenizer.models.repository import load_autoencoder, load_prior
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.randomness import Stream, torch_generator
from ul_tokenizer.training.algorithm1 import Stage1Model, Stage1Noise
from ul_tokenizer.training.arguments import FRACTION, NOT_NEGATIVE, POSITIVE, TrainingArguments, arg
from ul_tokenizer.training.data import make_sources, say
from ul_tokenizer.training.draws.clips import RandomClipDataset
from ul_tokenizer.training.draws.crops import CropBatch, CropSample, RandomCropDataset, collate_crops
from ul_tokenizer.training.draws.noise import Draws, sample_noise
from ul_tokenizer.training.draws.video_pool import VideoFolder
from ul_tokenizer.training.loop import run_stage
from ul_tokenizer.training.parsing import parse_arguments
from ul_tokenizer.training.validation import collapse_warning, validate_autoencoder
from ul_tokenizer.training.warmup import PriorWarmup

PARTS = ("encoder", "decoder", "prior")
STATISTICS_CROPS = 512  # over which the latents of a trained model are normalised


@dataclass
class Stage1Arguments(TrainingArguments):
    """Arguments of `train_autoencoder.py`."""

    PATHS: ClassVar[tuple[str, ...]] = (
        *TrainingArguments.PATHS,
        "pretrained_model_name_or_path",
        "train_video_dir",
        "validation_video_dir",
    )

    # Networks
    preset: str = arg("ul-small-f8", f"Named configuration of the networks: {', '.join(PRESETS)}.")
    autoencoder: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Changes to the autoencoder's config, as JSON."}
    )
    prior: dict[str, Any] = field(default_factory=dict, metadata={"help": "Changes to the prior's config, as JSON."})
    pretrained_model_name_or_path: str | None = arg(
        None, "Fine-tune this model (bundled name, folder or hub id), in place of a preset's fresh networks."
    )
    revision: str | None = arg(None, "Revision of the pretrained model on the hub.")
    fresh_prior: bool = arg(False, "Fine-tune with a fresh prior of the preset beside the pretrained autoencoder.")
    train_only: Literal["encoder", "decoder", "prior"] | None = arg(None, "Train this part and freeze the others.")

    # Objective
    loss_factor: float = arg(1.5, "c_lf: weight of the decoder loss; higher gives more bits and PSNR.", POSITIVE)
    decoder_bias: float = arg(4.5, "b of the decoder's sigmoid weight; higher gives more bits and PSNR.")
    decoder_boost_below: float | None = arg(
        0.0, "Train the decoder (not the encoder) harder at levels noisier than this log-SNR; null turns it off."
    )
    prior_logsnr_min: float = arg(-10.0, "λ_z(1), the prior's noisiest level.")
    prior_schedule: Literal["linear", "cosine"] = arg("linear", "The prior's schedule.")

    # Warm-up of the prior's weight
    prior_warmup: bool | None = arg(
        None,
        "Hold the prior's weight near 0 until the decoder reads the latent, then ramp to 1; "
        "unless told otherwise, with fresh networks only.",
    )
    prior_hold_weight: float = arg(0.01, "Its weight while held.", FRACTION)
    prior_min_hold_steps: int = arg(500, "Hold at least so many steps.", NOT_NEGATIVE)
    prior_hold_gap_db: float = arg(6.0, "Hold until the own latent decodes better than another image's by so many dB.")
    prior_ramp_steps: int = arg(2000, "Steps from the hold to full weight.", NOT_NEGATIVE)

    # Clips
    num_frames: int | None = arg(None, "Train on clips of so many frames; images only if not given.", POSITIVE)
    train_video_dir: str | None = arg(
        None, "Folder of videos, beside the images, over which pans are made; pans only if not given."
    )
    validation_video_dir: str | None = arg(None, "Folder of held-out videos; pans over held-out images if not given.")
    video_fps: float | None = arg(None, "Frame rate to which videos are brought; their own if not given.", POSITIVE)
    cache_videos_gb: float = arg(
        4.0, "Memory for decoded videos, per process, in GB; if all don't fit, parts are read as needed.", NOT_NEGATIVE
    )
    image_batch_fraction: float = arg(0.25, "Fraction of the steps that have single images.", FRACTION)
    pan_fraction: float = arg(0.5, "Fraction of the clips that are pans over images, if there are videos.", FRACTION)

    # Validation
    validation_inference_steps: int = arg(4, "Decoding steps of the second PSNR.", POSITIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in PRESETS:
            raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {self.preset}.")
        if self.fresh_prior and not self.pretrained_model_name_or_path:
            raise ValueError("--fresh_prior needs --pretrained_model_name_or_path.")
        if self.revision and not self.pretrained_model_name_or_path:
            raise ValueError("--revision needs --pretrained_model_name_or_path.")
        if self.prior_warmup is None:  # a trained decoder reads its latent already
            self.prior_warmup = self.pretrained_model_name_or_path is None
        if (self.train_video_dir or self.validation_video_dir) and self.num_frames is None:
            raise ValueError("--train_video_dir and --validation_video_dir need --num_frames.")
        if not (self.train_data_dir or self.dataset_name):
            raise ValueError("one of --train_data_dir and --dataset_name is needed, got neither.")


class Stage1:
    """Stage 1 for the shared loop."""

    def __init__(self, args: Stage1Arguments) -> None:
        self.args = args
        autoencoder, prior = _make_models(args)
        self.autoencoder, self.prior = autoencoder, prior
        self.models: dict[str, ModelMixin] = {"autoencoder": autoencoder, "prior": prior}
        latent_logsnr = autoencoder.config.latent_logsnr
        prior_schedule = LogSNRSchedule(latent_logsnr, args.prior_logsnr_min, args.prior_schedule)
        weighting = SigmoidWeighting(args.loss_factor, args.decoder_bias, args.decoder_boost_below)
        self.model: nn.Module = Stage1Model(autoencoder, prior, prior_schedule, weighting)
        if args.train_only:
            for part in PARTS:
                getattr(self.model, part).requires_grad_(part == args.train_only)
        self.warmup = PriorWarmup(
            args.prior_hold_weight,
            args.prior_min_hold_steps,
            args.prior_hold_gap_db,
            args.prior_ramp_steps,
            ramp_start=None if args.prior_warmup else -args.prior_ramp_steps,
        )
        train, held_out = make_sources(args)
        scale = (args.scale_min, 1.0)
        crops = RandomCropDataset(train, args.resolution, args.seed, scale, args.random_flip, args.center_crop)
        side = args.validation_resolution or args.resolution
        held_out_crops = RandomCropDataset(held_out, side, seed=0, scale=scale)
        self.dataset: Any = crops  # or clips
        self._held_out: Any = held_out_crops
        if args.num_frames is not None:
            self.dataset = self._clips(crops, args.train_video_dir, args.image_batch_fraction)
            self._held_out = self._clips(held_out_crops, args.validation_video_dir, 0.0)
        self._validation_pixels: Tensor | None = None
        self._check_resolutions()

    def _clips(self, crops: RandomCropDataset, folder: str | None, image_fraction: float) -> RandomClipDataset:
        args = self.args
        assert args.num_frames is not None  # else there are only images
        videos = None
        if folder is not None:
            short_side = 4 * crops.resolution  # parts of a frame are scaled to the crop from at most this
            memory = int(args.cache_videos_gb * 1e9)
            videos = VideoFolder(folder, short_side, args.video_fps, min_frames=args.num_frames, max_bytes=memory)
            for reason in videos.skipped:
                say(f"skipped {reason}")
            if not videos.is_in_memory:
                say(
                    f"{folder}: {len(videos.films)} videos don't fit into --cache_videos_gb {args.cache_videos_gb:g}; "
                    "their parts are read from the files, which --dataloader_num_workers speeds up."
                )
        processes = PartialState().num_processes
        of_step = args.train_batch_size * args.gradient_accumulation_steps * processes
        return RandomClipDataset(crops, videos, args.num_frames, of_step, image_fraction, args.pan_fraction)

    def _check_resolutions(self) -> None:
        multiple = self.autoencoder.spatial_compression_ratio * self.prior.size_multiple
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
        """L in bits per pixel, and its terms."""
        pixels = batch["pixel_values"]
        divisor = bits_per_pixel_divisor(*pixels.shape[-2:]) * (pixels.shape[2] if pixels.ndim == 5 else 1)
        progress = self.warmup.progress(draws.step)
        losses = model(pixels, self._noise(pixels, draws), progress)
        weight = self.warmup.weight(draws.step)
        values = {
            "prior_bits_per_pixel": losses.prior.mean() / divisor,
            "terminal_kl_bits_per_pixel": losses.terminal_kl.mean() / divisor,
            "decoder_loss_bits_per_pixel": losses.decoder.mean() / divisor,
            "prior_weight": torch.tensor(weight, device=pixels.device),
        }
        return losses.total(divisor, weight), values

    def _noise(self, pixels: Tensor, draws: Draws) -> Stage1Noise:
        ratio, channels = self.autoencoder.spatial_compression_ratio, self.autoencoder.config.latent_channels
        frames = [-(-pixels.shape[2] // self.autoencoder.temporal_compression_ratio)] if pixels.ndim == 5 else []
        latent_shape = (channels, *frames, pixels.shape[-2] // ratio, pixels.shape[-1] // ratio)
        shapes = (latent_shape, latent_shape, tuple(pixels.shape[1:]))
        prior, latent, decoder = sample_noise(shapes, draws.local, self.args.seed, pixels.device)
        if pixels.ndim == 5:  # every other clip starts from one noise for all frames, as `decode` does
            still = torch.tensor([draw % 2 == 0 for draw in draws.local], device=pixels.device)
            decoder = torch.where(still[:, None, None, None, None], decoder[:, :, :1], decoder)
        generator = torch_generator(self.args.seed, Stream.TIMES, draws.of_step.start)
        # Levels are spread over all samples of the step, so that how these are divided up does not change them.
        t_prior, t_decoder = (
            draws.pick(stratified_times(len(draws.of_step), generator)).to(pixels.device) for _ in range(2)
        )
        return Stage1Noise(t_prior, t_decoder, prior, latent, decoder)

    # ------------------------------------------------------------------------------------------------------------
    # Validation
    # ------------------------------------------------------------------------------------------------------------

    def validate(self, accelerator: Accelerator, step: int) -> tuple[dict[str, float], Image.Image]:
        """PSNR at one and more steps, the gap to another image's latent, bits per pixel, and a picture."""
        args = self.args
        with accelerator.autocast():
            return validate_autoencoder(
                self.autoencoder,
                self.prior,
                self._fixed_pixels(),
                args.train_batch_size,
                args.validation_inference_steps,
                accelerator.device,
            )

    def prepare(self, accelerator: Accelerator) -> None:
        """Reads the validation images before training rather than after hours of it.

        Raises:
            ValueError: none can be read.
        """
        self._fixed_pixels()

    def _fixed_pixels(self) -> Tensor:
        if self._validation_pixels is None:
            crops = [self._held_out[n] for n in range(self.args.num_validation_images)]
            self._validation_pixels = torch.stack([crop["pixel_values"] for crop in crops])
            for reason in sorted({reason for crop in crops for reason in crop["skipped"]}):
                say(f"skipped in validation: {reason}")
        return self._validation_pixels

    def observe(self, step: int, metrics: dict[str, float]) -> str | None:
        """Ends the hold of the prior's weight when the decoder reads the latent; warns of a collapse."""
        self.warmup.observe(step, metrics["latent_gap_db"])
        return collapse_warning(step, metrics)

    # ------------------------------------------------------------------------------------------------------------
    # State
    # ------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the prior's warm-up stands."""
        return {"prior_ramp_start": self.warmup.ramp_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it, unless there is no warm-up any more."""
        if self.args.prior_warmup:
            self.warmup.ramp_start = state["prior_ramp_start"]

    def save(self, folder: Path) -> None:
        """The autoencoder at the root, with its latents' statistics in its config, and the prior below it."""
        self.autoencoder.register_to_config(**self._latent_statistics().to_config())
        self.autoencoder.save_pretrained(folder)
        self.prior.save_pretrained(folder / "prior")

    @torch.no_grad()
    def _latent_statistics(self) -> ChannelStatistics:
        """Of z_clean over training crops, the first of the run."""
        device, batch_size = self.autoencoder.device, self.args.train_batch_size
        batches = []
        for start in range(0, STATISTICS_CROPS, batch_size):
            crops = [self.dataset[n]["pixel_values"] for n in range(start, min(start + batch_size, STATISTICS_CROPS))]
            for rank in sorted({crop.ndim for crop in crops}):  # images and clips, which come in turns
                alike = torch.stack([crop for crop in crops if crop.ndim == rank])
                batches.append(self.autoencoder.encode(alike.to(device)).latent)
        return channel_statistics(batches)

    def describe(self) -> str:
        """Sizes of networks and data, a YAML comment each."""
        sizes = {name: sum(p.numel() for p in getattr(self.model, name).parameters()) for name in PARTS}
        lines = [f"{name}: {size:,} parameters" for name, size in sizes.items()]
        lines += [f"training images: {len(self.dataset)}", f"held-out images: {len(self._held_out)}"]
        return "\n".join(f"# {line}" for line in lines)


def _make_models(args: Stage1Arguments) -> tuple[UnifiedLatentsAutoencoder, UnifiedLatentsTransformer]:
    torch.manual_seed(args.seed)  # fresh weights are the same on every process and in every run
    if args.pretrained_model_name_or_path is None:
        autoencoder = build_autoencoder(args.preset, args.autoencoder)
    else:
        check_config_keys(UnifiedLatentsAutoencoder, args.autoencoder)
        autoencoder = load_autoencoder(args.pretrained_model_name_or_path, revision=args.revision, **args.autoencoder)
    if args.pretrained_model_name_or_path is None or args.fresh_prior:
        latents = {"in_channels": autoencoder.config.latent_channels, "latent_logsnr": autoencoder.config.latent_logsnr}
        prior = build_prior(args.preset, {**latents, **args.prior})
    else:
        check_config_keys(UnifiedLatentsTransformer, args.prior)
        prior = load_prior(args.pretrained_model_name_or_path, revision=args.revision, **args.prior)
    for key, name in (("latent_channels", "in_channels"), ("latent_logsnr", "latent_logsnr")):
        if autoencoder.config[key] != prior.config[name]:
            raise ValueError(
                f"--prior must have the {name} of the autoencoder's latents, {autoencoder.config[key]}, "
                f"got {prior.config[name]}."
            )
    return autoencoder, prior


def train_autoencoder(argv: Sequence[str] | None = None) -> int:
    """Stage-1 training from flags and a config file; returns the exit status."""
    args = parse_arguments(Stage1Arguments, argv, "Train or fine-tune a Unified Latents autoencoder (stage 1).")
    return run_stage(args, Stage1)
