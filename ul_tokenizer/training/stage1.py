"""What is particular to stage 1: its arguments, its loss and what its validation shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from PIL import Image
from torch import Tensor, nn

from ul_tokenizer.data.crops import CropBatch, RandomCropDataset
from ul_tokenizer.data.images import HubImages, ImageFolder, ImageSource, SubsetOfImages
from ul_tokenizer.diffusion.objective import DecoderWeighting, bits_per_pixel_divisor, stratified_times
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.evaluation.metrics import comparison_grid, mean_psnr, psnr_of_mean_mse
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.training.algorithm1 import Stage1Model, Stage1Noise
from ul_tokenizer.training.arguments import TrainingArguments, arg, parse_arguments
from ul_tokenizer.training.loop import Draws, Trainer, TrainingError, make_accelerator
from ul_tokenizer.training.randomness import TIMES, sample_noise, stream_generator
from ul_tokenizer.training.warmup import PriorWarmup

PARTS = ("encoder", "decoder", "prior")


@dataclass
class Stage1Arguments(TrainingArguments):
    """Arguments of `train_autoencoder.py`."""

    # Networks
    preset: str = arg("ul-small-f8", "Named configuration of the networks.")
    autoencoder: dict[str, Any] = arg(dict, "Changes to the preset's autoencoder config (JSON on the command line).")
    prior: dict[str, Any] = arg(dict, "Changes to the preset's prior config (JSON on the command line).")
    pretrained_model_name_or_path: str | None = arg(
        None, "Fine-tune this model (bundled name, folder or hub id), in place of a preset's fresh networks."
    )
    revision: str | None = arg(None, "Revision of the pretrained model on the hub.")
    train_only: str | None = arg(None, "Train this part and freeze the others.", choices=PARTS)

    # Objective
    loss_factor: float = arg(1.5, "c_lf: weight of the decoder loss; higher gives more bits and PSNR.")
    decoder_bias: float = arg(4.5, "b of the decoder's sigmoid weight; higher gives more bits and PSNR.")
    decoder_boost_below: float | None = arg(
        0.0, "Train the decoder (not the encoder) harder at levels noisier than this log-SNR; null turns it off."
    )
    prior_logsnr_min: float = arg(-10.0, "λ_z(1), the prior's noisiest level.")
    prior_schedule: str = arg("linear", "The prior's schedule.", choices=("linear", "cosine"))

    # Warm-up of the prior's weight
    prior_warmup: bool = arg(True, "Hold the prior's weight near 0 until the decoder reads the latent, then ramp to 1.")
    prior_hold_weight: float = arg(0.01, "Its weight while held.")
    prior_min_hold_steps: int = arg(500, "Hold at least so many steps.")
    prior_hold_gap_db: float = arg(6.0, "Hold until the own latent decodes better than another image's by so many dB.")
    prior_ramp_steps: int = arg(2000, "Steps from the hold to full weight.")

    # Validation
    validation_inference_steps: int = arg(4, "Decoding steps of the second PSNR.")


class Stage1:
    """Stage 1 for the shared loop."""

    def __init__(self, args: Stage1Arguments) -> None:
        self.args = args
        autoencoder, prior = _make_models(args)
        self.autoencoder, self.prior = autoencoder, prior
        self.models: dict[str, ModelMixin] = {"autoencoder": autoencoder, "prior": prior}
        prior_schedule = LogSNRSchedule(autoencoder.config.latent_logsnr, args.prior_logsnr_min, args.prior_schedule)
        weighting = DecoderWeighting(args.loss_factor, args.decoder_bias, args.decoder_boost_below)
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
        train, held_out = _make_sources(args)
        scale = (args.scale_min, 1.0)
        self.dataset = RandomCropDataset(train, args.resolution, args.seed, scale, args.random_flip, args.center_crop)
        side = args.validation_resolution or args.resolution
        self._held_out = RandomCropDataset(held_out, side, seed=0, scale=scale)
        self._validation_pixels: Tensor | None = None

    # ------------------------------------------------------------------------------------------------------------
    # Loss
    # ------------------------------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, batch: CropBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """L in bits per pixel, and its terms."""
        pixels = batch["pixel_values"]
        divisor = bits_per_pixel_divisor(*pixels.shape[-2:])
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
        latent_shape = (channels, pixels.shape[-2] // ratio, pixels.shape[-1] // ratio)
        shapes = (latent_shape, latent_shape, tuple(pixels.shape[1:]))
        prior, latent, decoder = sample_noise(shapes, draws.local, self.args.seed, pixels.device)
        generator = stream_generator(self.args.seed, TIMES, draws.first)
        # Levels are spread over the batch of all processes, so that their number does not change them.
        t_prior, t_decoder = (
            draws.pick(stratified_times(draws.global_batch_size, generator)).to(pixels.device) for _ in range(2)
        )
        return Stage1Noise(t_prior, t_decoder, prior, latent, decoder)

    # ------------------------------------------------------------------------------------------------------------
    # Validation
    # ------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, accelerator: Accelerator, step: int) -> tuple[dict[str, float], Image.Image]:
        """PSNR at one and more steps, the gap to another image's latent, bits per pixel, and a picture."""
        pixels = self._fixed_pixels().to(accelerator.device)
        steps = self.args.validation_inference_steps
        with accelerator.autocast():
            z = self.autoencoder.encode(pixels).latent_dist.sample(_generators(pixels, seed=0))

            def decode(latents: Tensor, num_inference_steps: int) -> Tensor:
                generators = _generators(pixels, seed=1)
                return self.autoencoder.decode(
                    latents, generator=generators, num_inference_steps=num_inference_steps
                ).sample.float()

            one_step, more_steps, swapped = decode(z, 1), decode(z, steps), decode(z.roll(1, 0), 1)
            bits = self.autoencoder.bits(pixels, self.prior, generator=torch.Generator(pixels.device).manual_seed(0))
        psnr = psnr_of_mean_mse(pixels, one_step)
        metrics = {
            "psnr_1_step": psnr,
            f"psnr_{steps}_steps": psnr_of_mean_mse(pixels, more_steps),
            "mean_of_psnr_1_step": mean_psnr(pixels, one_step),
            "latent_gap_db": psnr - psnr_of_mean_mse(pixels, swapped),
            "bits_per_pixel": float(bits.mean()) / (pixels.shape[-1] * pixels.shape[-2]),
        }
        return metrics, comparison_grid([pixels, one_step, more_steps], columns=8)

    def _fixed_pixels(self) -> Tensor:
        if self._validation_pixels is None:
            count = self.args.num_validation_images
            self._validation_pixels = torch.stack([self._held_out[n]["pixel_values"] for n in range(count)])
        return self._validation_pixels

    def observe(self, step: int, metrics: dict[str, float]) -> None:
        """Ends the hold of the prior's weight when the decoder reads the latent; warns when it never does."""
        gap, bits = metrics["latent_gap_db"], metrics["bits_per_pixel"]
        self.warmup.observe(step, gap)
        if not self.warmup.holding and gap < 1.0 and bits < 0.01:
            print(
                f"warning: posterior collapse at step {step}: {bits:.4f} bits per pixel, and decoding with another image's "
                f"latent costs only {gap:.2f} dB. Hold the prior longer (--prior_min_hold_steps, --prior_hold_gap_db) "
                "or raise --loss_factor or --decoder_bias.",
                flush=True,
            )

    # ------------------------------------------------------------------------------------------------------------
    # State
    # ------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the prior's warm-up stands."""
        return {"prior_ramp_start": self.warmup.ramp_start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores it."""
        self.warmup.ramp_start = state["prior_ramp_start"]

    def save(self, folder: Path) -> None:
        """The autoencoder at the root, the prior below it."""
        self.autoencoder.save_pretrained(folder)
        self.prior.save_pretrained(folder / "prior")

    def describe(self) -> str:
        """Sizes of networks and data, a line each."""
        sizes = {name: sum(p.numel() for p in getattr(self.model, name).parameters()) for name in PARTS}
        lines = [f"{name}: {size:,} parameters" for name, size in sizes.items()]
        return "\n".join([*lines, f"training images: {len(self.dataset)}", f"held-out images: {len(self._held_out)}"])


def _make_models(args: Stage1Arguments) -> tuple[UnifiedLatentsAutoencoder, UnifiedLatentsTransformer]:
    if args.pretrained_model_name_or_path is None:
        torch.manual_seed(args.seed)  # the same weights on every process and in every run
        return build_autoencoder(args.preset, args.autoencoder), build_prior(args.preset, args.prior)
    from ul_tokenizer.hub import load_autoencoder, load_prior

    name, revision = args.pretrained_model_name_or_path, args.revision
    return load_autoencoder(name, revision=revision), load_prior(name, revision=revision)


def _make_sources(args: Stage1Arguments) -> tuple[ImageSource, ImageSource]:
    """Training and held-out images, disjoint."""
    train = _make_source(args)
    if args.validation_data_dir:
        return train, ImageFolder(Path(args.validation_data_dir).expanduser())
    held_out = max(1, round(len(train) * args.validation_fraction))
    if held_out >= len(train):
        raise ValueError(f"--train_data_dir must hold at least two readable images, got {len(train)}.")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    return SubsetOfImages(train, order[held_out:]), SubsetOfImages(train, order[:held_out])


def _make_source(args: Stage1Arguments) -> ImageSource:
    if args.dataset_name:
        return HubImages(args.dataset_name, args.dataset_config_name, image_column=args.image_column)
    if args.train_data_dir:
        source = ImageFolder(Path(args.train_data_dir).expanduser(), cache_bytes=int(args.cache_images_gb * 1e9))
        for path, reason in source.skipped:
            print(f"skipped {path}: {reason}", flush=True)
        return source
    raise ValueError("one of --train_data_dir and --dataset_name is needed, got neither.")


def _generators(pixels: Tensor, seed: int) -> list[torch.Generator]:
    return [torch.Generator(pixels.device).manual_seed(1000 * seed + i) for i in range(len(pixels))]


def train_autoencoder(argv: Sequence[str] | None = None) -> int:
    """Stage-1 training from flags and a config file; returns the exit status."""
    args = parse_arguments(Stage1Arguments, argv, "Train or fine-tune a Unified Latents autoencoder (stage 1).")
    try:
        accelerator = make_accelerator(args)
        stage = Stage1(args)
        if args.dry_run:
            print(args.to_yaml() + stage.describe())
            return 0
        Trainer(args, stage, accelerator).run()
    except (TrainingError, ValueError, OSError) as error:
        print(f"error: {error}", flush=True)
        return 1
    return 0
