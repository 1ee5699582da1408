"""Stage 2: a base model, trained on the latents of a frozen autoencoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from diffusers import ModelMixin
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Subset

from ul_tokenizer.diffusion.objective import SigmoidWeighting, stratified_times
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.latents.dataset import LatentDataset
from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.models.latent_normalization import normalize_latents
from ul_tokenizer.models.presets import build_base, check_config_keys
from ul_tokenizer.models.repository import AUTOENCODER, CLASS_NAMES, PRIOR
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.progress import Bar, progress
from ul_tokenizer.randomness import Stream, torch_generator
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.training.base_validation import HeldOutLatents, decode_held_out, draw_samples, validate_base
from ul_tokenizer.training.data import make_sources
from ul_tokenizer.training.denoising import Stage2Model
from ul_tokenizer.training.draws.crops import NO_LABEL, CropSample, RandomCropDataset, collate_crops
from ul_tokenizer.training.draws.latents import LatentDraws, LatentsInMemory, collate_latents
from ul_tokenizer.training.draws.noise import Draws, sample_noise
from ul_tokenizer.training.engine.loop import run_stage
from ul_tokenizer.training.engine.stage import Batch
from ul_tokenizer.training.frozen import FrozenAutoencoder, load_other, load_ours
from ul_tokenizer.training.stage2_arguments import OTHERS_LOGSNR_MAX
from ul_tokenizer.training.stage2_arguments import Stage2Arguments as Stage2Arguments
from ul_tokenizer.training.validation_metrics import FeatureDistance, ValidationMetrics


def train_base_model(args: Stage2Arguments) -> bool:
    """Trains a base model on the latents of a frozen autoencoder (stage 2).

    A whole pipeline is written to `args.output_dir`, which `UnifiedLatentsPipeline.from_pretrained` loads. Progress is
    printed on standard error.

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
    return run_stage(args, Stage2)


