"""Stage 2: a base model, trained on the latents of a frozen autoencoder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, PartialState
from diffusers import ModelMixin
from PIL import Image
from torch import Tensor, nn

from ul_tokenizer.diffusion.objective import SigmoidWeighting, stratified_times
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.models.latent_normalization import is_normalized, normalize_latents
from ul_tokenizer.models.presets import build_base, check_config_keys
from ul_tokenizer.models.repository import AUTOENCODER, CLASS_NAMES, PRIOR
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.randomness import Stream, torch_generator
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.training.base_validation import HeldOutLatents, decode_held_out, draw_samples, validate_base
from ul_tokenizer.training.data import draws_per_step, make_training_crops
from ul_tokenizer.training.denoising import Stage2Model
from ul_tokenizer.training.draws.crops import NO_LABEL, RandomCropDataset, collate_crops
from ul_tokenizer.training.draws.latents import collate_latents
from ul_tokenizer.training.draws.noise import Draws, sample_noise
from ul_tokenizer.training.draws.repeats import RepeatedImages
from ul_tokenizer.training.engine.loop import run_stage
from ul_tokenizer.training.engine.stage import Batch
from ul_tokenizer.training.estimate.stages import estimate_base
from ul_tokenizer.training.frozen import FrozenAutoencoder, load_other, load_ours
from ul_tokenizer.training.latent_cache import encode_all
from ul_tokenizer.training.stage2_arguments import OTHERS_LOGSNR_MAX
from ul_tokenizer.training.stage2_arguments import Stage2Arguments as Stage2Arguments
from ul_tokenizer.training.stage2_data import (
    Split,
    captions_of,
    check_latents,
    check_sizes,
    draws_of,
    latent_frames,
    open_data,
    split_latents,
)
from ul_tokenizer.training.stage2_text import open_text_encoder, state_of, with_unknown
from ul_tokenizer.training.text import TextEncoder, TextStates, TextTokens
from ul_tokenizer.training.text_cache import CachedText, collate_text, fill_cache
from ul_tokenizer.training.trained_text import TrainedTextEncoder, text_encoder_in
from ul_tokenizer.training.validation_metrics import FeatureDistance, ValidationMetrics


def train_base_model(args: Stage2Arguments) -> bool:
    """Trains a base model on the latents of a frozen autoencoder (stage 2).

    A whole pipeline is written to `args.output_dir`, which `UnifiedLatentsPipeline.from_pretrained` loads. With
    `args.as_prior`, it is the autoencoder with a new prior, as `train_autoencoder` writes it. Progress is printed on
    standard error.

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
    return run_stage(args, Stage2, estimate_base)


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
        data = open_data(args)
        self.metrics = ValidationMetrics(args, PartialState().device)
        self.autoencoder = _load_autoencoder(args)
        self.class_names = data.class_names if args.class_conditional else ()
        self._images, self._held_out_source, self._latents = data.images, data.held_out_images, data.latents
        if args.cached_crops is not None and self._images is not None:
            self._images = RepeatedImages(self._images, args.cached_crops)
        if self._latents is not None:
            check_latents(args, self._latents, self.autoencoder)
        num_frames = latent_frames(args, self._latents)
        self._split: Split | None = None
        if self._latents is not None:
            self._split = split_latents(self._latents, args.num_validation_images)
        self._text = open_text_encoder(args, self._captions)
        transformer = _make_base(args, self.autoencoder, len(self.class_names), num_frames, self._text)
        self.models: dict[str, ModelMixin] = {"transformer": transformer}
        if self._text is not None and self._text.is_trained:
            self.models["text_encoder"] = TrainedTextEncoder.of(self._text)
        level = self.transformer.config.latent_logsnr
        self.schedule = LogSNRSchedule(level, args.logsnr_min, args.schedule)
        # The prior's weight is 1 at all levels, which the sigmoid tends to.
        self.weighting = SigmoidWeighting(1.0, math.inf if args.as_prior else args.sigmoid_bias)
        trained_text = text_encoder_in(self.models)
        self.model: nn.Module = Stage2Model(self.transformer, self.schedule, self.weighting, trained_text)
        self._check_resolution()
        multiple = self.autoencoder.ratio * self.transformer.size_multiple
        self.dataset: Any = make_training_crops(args, self._images, multiple) if self._images else None
        if self._latents is not None and self._split is not None:
            check_sizes(self._latents, self.transformer.size_multiple)
            self.dataset = draws_of(self._latents, self._split.train, args.seed, draws_per_step(args))
        self._held_out: HeldOutLatents | None = None
        self._held_out_captions: list[str | None] = []

    @property
    def text(self) -> TextEncoder | None:
        """The text encoder: if it is trained with FSDP, within validation and saving, a whole copy of it."""
        trained = text_encoder_in(self.models)
        return self._text if trained is None or self._text is None else self._text.with_model(trained.encoder)

    def _captions(self) -> Iterator[str | None]:
        """The captions of all training samples."""
        if self._split is not None:
            return captions_of(self._latents, self._split.train)
        return captions_of(self._images)

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
        options: Any = {"scaling": args.scaling}
        return RandomCropDataset(source, args.resolution, seed, scale, args.random_flip, args.center_crop, **options)

    # ------------------------------------------------------------------------------------------------------------
    # Latents
    # ------------------------------------------------------------------------------------------------------------

    def prepare(self, accelerator: Accelerator) -> None:
        """Moves the frozen networks to the device and encodes what is held out; with `cache_…`, all else, too."""
        args, device = self.args, accelerator.device
        self.autoencoder.to(device)
        if self._text is not None and not self._text.is_trained:
            self._text.to(device)
        with accelerator.autocast():
            self._held_out = self._encode_held_out(device)
            if args.cache_latents:
                self._cache_latents(device)
            if args.cache_text_embeddings:
                self._cache_text()
            if accelerator.is_main_process:
                self._distance(self._held_out)

    def _cache_latents(self, device: torch.device) -> None:
        """Encodes all images; the training then reads their latents."""
        assert self._images is not None  # Stage2Arguments refuses `cache_latents` without images
        level = float(self.transformer.config.latent_logsnr)
        self._latents, order = encode_all(self.args, self._images, self.dataset, self.autoencoder, level, device)
        self.dataset = draws_of(self._latents, order, self.args.seed, draws_per_step(self.args))
        self._images = None  # which would keep the decoded images in memory

    def _cache_text(self) -> None:
        """Encodes all captions; the training then reads their hidden states, and the encoder leaves the GPU."""
        assert self.text is not None  # Stage2Arguments refuses the cache without a text encoder
        source = self._images if self._latents is None else self._latents
        folder = Path(self.args.text_embeddings_dir or Path(self.args.output_dir, "text_embeddings"))
        cache = fill_cache(folder, self.text, captions_of(source), self.args.train_batch_size)
        self.dataset = CachedText(self.dataset, cache)
        self.text.to(torch.device("cpu"))

    def _encode_held_out(self, device: torch.device) -> HeldOutLatents:
        args = self.args
        parts: list[Tensor] = []
        if self._split is not None and self._latents is not None:
            batch: Any = collate_latents([self._latents[int(i)] for i in self._split.held_out])
            latents, num_context = self._normalized(batch["latents"].to(device)), args.num_context_latents
        else:
            assert self._held_out_source is not None  # only a latent data set has none
            crops = self._crops(self._held_out_source, seed=0)
            batch = self.collate([crops[n] for n in range(args.num_validation_images)])
            for x in batch["pixel_values"].split(args.train_batch_size):
                first = sum(map(len, parts))
                parts.append(self._encoded(x.to(device), range(first, first + len(x))))
            latents, num_context = torch.cat(parts), 0
        self._held_out_captions = batch["captions"]
        text = None if self.text is None or self.text.is_trained else self.text(batch["captions"])
        return HeldOutLatents(latents, self._labels(batch["class_labels"].to(device)), num_context, text)

    def collate(self, samples: list[Any]) -> Any:
        """Stacks latents, or crops that the loss will encode, and hidden states of captions if they are cached."""
        batch: dict[str, Any] = dict(collate_latents(samples) if "latent" in samples[0] else collate_crops(samples))
        text = collate_text(samples)
        return batch if text is None else {**batch, **text._asdict()}

    # ------------------------------------------------------------------------------------------------------------
    # Loss
    # ------------------------------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted loss in nats per latent dimension, 0-dimensional."""
        stored = "latents" in batch
        z = self._normalized(batch["latents"]) if stored else self._encoded(batch["pixel_values"], draws.local)
        context, z = self._divided(z, draws.of_step.start)
        (noise,) = sample_noise([tuple(z.shape[1:])], draws.local, self.args.seed, z.device)
        generator = torch_generator(self.args.seed, Stream.TIMES, draws.of_step.start)
        t = draws.pick(stratified_times(len(draws.of_step), generator), z.device)
        labels = self._dropped(self._labels(batch["class_labels"]), draws)
        text = self._text_of(batch, draws)
        return model(z, noise, t, labels, context, text).mean() / z[0].numel(), {}

    def _normalized(self, latents: Tensor) -> Tensor:
        """Stored latents are z_clean as the autoencoder gives it."""
        return normalize_latents(self.autoencoder.vae, latents)

    def _encoded(self, pixels: Tensor, draws: Sequence[int]) -> Tensor:
        """Normalised latents; an encoder that learned a variance draws them, each sample with noise of its own."""
        if not self.autoencoder.is_random:
            return self.autoencoder.encode(pixels)
        shape = (self.autoencoder.latent_channels, *(side // self.autoencoder.ratio for side in pixels.shape[-2:]))
        _, noise = sample_noise([shape, shape], draws, self.args.seed, pixels.device)  # the first is that of z_t
        return self.autoencoder.encode(pixels, noise)

    def _divided(self, z: Tensor, first_draw: int) -> tuple[Tensor | None, Tensor]:
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
        return labels.masked_fill(self._is_dropped(draws, self.args.label_dropout, labels.device), null)

    def _text_of(self, batch: Batch, draws: Draws) -> TextStates | TextTokens | None:
        """Captions, some of them dropped, as tokens if the text encoder is trained; None for models without text."""
        encoder = self.text
        if encoder is None:
            return None
        text: TextStates | TextTokens
        if encoder.is_trained:
            text = with_unknown(self.args, encoder, encoder.tokens(batch["captions"]), draws)
        else:
            text = TextStates(batch["states"], batch["mask"]) if "states" in batch else encoder(batch["captions"])
        return text.without(self._is_dropped(draws, self.args.caption_dropout, text.mask.device))

    def _is_dropped(self, draws: Draws, probability: float, device: torch.device) -> Tensor:
        """(B,) bool; a sample that loses its caption mostly loses its class as well, as guidance leaves out both."""
        generator = torch_generator(self.args.seed, Stream.LABEL_DROPOUT, draws.of_step.start)
        return draws.pick(torch.rand(len(draws.of_step), generator=generator) < probability, device)

    # ------------------------------------------------------------------------------------------------------------
    # Validation
    # ------------------------------------------------------------------------------------------------------------

    def validate(self, accelerator: Accelerator, step: int) -> tuple[dict[str, float], Image.Image]:
        """Returns the metrics and the picture of `validate_base` on the held-out latents, and `kid` if asked for."""
        assert self._held_out is not None  # `prepare` ran
        args, pipeline, held_out, text = self.args, self.pipeline(), self._held_out, self.text
        sampling = args.validation_inference_steps, args.validation_guidance_scale
        with accelerator.autocast():
            if text is not None and text.is_trained:
                held_out = replace(held_out, text=text(self._held_out_captions))
            metrics, picture = validate_base(
                pipeline, held_out, self.schedule, self.weighting, args.train_batch_size, *sampling
            )
            if args.as_prior:
                metrics["bits_per_pixel"] = metrics["bits_per_latent_dim"] * self._dims_per_pixel(held_out.latents)
            distance = self._distance(held_out)
            if distance is not None:
                metrics["kid"] = distance(draw_samples(pipeline, held_out, args.train_batch_size, *sampling))
        return metrics, picture

    def _dims_per_pixel(self, latents: Tensor) -> float:
        """Latent dimensions per pixel, for clips per pixel of a frame."""
        frames = self.autoencoder.frames_of(latents.shape[2]) if latents.ndim == 5 else 1
        height, width = (side * self.autoencoder.ratio for side in latents.shape[-2:])
        return latents[0].numel() / (frames * height * width)

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
        """The tokenizer of a fresh text encoder; this stage has no other state beside the weights."""
        return state_of(self.args, self._text)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing: the tokenizer was needed to make the text encoder."""

    def pipeline(self, with_text: bool = False) -> UnifiedLatentsPipeline:
        """The base model with its scheduler and autoencoder and, if asked for, its text encoder and tokenizer."""
        scheduler = LogSNRScheduler(self.transformer.config.latent_logsnr, self.args.logsnr_min)
        text = self.text if with_text else None
        parts = (None, None) if text is None else (text.model, text.tokenizer)
        return UnifiedLatentsPipeline(self.transformer, scheduler, self.autoencoder.vae, *parts)

    def save(self, folder: Path) -> None:
        """Writes a whole pipeline, the prior of its autoencoder if there is one, and the names of its classes.

        A prior is written below its autoencoder.
        """
        if self.args.as_prior:
            self.autoencoder.vae.save_pretrained(folder)
            self.transformer.save_pretrained(folder / PRIOR)
            return
        self.pipeline(with_text=True).save_pretrained(folder)
        if self.autoencoder.prior is not None:
            self.autoencoder.prior.save_pretrained(folder / AUTOENCODER / PRIOR)
        if self.class_names:
            text = json.dumps(self.class_names, ensure_ascii=False) + "\n"
            (folder / CLASS_NAMES).write_text(text, encoding="utf-8")

    def describe(self) -> str:
        """Sizes of networks and data; every line is a YAML comment."""
        sizes = {"base model": self.transformer, "frozen autoencoder": self.autoencoder.vae}
        if self.text is not None:
            sizes["text encoder" if self.text.is_trained else "frozen text encoder"] = self.text.model
        lines = [f"{name}: {sum(p.numel() for p in m.parameters()):,} parameters" for name, m in sizes.items()]
        lines += [f"training samples: {len(self.dataset)}", f"classes: {', '.join(self.class_names) or 'none'}"]
        return "\n".join(f"# {line}" for line in lines)


# ----------------------------------------------------------------------------------------------------------------
# Networks
# ----------------------------------------------------------------------------------------------------------------


def _load_autoencoder(args: Stage2Arguments) -> FrozenAutoencoder:
    if args.pretrained_autoencoder is not None:
        autoencoder = load_ours(args.pretrained_autoencoder, args.revision)
        if args.as_prior and is_normalized(autoencoder.vae):
            raise ValueError(
                "--as_prior needs an autoencoder without statistics of its latents, since the level of z_0 is relative "
                f"to their own scale, got {args.pretrained_autoencoder}."
            )
        return autoencoder
    assert args.pretrained_vae is not None  # Stage2Arguments requires one of the two
    return load_other(args.pretrained_vae, args.vae_subfolder, args.revision)


def _make_base(
    args: Stage2Arguments,
    autoencoder: FrozenAutoencoder,
    num_classes: int,
    num_frames: int | None,
    text: TextEncoder | None,
) -> UnifiedLatentsTransformer:
    latents: dict[str, Any] = {
        "in_channels": autoencoder.latent_channels,
        "latent_logsnr": _latent_logsnr(args, autoencoder),
        "num_class_embeds": num_classes or None,
    }
    if text is not None:
        latents["cross_attention_dim"] = text.width
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
        if base.config.sample_size is None:  # a prior of stage 1; sampling in validation needs a size
            base.register_to_config(sample_size=args.resolution // autoencoder.ratio)
        flag = "--pretrained_model_name_or_path"
    if text is None and base.config.cross_attention_dim is not None:
        raise ValueError(
            f"{flag} or --preset {args.preset} is for a model of captions, which needs --text_encoder or "
            "--text_encoder_config."
        )
    for key, value in latents.items():
        if base.config[key] != value:
            others = " and labels" if key != "cross_attention_dim" else " and of the text encoder"
            raise ValueError(f"{flag} must have the {key} of the latents{others}, {value}, got {base.config[key]}.")
    return base


def _latent_logsnr(args: Stage2Arguments, autoencoder: FrozenAutoencoder) -> float:
    if autoencoder.is_ours:
        return float(autoencoder.vae.config.latent_logsnr)
    return OTHERS_LOGSNR_MAX if args.logsnr_max is None else args.logsnr_max
