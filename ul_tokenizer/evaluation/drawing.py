"""Draws images with a pipeline, in a stated way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ul_tokenizer import _compat
from ul_tokenizer.diffusion.guidance import Guidance
from ul_tokenizer.diffusion.parameterization import to_x
from ul_tokenizer.diffusion.schedule import alpha_sigma
from ul_tokenizer.evaluation.prompts import Prompts
from ul_tokenizer.media.pixels import to_uint8
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.randomness import EvaluationStream, torch_generator
from ul_tokenizer.schedulers.log_snr import AlgorithmType, LogSNRScheduler

Decoded = Literal["z0", "clean", "scaled-clean"]
_STEPS = ("num_inference_steps", 1), ("decoder_num_inference_steps", 1)


@dataclass(frozen=True)
class Sampling:
    """Settings for drawing images.

    Args:
        num_images: number of images, N; the classes take turns.
        solver: the scheduler's `algorithm_type`.
        num_inference_steps: steps of the base model.
        decoder_num_inference_steps: steps of the decoder; None for the number in the autoencoder's config.
        guidance_scale: 1 is no guidance.
        guidance_interval: (lowest, highest) log-SNR at which to guide; None for all.
        decode: input of the decoder. "z0" is the noisy sample that it was trained on. For comparison, "clean" is the
            model's estimate ẑ of the latent without noise, and "scaled-clean" is α₀ẑ.
        unconditional: request no class and no text, even from a model with such conditions.
        seed: seed of all noise. The noise of image i depends on the seed and i only.

    Raises:
        ValueError: an unknown solver or kind of decoding, or a number out of its range.
    """

    num_images: int = 10_000
    solver: AlgorithmType = "ddim"
    num_inference_steps: int = 32
    decoder_num_inference_steps: int | None = None
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    decode: Decoded = "z0"
    unconditional: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, words in (("solver", self.solver, AlgorithmType), ("decode", self.decode, Decoded)):
            if value not in get_args(words):
                raise ValueError(f"{name} must be one of {', '.join(get_args(words))}, got {value!r}.")
        for name, least in (("num_images", 2), ("seed", 0), *_STEPS):
            number = getattr(self, name)
            if number is not None and number < least:
                raise ValueError(f"{name} must be at least {least}, got {number}.")
        Guidance(self.guidance_scale, self.guidance_interval)


def sample_generators(seed: int, stream: EvaluationStream, indices: Sequence[int]) -> list[torch.Generator]:
    """One generator per sample. It depends on the sample's index, not on the batch."""
    return [torch_generator(seed, stream, index) for index in indices]