class Stage2:
    """Stage 2 for the training loop.

    Args:
        args: the arguments of the run.

    Raises:
        ValueError: arguments, data and networks don't fit together.
        OSError: a model or data can't be read.
        MissingFeatureNetError: a network that a validation metric needs is missing.
    """

    def __init__(self, args: Stage2Arguments) -> None:
        self.args = args
        self.metrics = ValidationMetrics(args, PartialState().device)
        self.autoencoder = _load_autoencoder(args)
        self.class_names, self._images, self._held_out_source, self._latents = _make_data(args, self.autoencoder)
        if not args.class_conditional:
            self.class_names = ()
        num_frames = _latent_frames(args, self._latents)
        transformer = _make_base(args, self.autoencoder, len(self.class_names), num_frames)
        self.models: dict[str, ModelMixin] = {"transformer": transformer}
        level = self.transformer.config.latent_logsnr
        self.schedule = LogSNRSchedule(level, args.logsnr_min, args.schedule)
        self.weighting = SigmoidWeighting(1.0, args.sigmoid_bias)
        self.model: nn.Module = Stage2Model(self.transformer, self.schedule, self.weighting)
        self._check_resolution()
        self.dataset: Any = self._crops(self._images, args.seed) if self._images else None
        if self._latents is not None:  # the last ones are held out
            train = Subset(self._latents, range(len(self._latents) - args.num_validation_images))
            self.dataset = LatentDraws(train, args.seed)
        self._held_out: HeldOutLatents | None = None

    @property
    def transformer(self) -> UnifiedLatentsTransformer:
        """The base model: with FSDP, within validation and saving, a whole copy of it."""
        return cast("UnifiedLatentsTransformer", self.models["transformer"])

    def _check_resolution(self) -> None:
        multiple = self.autoencoder.ratio * self.transformer.size_multiple
        if self.args.resolution % multiple:
            raise ValueError(
                f"--resolution must be a multiple of {multiple} for these networks, got {self.args.resolution}."
            )

    def _crops(self, source: DecodedImages, seed: int) -> RandomCropDataset:
        args = self.args
        scale = (args.scale_min, 1.0)
        return RandomCropDataset(source, args.resolution, seed, scale, args.random_flip, args.center_crop)

    # ------------------------------------------------------------------------------------------------------------
    # Latents
    # ------------------------------------------------------------------------------------------------------------

    def prepare(self, accelerator: Accelerator) -> None:
        """Moves the autoencoder to the device and encodes held-out images, with `cache_latents` all others, too."""
        self.autoencoder.to(accelerator.device)
        with accelerator.autocast():
            self._held_out = self._encode_held_out(accelerator.device)
            if self.args.cache_latents:
                self.dataset = LatentDraws(self._encode_all(accelerator), self.args.seed)
                self._images = None  # which would keep the decoded images in memory
            if accelerator.is_main_process:
                self._distance(self._held_out)

    def _encode_held_out(self, device: torch.device) -> HeldOutLatents:
        count = self.args.num_validation_images
        if self._latents is not None:
            samples = [self._latents[i] for i in range(len(self._latents) - count, len(self._latents))]
            batch = collate_latents(samples)
            labels = self._labels(batch["class_labels"].to(device))
            return HeldOutLatents(self._normalized(batch["latents"].to(device)), labels, self.args.num_context_latents)
        assert self._held_out_source is not None  # only a latent data set has none
        crops = self._crops(self._held_out_source, seed=0)
        pixels = collate_crops([crops[n] for n in range(count)])
        latents = self.autoencoder.encode(pixels["pixel_values"].to(device))
        return HeldOutLatents(latents, self._labels(pixels["class_labels"].to(device)))

    def _encode_all(self, accelerator: Accelerator) -> LatentsInMemory:
        """Encodes every readable image once: each process its share, which all then exchange."""
        assert self._images is not None  # Stage2Arguments refuses `cache_latents` without images
        crops, size = self._crops(self._images, seed=0), self.args.train_batch_size
        mine = range(accelerator.process_index, len(crops), accelerator.num_processes)
        parts = []
        with progress("encoding", len(mine), "images", shown=accelerator.is_main_process) as bar:
            for first in range(0, len(mine), size):
                indices = mine[first : first + size]
                batch = self._readable(crops, indices, bar)
                if batch:
                    pixels = collate_crops([crop for _, crop in batch])
                    latents = self.autoencoder.encode(pixels["pixel_values"].to(accelerator.device)).cpu()
                    parts.append(([index for index, _ in batch], latents, pixels["class_labels"]))
                bar.update(len(indices))
        return _in_order(gather_object(parts))

    def _readable(self, crops: RandomCropDataset, indices: range, bar: Bar) -> list[tuple[int, CropSample]]:
        batch = []
        for index in indices:
            try:
                batch.append((index, crops.crop_of(index)))
            except UnreadableImageError as error:
                bar.write(f"skipped {crops.source.id(index)}: {error.reason}")
        return batch

    def collate(self, samples: list[Any]) -> Any:
        """Stacks latents, or crops that the loss will encode."""
        return collate_latents(samples) if "latent" in samples[0] else collate_crops(samples)

    # ------------------------------------------------------------------------------------------------------------
    # Loss
    # ------------------------------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted loss in nats per latent dimension."""
        z = self._normalized(batch["latents"]) if "latents" in batch else self.autoencoder.encode(batch["pixel_values"])
        context, z = self._split(z, draws.of_step.start)
        (noise,) = sample_noise([tuple(z.shape[1:])], draws.local, self.args.seed, z.device)
        generator = torch_generator(self.args.seed, Stream.TIMES, draws.of_step.start)
        t = draws.pick(stratified_times(len(draws.of_step), generator), z.device)
        labels = self._dropped(self._labels(batch["class_labels"]), draws)
        return model(z, noise, t, labels, context).mean() / z[0].numel(), {}

    def _normalized(self, latents: Tensor) -> Tensor:
        """Stored latents are z_clean and are normalised here; cached ones were normalised when they were encoded."""
        return latents if self._latents is None else normalize_latents(self.autoencoder.vae, latents)

    def _split(self, z: Tensor, first_draw: int) -> tuple[Tensor | None, Tensor]:
        """Splits clips (B, c, t, h, w) into context and target; in some steps there is no context."""
        count = self.args.num_context_latents
        if not count:
            return None, z
        generator = torch_generator(self.args.seed, Stream.CONTEXT_DROPOUT, first_draw)
        if float(torch.rand((), generator=generator)) < self.args.context_dropout:
            return None, z
        return z[:, :, :count], z[:, :, count:]

    def _labels(self, labels: Tensor) -> Tensor | None:
        """Labels, with the null label for samples without one; None for models without classes."""
        null = self.transformer.null_class_label
        return None if null is None else labels.masked_fill(labels == NO_LABEL, null)

    def _dropped(self, labels: Tensor | None, draws: Draws) -> Tensor | None:
        null = self.transformer.null_class_label
        if labels is None or null is None:
            return None
        generator = torch_generator(self.args.seed, Stream.LABEL_DROPOUT, draws.of_step.start)
        is_dropped = torch.rand(len(draws.of_step), generator=generator) < self.args.label_dropout
        return labels.masked_fill(draws.pick(is_dropped, labels.device), null)

    # ------------------------------------------------------------------------------------------------------------
    # Validation
    # ------------------------------------------------------------------------------------------------------------

    def validate(self, accelerator: Accelerator, step: int) -> tuple[dict[str, float], Image.Image]:
        """Returns the metrics and the picture of `validate_base` on the held-out latents, and `kid` if asked for."""
        assert self._held_out is not None  # `prepare` ran
        args, pipeline = self.args, self.pipeline()
        sampling = args.validation_inference_steps, args.validation_guidance_scale
        with accelerator.autocast():
            metrics, picture = validate_base(
                pipeline, self._held_out, self.schedule, self.weighting, args.train_batch_size, *sampling
            )
            distance = self._distance(self._held_out)
            if distance is not None:
                metrics["kid"] = distance(draw_samples(pipeline, self._held_out, args.train_batch_size, *sampling))
        return metrics, picture

    def _distance(self, held_out: HeldOutLatents) -> FeatureDistance | None:
        """The distance from decoded held-out latents, which a perfect base model would draw; None if not asked for."""
        level = float(self.transformer.config.latent_logsnr)
        size = self.args.train_batch_size
        return self.metrics.distance_from(lambda: decode_held_out(self.autoencoder, held_out, level, size))

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

    def pipeline(self) -> UnifiedLatentsPipeline:
        """The base model together with its scheduler and autoencoder."""
        scheduler = LogSNRScheduler(self.transformer.config.latent_logsnr, self.args.logsnr_min)
        return UnifiedLatentsPipeline(self.transformer, scheduler, self.autoencoder.vae)

    def save(self, folder: Path) -> None:
        """Writes a whole pipeline, the prior of its autoencoder if there is one, and the names of its classes."""
        self.pipeline().save_pretrained(folder)
        if self.autoencoder.prior is not None:
            self.autoencoder.prior.save_pretrained(folder / AUTOENCODER / PRIOR)
        if self.class_names:
            text = json.dumps(self.class_names, ensure_ascii=False) + "\n"
            (folder / CLASS_NAMES).write_text(text, encoding="utf-8")

    def describe(self) -> str:
        """Sizes of networks and data; every line is a YAML comment."""
        sizes = {"base model": self.transformer, "frozen autoencoder": self.autoencoder.vae}
        lines = [f"{name}: {sum(p.numel() for p in m.parameters()):,} parameters" for name, m in sizes.items()]
        lines += [f"training samples: {len(self.dataset)}", f"classes: {', '.join(self.class_names) or 'none'}"]
        return "\n".join(f"# {line}" for line in lines)


