"""Measures generated images: whether they show the requested class, and their distance from real images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ul_tokenizer import _compat
from ul_tokenizer.diffusion.guidance import Guidance
from ul_tokenizer.diffusion.parameterization import to_x
from ul_tokenizer.diffusion.schedule import alpha_sigma
from ul_tokenizer.evaluation.classifier import judge
from ul_tokenizer.evaluation.labelled_images import to_stored
from ul_tokenizer.evaluation.reference import Reference
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.progress import progress
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
        unconditional: request no class, even from a model with classes.
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


@dataclass(frozen=True)
class GenerationQuality:
    """Quality of drawn images.

    Attributes:
        accuracy: fraction of the images in which the classifier sees the requested class; None without classes.
        frechet_distance: Fréchet distance between the classifier's features of the images and of the whole test set.
            This is not an FID, which uses Inception's features.
        floor: the same distance for equally many random real training images, see `Reference.floor`.
        floor_of_all: the same distance for all real training images.
        ratio: frechet_distance / floor; None for a floor of 0.
        real_accuracy: accuracy of the classifier on the real test set.
        seconds: time for drawing.
        images_per_second: rate of drawing.
    """

    accuracy: float | None
    frechet_distance: float
    floor: float
    floor_of_all: float
    ratio: float | None
    real_accuracy: float
    seconds: float
    images_per_second: float


def evaluate_generation(
    pipeline: UnifiedLatentsPipeline, reference: Reference, sampling: Sampling, batch_size: int = 100
) -> GenerationQuality:
    """Draws images and compares them with real ones. Both are rounded to 8 bits.

    Args:
        pipeline: generator of the images; its `transformer` may be a stage-1 prior. It is not changed.
        reference: features of the real images, see `load_reference`.
        sampling: settings for drawing.
        batch_size: images per batch; changes speed and memory, not the images.

    Raises:
        ValueError: the model and the data have different classes, an empty batch, guidance without a class, a `decode`
            that the autoencoder does not support, or images that aren't finite.
    """
    start = time.perf_counter()
    images, labels = draw_images(pipeline, reference, sampling, batch_size)
    seconds = time.perf_counter() - start
    judgement = judge(reference.classifier, images)
    distance, floor = reference.distance(judgement.features), reference.floor(len(images))
    return GenerationQuality(
        accuracy=None if labels is None else judgement.accuracy(labels),
        frechet_distance=distance,
        floor=floor,
        floor_of_all=reference.floor(),
        ratio=distance / floor if floor else None,
        real_accuracy=reference.test_accuracy,
        seconds=seconds,
        images_per_second=len(images) / seconds,
    )


def sample_generators(seed: int, stream: EvaluationStream, indices: range) -> list[torch.Generator]:
    """One generator per sample. It depends on the sample's index, not on the batch."""
    return [torch_generator(seed, stream, index) for index in indices]


@torch.inference_mode()
def draw_images(
    pipeline: UnifiedLatentsPipeline, reference: Reference, sampling: Sampling, batch_size: int = 100
) -> tuple[Tensor, Tensor | None]:
    """Draws images (N, C, H, W), uint8, with the shape of the real ones; also returns the requested classes (N,).

    Arguments and errors as in `evaluate_generation`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    _check_decode(pipeline, sampling)
    labels = _labels(pipeline, reference, sampling)
    grey, parts = reference.image_shape[0] == 1, []
    description = f"{sampling.solver}, {sampling.num_inference_steps} steps"
    with (
        _prepared(pipeline, sampling.solver),
        progress(description, sampling.num_images, "images") as bar,
    ):
        for first in range(0, sampling.num_images, batch_size):
            rows = range(first, min(first + batch_size, sampling.num_images))
            asked = None if labels is None else labels[rows.start : rows.stop]
            pixels = _draw(pipeline, sampling, rows, asked, reference.image_shape[-2:])
            if not pixels.isfinite().all():
                raise ValueError(f"pipeline must draw finite images, got others with {sampling}.")
            parts.append(to_stored(pixels, grey).cpu())
            bar.update(len(rows))
    return torch.cat(parts), labels


def _check_decode(pipeline: UnifiedLatentsPipeline, sampling: Sampling) -> None:
    if sampling.decode != "z0" and not isinstance(pipeline.vae, UnifiedLatentsAutoencoder):
        raise ValueError(f"decode must be z0 for a {type(pipeline.vae).__name__}, got {sampling.decode!r}.")


def _labels(pipeline: UnifiedLatentsPipeline, reference: Reference, sampling: Sampling) -> Tensor | None:
    """The requested classes, in turn; None if no class is requested."""
    known = pipeline.transformer.config.num_class_embeds
    if known is None or sampling.unconditional:
        if sampling.guidance_scale != 1:
            raise ValueError(f"guidance_scale must be 1 where no class is asked for, got {sampling.guidance_scale}.")
        return None
    if known != len(reference.class_names):
        raise ValueError(f"pipeline must know the data's {len(reference.class_names)} classes, got one of {known}.")
    return torch.arange(sampling.num_images) % known


@contextmanager
def _prepared(pipeline: UnifiedLatentsPipeline, solver: AlgorithmType) -> Iterator[None]:
    """Gives the pipeline another solver and no progress bar, until the end of the context."""
    scheduler, bar = pipeline.scheduler, _compat.progress_bar_config(pipeline)
    pipeline.scheduler = LogSNRScheduler.from_config(scheduler.config, algorithm_type=solver)
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipeline.scheduler = scheduler
        pipeline.set_progress_bar_config(**bar)


def _draw(
    pipeline: UnifiedLatentsPipeline, sampling: Sampling, rows: range, labels: Tensor | None, size: tuple[int, ...]
) -> Tensor:
    """Draws the images with these numbers: pixels (B, 3, H, W) in [−1, 1]."""
    generators = sample_generators(sampling.seed, EvaluationStream.GENERATION, rows)
    steps = sampling.decoder_num_inference_steps
    options: dict[str, Any] = {
        "class_labels": labels,
        "num_images_per_prompt": 1 if labels is not None else len(rows),
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
    clean = clean_estimate(pipeline, z_0, labels)
    level = torch.tensor(pipeline.transformer.config.latent_logsnr)
    given = clean * alpha_sigma(level)[0] if sampling.decode == "scaled-clean" else clean
    # The generators go on where the pipeline left them, so that the decoder gets the noise that "z0" gives it.
    pixels: Tensor = pipeline.vae.decode(
        given.to(pipeline.vae.dtype), generator=generators, num_inference_steps=steps
    ).sample
    return pixels.float()


def clean_estimate(pipeline: UnifiedLatentsPipeline, z_0: Tensor, class_labels: Tensor | None) -> Tensor:
    """ẑ = α₀ z_0 − σ₀ v(z_0, λ(0)), without guidance: the model's best guess of z_clean, fp32, shaped like z_0."""
    level = torch.tensor(pipeline.transformer.config.latent_logsnr, device=z_0.device)
    labels = None if class_labels is None else class_labels.to(z_0.device)
    v = pipeline.transformer(z_0, level, class_labels=labels, return_dict=False)[0]
    return to_x(v, z_0, level, "v_prediction")
