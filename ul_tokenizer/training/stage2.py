"""What is particular to stage 2: its arguments, its loss and what its validation shows."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import ModelMixin
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm.auto import tqdm

from ul_tokenizer.diffusion.objective import SigmoidWeighting, stratified_times
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.latents.dataset import LatentDataset
from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.models.latent_normalization import normalize_latents
from ul_tokenizer.models.presets import BASE_PRESETS, build_base, check_config_keys
from ul_tokenizer.models.repository import AUTOENCODER, CLASS_NAMES, PRIOR
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.randomness import Stream, torch_generator
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler
from ul_tokenizer.sources.image_folder import ImageSource
from ul_tokenizer.training.arguments import BELOW_1, FRACTION, NOT_NEGATIVE, POSITIVE, TrainingArguments, arg
from ul_tokenizer.training.base_validation import HeldOutLatents, validate_base
from ul_tokenizer.training.data import make_sources, say
from ul_tokenizer.training.denoising import Stage2Model
from ul_tokenizer.training.draws.crops import NO_LABEL, CropSample, RandomCropDataset, collate_crops
from ul_tokenizer.training.draws.latents import LatentDraws, LatentsInMemory, collate_latents
from ul_tokenizer.training.draws.noise import Draws, sample_noise
from ul_tokenizer.training.frozen import FrozenAutoencoder, load_other, load_ours
from ul_tokenizer.training.loop import Batch, run_stage
from ul_tokenizer.training.parsing import parse_arguments

OTHERS_LOGSNR_MAX = 10.0  # where an autoencoder's latents have no noise level of their own


@dataclass
class Stage2Arguments(TrainingArguments):
    """Arguments of `train_base_model.py`."""

    EXCLUSIVE: ClassVar[tuple[tuple[str, str], ...]] = (
        *TrainingArguments.EXCLUSIVE,
        ("pretrained_autoencoder", "pretrained_vae"),
    )
    PATHS: ClassVar[tuple[str, ...]] = (
        *TrainingArguments.PATHS,
        "pretrained_autoencoder",
        "pretrained_vae",
        "latent_dataset",
        "pretrained_model_name_or_path",
    )

    # Latents
    pretrained_autoencoder: str | None = arg(None, "The frozen autoencoder: bundled name, folder or hub id.")
    pretrained_vae: str | None = arg(None, "In its place any autoencoder of diffusers, to compare latents.")
    vae_subfolder: str | None = arg(None, "Subfolder of --pretrained_vae.")
    revision: str | None = arg(None, "Revision of the autoencoder on the hub.")
    latent_dataset: str | None = arg(
        None, "Latent data set (folder or hub id) to train on, in place of images: nothing is encoded then."
    )
    cache_latents: bool = arg(
        False, "Encode every training image once, before the first step, and keep the latents in memory."
    )

    # Network
    preset: str = arg("ul-base-mini", f"Named configuration of the base model: {', '.join(BASE_PRESETS)}.")
    base: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Changes to the base model's config, as JSON."}
    )
    pretrained_model_name_or_path: str | None = arg(
        None, "Go on from this base model (a folder or hub id), in place of a preset's fresh one."
    )

    # Objective
    sigmoid_bias: float = arg(2.0, "b of the weight sigmoid(b - log-SNR); higher cares more for fine detail.")
    logsnr_max: float | None = arg(
        None, f"The cleanest level, for --pretrained_vae only ({OTHERS_LOGSNR_MAX} there); ours bring their own."
    )
    logsnr_min: float = arg(-10.0, "The noisiest level.")
    schedule: Literal["linear", "cosine"] = arg("linear", "Schedule of the levels.")
    class_conditional: bool = arg(True, "Condition on the class, where samples have one.")
    label_dropout: float = arg(0.1, "Probability of training without the class, for guidance.", BELOW_1)

    # Clips
    num_context_latents: int = arg(
        0, "Latent frames at the beginning of each clip that are given, for a model that continues clips.", NOT_NEGATIVE
    )
    context_dropout: float = arg(0.1, "Fraction of the steps in which all frames are generated instead.", FRACTION)

    # Validation
    validation_inference_steps: int = arg(16, "Steps of the validation's samples.", POSITIVE)
    validation_guidance_scale: float = arg(1.0, "Guidance of the validation's samples.", NOT_NEGATIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in BASE_PRESETS:
            raise ValueError(f"--preset must be one of {', '.join(BASE_PRESETS)}, got {self.preset}.")
        if not (self.pretrained_autoencoder or self.pretrained_vae):
            raise ValueError("one of --pretrained_autoencoder and --pretrained_vae is needed, got neither.")
        if self.vae_subfolder and not self.pretrained_vae:
            raise ValueError("--vae_subfolder needs --pretrained_vae.")
        if self.logsnr_max is not None and not self.pretrained_vae:
            raise ValueError("--logsnr_max needs --pretrained_vae: our autoencoders bring their own level.")
        sources = [bool(self.train_data_dir or self.dataset_name), bool(self.latent_dataset)]
        if sum(sources) != 1:
            got = "both" if all(sources) else "neither"
            raise ValueError(f"images (--train_data_dir or --dataset_name) or --latent_dataset are needed, got {got}.")
        if self.cache_latents and not self._crops_are_fixed():
            raise ValueError(
                "--cache_latents needs crops that never change: --center_crop, --no-random_flip, --scale_min 1."
            )

    def _crops_are_fixed(self) -> bool:
        return self.latent_dataset is None and self.center_crop and not self.random_flip and self.scale_min == 1


class Stage2:
    """Stage 2 for the shared loop."""

    def __init__(self, args: Stage2Arguments) -> None:
        self.args = args
        self.autoencoder = _load_autoencoder(args)
        self.class_names, self._images, self._held_out_source, self._latents = _make_data(args, self.autoencoder)
        if not args.class_conditional:
            self.class_names = ()
        num_frames = _latent_frames(args, self._latents)
        self.transformer = _make_base(args, self.autoencoder, len(self.class_names), num_frames)
        self.models: dict[str, ModelMixin] = {"transformer": self.transformer}
        level = self.transformer.config.latent_logsnr
        self.schedule = LogSNRSchedule(level, args.logsnr_min, args.schedule)
        self.weighting = SigmoidWeighting(1.0, args.sigmoid_bias)
        self.model: nn.Module = Stage2Model(self.transformer, self.schedule, self.weighting)
        self._check_resolution()
        self.dataset: Any = self._crops(self._images, args.seed) if self._images else None
        if self._latents is not None:  # of which the last ones are held out
            train = Subset(self._latents, range(len(self._latents) - args.num_validation_images))
            self.dataset = LatentDraws(train, args.seed)
        self._held_out: HeldOutLatents | None = None

    def _check_resolution(self) -> None:
        multiple = self.autoencoder.ratio * self.transformer.size_multiple
        if self.args.resolution % multiple:
            raise ValueError(
                f"--resolution must be a multiple of {multiple} for these networks, got {self.args.resolution}."
            )

    def _crops(self, source: ImageSource, seed: int) -> RandomCropDataset:
        args = self.args
        scale = (args.scale_min, 1.0)
        return RandomCropDataset(source, args.resolution, seed, scale, args.random_flip, args.center_crop)

    # ------------------------------------------------------------------------------------------------------------
    # Latents
    # ------------------------------------------------------------------------------------------------------------

    def prepare(self, accelerator: Accelerator) -> None:
        """Moves the autoencoder, encodes what is held out and, with `--cache_latents`, all training images."""
        self.autoencoder.to(accelerator.device)
        with accelerator.autocast():
            self._held_out = self._encode_held_out(accelerator.device)
            if self.args.cache_latents:
                self.dataset = LatentDraws(self._encode_all(accelerator), self.args.seed)

    def _encode_held_out(self, device: torch.device) -> HeldOutLatents:
        count = self.args.num_validation_images
        if self._latents is not None:
            samples = [self._latents[i] for i in range(len(self._latents) - count, len(self._latents))]
            batch = collate_latents(samples)
            labels = self._labels(batch["class_labels"].to(device))
            return HeldOutLatents(self._normalized(batch["latents"].to(device)), labels, self.args.num_context_latents)
        assert self._held_out_source is not None  # with images there is one
        crops = self._crops(self._held_out_source, seed=0)
        pixels = collate_crops([crops[n] for n in range(count)])
        latents = self.autoencoder.encode(pixels["pixel_values"].to(device))
        return HeldOutLatents(latents, self._labels(pixels["class_labels"].to(device)))

    def _encode_all(self, accelerator: Accelerator) -> LatentsInMemory:
        """Every readable image once, each process its share; then all have all, as a process's draws may be any."""
        assert self._images is not None
        crops, size = self._crops(self._images, seed=0), self.args.train_batch_size
        mine = range(accelerator.process_index, len(crops), accelerator.num_processes)
        parts = []
        is_quiet = not (accelerator.is_main_process and sys.stderr.isatty())
        bar = tqdm(range(0, len(mine), size), "encoding", disable=is_quiet)
        for first in bar:
            batch = self._readable(crops, mine[first : first + size])
            if batch:
                pixels = collate_crops([crop for _, crop in batch])
                latents = self.autoencoder.encode(pixels["pixel_values"].to(accelerator.device)).cpu()
                parts.append(([index for index, _ in batch], latents, pixels["class_labels"]))
        return _in_order(gather_object(parts))

    def _readable(self, crops: RandomCropDataset, indices: range) -> list[tuple[int, CropSample]]:
        batch = []
        for index in indices:
            try:
                batch.append((index, crops.crop_of(index)))
            except UnreadableImageError as error:
                say(f"skipped {crops.source.name(index)}: {error.reason}", everywhere=True)
        return batch

    def collate(self, samples: list[Any]) -> Any:
        """Stacks latents, or crops that are still to be encoded."""
        return collate_latents(samples) if "latent" in samples[0] else collate_crops(samples)

    # ------------------------------------------------------------------------------------------------------------
    # Loss
    # ------------------------------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, batch: Batch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss in nats per latent dimension."""
        z = self._normalized(batch["latents"]) if "latents" in batch else self.autoencoder.encode(batch["pixel_values"])
        context, z = self._split(z, draws.of_step.start)
        (noise,) = sample_noise([tuple(z.shape[1:])], draws.local, self.args.seed, z.device)
        generator = torch_generator(self.args.seed, Stream.TIMES, draws.of_step.start)
        t = draws.pick(stratified_times(len(draws.of_step), generator)).to(z.device)
        labels = self._dropped(self._labels(batch["class_labels"]), draws)
        return model(z, noise, t, labels, context).mean() / z[0].numel(), {}

    def _normalized(self, latents: Tensor) -> Tensor:
        """Stored latents are z_clean and are normalised here; cached ones were normalised when they were encoded."""
        return latents if self._latents is None else normalize_latents(self.autoencoder.vae, latents)

    def _split(self, z: Tensor, first_draw: int) -> tuple[Tensor | None, Tensor]:
        """What is given of clips (B, c, t, h, w), and what is to be generated; in some steps all is."""
        count = self.args.num_context_latents
        if not count:
            return None, z
        generator = torch_generator(self.args.seed, Stream.CONTEXT_DROPOUT, first_draw)
        if float(torch.rand((), generator=generator)) < self.args.context_dropout:
            return None, z
        return z[:, :, :count], z[:, :, count:]

    def _labels(self, labels: Tensor) -> Tensor | None:
        """Labels with "none" as the null label; None for models without classes."""
        null = self.transformer.null_class_label
        return None if null is None else torch.where(labels == NO_LABEL, null, labels)

    def _dropped(self, labels: Tensor | None, draws: Draws) -> Tensor | None:
        null = self.transformer.null_class_label
        if labels is None or null is None:
            return None
        generator = torch_generator(self.args.seed, Stream.LABEL_DROPOUT, draws.of_step.start)
        dropped = draws.pick(torch.rand(len(draws.of_step), generator=generator) < self.args.label_dropout)
        return torch.where(dropped.to(labels.device), null, labels)

    # ------------------------------------------------------------------------------------------------------------
    # Validation
    # ------------------------------------------------------------------------------------------------------------

    def validate(self, accelerator: Accelerator, step: int) -> tuple[dict[str, float], Image.Image]:
        """The loss and the error per level on held-out latents, bits, and a grid of samples with fixed seeds."""
        assert self._held_out is not None  # `prepare` ran
        with accelerator.autocast():
            return validate_base(
                self.pipeline(),
                self._held_out,
                self.schedule,
                self.weighting,
                self.args.train_batch_size,
                self.args.validation_inference_steps,
                self.args.validation_guidance_scale,
            )

    def observe(self, step: int, metrics: dict[str, float]) -> str | None:
        """Nothing to decide."""
        return None

    # ------------------------------------------------------------------------------------------------------------
    # State
    # ------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Nothing beside the weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def pipeline(self) -> UnifiedLatentsPipeline:
        """The base model with its scheduler and autoencoder."""
        scheduler = LogSNRScheduler(self.transformer.config.latent_logsnr, self.args.logsnr_min)
        return UnifiedLatentsPipeline(self.transformer, scheduler, self.autoencoder.vae)

    def save(self, folder: Path) -> None:
        """A pipeline's folder: base model, scheduler, autoencoder (with its prior, if it has one), class names."""
        self.pipeline().save_pretrained(folder)
        if self.autoencoder.prior is not None:
            self.autoencoder.prior.save_pretrained(folder / AUTOENCODER / PRIOR)
        if self.class_names:
            text = json.dumps(self.class_names, ensure_ascii=False) + "\n"
            (folder / CLASS_NAMES).write_text(text, encoding="utf-8")

    def describe(self) -> str:
        """Sizes of networks and data, a YAML comment each."""
        sizes = {"base model": self.transformer, "frozen autoencoder": self.autoencoder.vae}
        lines = [f"{name}: {sum(p.numel() for p in m.parameters()):,} parameters" for name, m in sizes.items()]
        lines += [f"training samples: {len(self.dataset)}", f"classes: {', '.join(self.class_names) or 'none'}"]
        return "\n".join(f"# {line}" for line in lines)