# ----------------------------------------------------------------------------------------------------------------
# Data and networks
# ----------------------------------------------------------------------------------------------------------------


def _in_order(parts: list[tuple[list[int], Tensor, Tensor]]) -> LatentsInMemory:
    """Sorts the latents of all processes by image; at least one part is needed."""
    order = torch.tensor([index for indices, _, _ in parts for index in indices]).argsort()
    latents, labels = torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])
    return LatentsInMemory(latents[order], labels[order])


def _load_autoencoder(args: Stage2Arguments) -> FrozenAutoencoder:
    if args.pretrained_autoencoder is not None:
        return load_ours(args.pretrained_autoencoder, args.revision)
    assert args.pretrained_vae is not None  # Stage2Arguments requires one of the two
    return load_other(args.pretrained_vae, args.vae_subfolder, args.revision)


def _make_data(
    args: Stage2Arguments, autoencoder: FrozenAutoencoder
) -> tuple[tuple[str, ...], DecodedImages | None, DecodedImages | None, Any]:
    """Returns class names, training images and held-out images, or a latent data set instead of images."""
    if args.latent_dataset is None:
        train, held_out = make_sources(args)
        if train.class_names != held_out.class_names:
            raise ValueError(
                f"--validation_data_dir must have the {len(train.class_names)} classes of the training images, "
                f"got {len(held_out.class_names)} classes or other names."
            )
        return train.class_names, train, held_out, None
    expected = {"latent_channels": autoencoder.latent_channels}
    if autoencoder.is_ours:
        expected["latent_logsnr"] = autoencoder.vae.config.latent_logsnr
    latents = LatentDataset(args.latent_dataset, expected=expected)
    if len(latents) <= args.num_validation_images:
        raise ValueError(
            f"--latent_dataset must hold more than the {args.num_validation_images} samples of "
            f"--num_validation_images, got {len(latents)}."
        )
    return latents.class_names, None, None, latents