class Drawer:
    """Draws numbered images with a pipeline; image k depends on the settings and on k only.

    Args:
        pipeline: generator of the images; its `transformer` may be a stage-1 prior. It is not changed.
        sampling: settings for drawing.
        size: height and width of the images in pixels.
        num_classes: number of the data's classes; 0 if it has none.
        prompts: texts of the images, and their classes in place of classes that take turns; None for no text.

    Raises:
        ValueError: a size that the model can't draw, the model and the data have different classes, guidance without
            a condition, prompts for a model without a text encoder or without conditions, or a `decode` that the
            autoencoder does not support.
    """

    def __init__(
        self,
        pipeline: UnifiedLatentsPipeline,
        sampling: Sampling,
        size: tuple[int, int],
        num_classes: int,
        prompts: Prompts | None = None,
    ) -> None:
        _check_size(pipeline, size)
        _check_decode(pipeline, sampling)
        _check_prompts(pipeline, sampling, prompts)
        self.pipeline, self.sampling, self.size, self.prompts = pipeline, sampling, size, prompts
        self.num_classes = None if prompts is not None else _num_classes(pipeline, sampling, num_classes)

    def labels(self, numbers: Sequence[int]) -> Tensor | None:
        """The requested classes of images, (B,) int64, of the prompts or in turns; None if no class is requested."""
        if self.prompts is not None:
            labels = self.prompts.labels_of_images(numbers)
            return None if labels is None else torch.tensor(labels)
        return torch.tensor(numbers) % self.num_classes if self.num_classes else None

    def texts(self, numbers: Sequence[int]) -> list[str] | None:
        """The prompts of images; None without prompts."""
        return None if self.prompts is None else self.prompts.of_images(numbers)

    @torch.inference_mode()
    def draw(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images with these numbers, (B, 3, H, W) uint8, and which of them are finite, (B,) bool."""
        wanted = _Wanted(numbers, self.labels(numbers), self.texts(numbers))
        with prepared(self.pipeline, self.sampling.solver):
            pixels = _draw(self.pipeline, self.sampling, wanted, self.size)
        is_finite = pixels.isfinite().flatten(1).all(1).cpu()
        return to_uint8(pixels.nan_to_num()).cpu(), is_finite


def _check_size(pipeline: UnifiedLatentsPipeline, size: tuple[int, int]) -> None:
    multiple = pipeline.vae_scale_factor * pipeline.transformer.size_multiple
    if any(side % multiple for side in size):
        raise ValueError(
            f"size must be a multiple of {multiple} pixels on both sides for this model, got {size[0]}×{size[1]}; "
            f"choose resolution and crop."
        )


def _check_decode(pipeline: UnifiedLatentsPipeline, sampling: Sampling) -> None:
    if sampling.decode != "z0" and not isinstance(pipeline.vae, UnifiedLatentsAutoencoder):
        raise ValueError(f"decode must be z0 for a {type(pipeline.vae).__name__}, got {sampling.decode!r}.")


def _check_prompts(pipeline: UnifiedLatentsPipeline, sampling: Sampling, prompts: Prompts | None) -> None:
    if prompts is None:
        return
    if pipeline.text_encoder is None:
        raise ValueError("prompts must be left out for a pipeline without a text encoder, got some.")
    if sampling.unconditional:
        raise ValueError("prompts must be left out where images are drawn without conditions, got some.")


def _num_classes(pipeline: UnifiedLatentsPipeline, sampling: Sampling, of_data: int) -> int | None:
    """How many classes take turns; None if no class is requested."""
    known = pipeline.transformer.config.num_class_embeds
    if known is None or sampling.unconditional:
        if sampling.guidance_scale != 1:
            raise ValueError(
                f"guidance_scale must be 1 where no class and no text is asked for, got {sampling.guidance_scale}."
            )
        return None
    if of_data and known != of_data:
        raise ValueError(f"pipeline must know the data's {of_data} classes, got one of {known}.")
    return int(known)


@contextmanager
def prepared(pipeline: UnifiedLatentsPipeline, solver: AlgorithmType) -> Iterator[None]:
    """Gives the pipeline another solver and no progress bar, until the end of the context."""
    scheduler, bar = pipeline.scheduler, _compat.progress_bar_config(pipeline)
    pipeline.scheduler = LogSNRScheduler.from_config(scheduler.config, algorithm_type=solver)
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipeline.scheduler = scheduler
        pipeline.set_progress_bar_config(**bar)


class _Wanted(NamedTuple):
    """Images to draw."""

    numbers: Sequence[int]
    labels: Tensor | None  # (B,)
    texts: list[str] | None  # B of them


def _draw(pipeline: UnifiedLatentsPipeline, sampling: Sampling, wanted: _Wanted, size: tuple[int, int]) -> Tensor:
    """Draws images: pixels (B, 3, H, W) in [−1, 1]."""
    generators = sample_generators(sampling.seed, EvaluationStream.GENERATION, wanted.numbers)
    steps = sampling.decoder_num_inference_steps
    options: dict[str, Any] = {
        "class_labels": wanted.labels,
        "prompt": wanted.texts,
        "num_images_per_prompt": len(wanted.numbers) if wanted.labels is None and wanted.texts is None else 1,
        "height": size[0],
        "width": size[1],
        "num_inference_steps": sampling.num_inference_steps,
        "decoder_num_inference_steps": steps,
        "guidance_scale": sampling.guidance_scale,
        "guidance_interval": sampling.guidance_interval,
        "generator": generators,
    }
    if sampling.decode == "z0":
        images: Tensor = pipeline(**options, output_type="pt", return_dict=False)[0]
        return 2 * images - 1
    z_0 = pipeline(**options, output_type="latent", return_dict=False)[0]
    clean = clean_estimate(pipeline, z_0, wanted.labels, wanted.texts)
    level = torch.tensor(pipeline.transformer.config.latent_logsnr)
    given = clean * alpha_sigma(level)[0] if sampling.decode == "scaled-clean" else clean
    # The generators go on where the pipeline left them, so that the decoder gets the noise that "z0" gives it.
    pixels: Tensor = pipeline.vae.decode(
        given.to(pipeline.vae.dtype), generator=generators, num_inference_steps=steps
    ).sample
    return pixels.float()


def clean_estimate(
    pipeline: UnifiedLatentsPipeline, z_0: Tensor, class_labels: Tensor | None, texts: list[str] | None = None
) -> Tensor:
    """ẑ = α₀ z_0 − σ₀ v(z_0, λ(0)), without guidance: the model's best guess of z_clean, fp32, shaped like z_0."""
    level = torch.tensor(pipeline.transformer.config.latent_logsnr, device=z_0.device)
    labels = None if class_labels is None else class_labels.to(z_0.device)
    states, mask = (None, None) if texts is None else pipeline.encode_prompt(texts, z_0.device)
    conditions = {"class_labels": labels, "encoder_hidden_states": states, "encoder_attention_mask": mask}
    v = pipeline.transformer(z_0, level, **conditions, return_dict=False)[0]
    return to_x(v, z_0, level, "v_prediction")