# ----------------------------------------------------------------------------------------------------------------
# Making of
# ----------------------------------------------------------------------------------------------------------------


def _in_order(parts: list[tuple[list[int], Tensor, Tensor]]) -> LatentsInMemory:
    """What all processes encoded, in the order of the images; at least one part."""
    order = torch.tensor([index for indices, _, _ in parts for index in indices]).argsort()
    latents, labels = torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])
    return LatentsInMemory(latents[order], labels[order])


def _load_autoencoder(args: Stage2Arguments) -> FrozenAutoencoder:
    if args.pretrained_autoencoder is not None:
        return load_ours(args.pretrained_autoencoder, args.revision)
    assert args.pretrained_vae is not None  # Stage2Arguments sees to it
    return load_other(args.pretrained_vae, args.vae_subfolder, args.revision)


def _make_data(
    args: Stage2Arguments, autoencoder: FrozenAutoencoder
) -> tuple[tuple[str, ...], ImageSource | None, ImageSource | None, Any]:
    """Class names, training images and held-out images or, in place of images, a latent data set."""
    if args.latent_dataset is None:
        train, held_out = make_sources(args)
        if train.class_names != held_out.class_names:
            raise ValueError(
                f"--validation_data_dir must have the {len(train.class_names)} classes of the training images, "
                f"got {len(held_out.class_names)} or others."
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
        base = build_base(args.preset, {**fresh, **args.base})
        flag = "--base"
    else:
        check_config_keys(UnifiedLatentsTransformer, args.base)
        base = UnifiedLatentsTransformer.from_pretrained(args.pretrained_model_name_or_path, **args.base)
        flag = "--pretrained_model_name_or_path"
    for key, value in latents.items():
        if base.config[key] != value:
            raise ValueError(f"{flag} must have the {key} of the latents and labels, {value}, got {base.config[key]}.")
    return base


def _latent_frames(args: Stage2Arguments, latents: LatentDataset | None) -> int | None:
    """Frames of the latents of clips; None for images.

    Raises:
        ValueError: clips of several lengths, or no more frames than are given.
    """
    lengths = {shape[1] if len(shape) == 4 else None for shape in latents.shapes} if latents is not None else {None}
    if len(lengths) > 1:
        raise ValueError("--latent_dataset must hold clips of one length, or images, got several.")
    (num_frames,) = lengths
    if args.num_context_latents and (num_frames is None or num_frames <= args.num_context_latents):
        got = "images" if num_frames is None else f"clips of {num_frames}"
        raise ValueError(
            f"--num_context_latents {args.num_context_latents} needs a --latent_dataset of clips with more latent "
            f"frames than that, got {got}."
        )
    return num_frames


def _latent_logsnr(args: Stage2Arguments, autoencoder: FrozenAutoencoder) -> float:
    if autoencoder.is_ours:
        return float(autoencoder.vae.config.latent_logsnr)
    return OTHERS_LOGSNR_MAX if args.logsnr_max is None else args.logsnr_max


def train_base_model(argv: Sequence[str] | None = None) -> int:
    """Stage-2 training from flags and a config file; returns the exit status."""
    args = parse_arguments(Stage2Arguments, argv, "Train a base model on the latents of an autoencoder (stage 2).")
    return run_stage(args, Stage2)