def _make_base(
    args: Stage2Arguments, autoencoder: FrozenAutoencoder, num_classes: int, num_frames: int | None
) -> UnifiedLatentsTransformer:
    latents: dict[str, Any] = {
        "in_channels": autoencoder.latent_channels,
        "latent_logsnr": _latent_logsnr(args, autoencoder),
        "num_class_embeds": num_classes or None,
    }
    torch.manual_seed(args.seed)  # fresh weights are the same on every process and in every run
    if args.pretrained_model_name_or_path is None:
        fresh = {**latents, "sample_size": args.resolution // autoencoder.ratio, "sample_frames": num_frames}
        if args.num_context_latents:
            fresh["context_conditioning"] = True
        base = build_base(args.preset, {**fresh, **args.base_config})
        flag = "--base_config"
    else:
        check_config_keys(UnifiedLatentsTransformer, args.base_config)
        base = UnifiedLatentsTransformer.from_pretrained(args.pretrained_model_name_or_path, **args.base_config)
        flag = "--pretrained_model_name_or_path"
    for key, value in latents.items():
        if base.config[key] != value:
            raise ValueError(f"{flag} must have the {key} of the latents and labels, {value}, got {base.config[key]}.")
    return base


def _latent_frames(args: Stage2Arguments, latents: LatentDataset | None) -> int | None:
    """Number of latent frames in each clip; None for images.

    Raises:
        ValueError: clips have several lengths, or no more frames than the context.
    """
    lengths = {shape[1] if len(shape) == 4 else None for shape in latents.shapes} if latents is not None else {None}
    if len(lengths) > 1:
        raise ValueError("--latent_dataset must hold either images or clips of one length, got several lengths.")
    (num_frames,) = lengths
    if args.num_context_latents and (num_frames is None or num_frames <= args.num_context_latents):
        got = "images" if num_frames is None else f"clips of {num_frames} frames"
        raise ValueError(
            f"--num_context_latents {args.num_context_latents} needs a --latent_dataset of clips with more latent "
            f"frames, got {got}."
        )
    return num_frames


def _latent_logsnr(args: Stage2Arguments, autoencoder: FrozenAutoencoder) -> float:
    if autoencoder.is_ours:
        return float(autoencoder.vae.config.latent_logsnr)
    return OTHERS_LOGSNR_MAX if args.logsnr_max is None else args.logsnr_max
