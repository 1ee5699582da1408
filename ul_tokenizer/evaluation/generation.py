"""Quality of generated images: are they of the class that was asked for, and how far from real ones are they."""

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
    """How images are drawn.

    Args:
        num_images: N; classes take turns.
        solver: the scheduler's `algorithm_type`.
        num_inference_steps: of the base model.
        decoder_num_inference_steps: of the decoder; the autoencoder's own if None.
        guidance_scale: 1 is no guidance.
        guidance_interval: (lowest, highest) log-SNR at which to guide; None for all.
        decode: what the decoder gets: "z0", the noisy sample that it was trained on; or, to show what that is worth,
            "clean", the model's estimate ẑ of the latent without noise, or "scaled-clean", α₀ẑ.
        unconditional: ask for no class, even of a model that knows them.
        seed: image i's noise follows from it and i.

    Raises:
        ValueError: a word that isn't listed, or a number out of its range.
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
    """What drawn images are worth.

    Attributes:
        accuracy: part of the images in which the classifier sees the class that was asked for; None if none was.
        frechet_distance: of the classifier's features, to the whole test set. Not an FID: that is Inception's.
        floor: the same of as many random real training images, see `Reference.floor`.
        floor_of_all: the same of all real training images.
        ratio: frechet_distance / floor; None for a floor of 0.
        real_accuracy: the classifier's, on the real test set.
        seconds: of drawing.
        images_per_second: likewise.
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
    """Draws images and compares them with real ones, both as 8-bit pictures.

    Args:
        pipeline: what draws; with a stage-1 prior as `transformer`, that prior. Left as it was.
        reference: the real images, see `load_reference`.
        sampling: how to draw.
        batch_size: images at a time; changes speed and memory, not the images.

    Raises:
        ValueError: a model of other classes than the data, an empty batch, guidance where no class is asked for, a
            `decode` that the autoencoder lacks, or images that aren't finite.
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
    """A generator per sample, which follows from its index whatever the batch."""
    return [torch_generator(seed, stream, index) for index in indices]


@torch.inference_mode()
def draw_images(
    pipeline: UnifiedLatentsPipeline, reference: Reference, sampling: Sampling, batch_size: int = 100
) -> tuple[Tensor, Tensor | None]:
    """Images (N, C, H, W), uint8, shaped as the real ones, and the classes (N,) that were asked for.

    Arguments and errors as `evaluate_generation`.
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
    """Classes in turn; None where none is asked for."""
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
    """The pipeline with another solver, and without a progress bar per batch."""
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
    """Pixels (B, 3, H, W) in [−1, 1] of the images with these numbers."""
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
