"""Measures reconstructions like generated images: a bound that no generator on these latents can surpass."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ul_tokenizer.evaluation.classifier import judge
from ul_tokenizer.evaluation.generation import sample_generators
from ul_tokenizer.evaluation.labelled_images import LabelledImages, to_rgb_floats, to_stored
from ul_tokenizer.evaluation.metrics import mean_psnr, psnr_of_mean_mse
from ul_tokenizer.evaluation.reference import Reference
from ul_tokenizer.media.pixels import to_float
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.progress import track
from ul_tokenizer.randomness import EvaluationStream


@dataclass(frozen=True)
class ReconstructionQuality:
    """Quality of the test set's reconstructions, rounded to 8 bits.

    Attributes:
        accuracy: fraction of the reconstructions in which the classifier sees the original's class.
        frechet_distance: distance between the classifier's features of reconstructions and originals.
        floor: the same distance for equally many random real training images.
        real_accuracy: accuracy of the classifier on the originals.
        psnr_of_mean_mse: in dB; None if all reconstructions are exact.
        mean_psnr: in dB; None if one reconstruction is exact.
        bits_per_pixel: the prior's bound; None without a prior.
        seconds: time for encoding and decoding.
    """

    accuracy: float
    frechet_distance: float
    floor: float
    real_accuracy: float
    psnr_of_mean_mse: float | None
    mean_psnr: float | None
    bits_per_pixel: float | None
    seconds: float


@torch.inference_mode()
def evaluate_reconstruction(
    autoencoder: Any,
    reference: Reference,
    test: LabelledImages,
    prior: UnifiedLatentsTransformer | None = None,
    *,
    num_inference_steps: int | None = None,
    batch_size: int = 100,
    seed: int = 0,
) -> ReconstructionQuality:
    """Encodes and decodes the test set; the latents are sampled with their noise.

    Args:
        autoencoder: ours, or any of diffusers'.
        reference: features of the real images, made with the same test set.
        test: the originals.
        prior: stage-1 prior that bounds the bits of our latents; the bits of other autoencoders are not measured.
        num_inference_steps: steps of our decoder; None for the number in the model's config.
        batch_size: images per batch.
        seed: seed of all noise. The noise of image i depends on the seed and i only.

    Raises:
        ValueError: an empty batch, or images that the autoencoder does not accept.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    start = time.perf_counter()
    again = _reconstruct(autoencoder, test.images, num_inference_steps, batch_size, seed)
    seconds = time.perf_counter() - start
    judgement, pixels = judge(reference.classifier, again), (to_float(test.images), to_float(again))
    return ReconstructionQuality(
        accuracy=judgement.accuracy(test.labels),
        frechet_distance=reference.distance(judgement.features),
        floor=reference.floor(len(again)),
        real_accuracy=reference.test_accuracy,
        psnr_of_mean_mse=_finite(psnr_of_mean_mse(*pixels)),
        mean_psnr=_finite(mean_psnr(*pixels)),
        bits_per_pixel=None if prior is None else _bits_per_pixel(autoencoder, test.images, prior, batch_size, seed),
        seconds=seconds,
    )


def _reconstruct(autoencoder: Any, images: Tensor, steps: int | None, batch_size: int, seed: int) -> Tensor:
    """uint8 in, uint8 out, (N, C, H, W)."""
    parts, first = [], 0
    ours = isinstance(autoencoder, UnifiedLatentsAutoencoder)
    batches = images.split(batch_size)
    for batch in track(batches, "reconstructing", len(batches), "batches"):
        generators = sample_generators(seed, EvaluationStream.RECONSTRUCTION, range(first, first + len(batch)))
        pixels = to_rgb_floats(batch).to(autoencoder.device, autoencoder.dtype)
        z_0 = autoencoder.encode(pixels).latent_dist.sample(generators)
        options = {"generator": generators, "num_inference_steps": steps} if ours else {}
        parts.append(to_stored(autoencoder.decode(z_0, **options).sample, images.shape[1] == 1).cpu())
        first += len(batch)
    return torch.cat(parts)


def _bits_per_pixel(
    autoencoder: Any, images: Tensor, prior: UnifiedLatentsTransformer, batch_size: int, seed: int
) -> float | None:
    if not isinstance(autoencoder, UnifiedLatentsAutoencoder):
        return None
    bits, first = 0.0, 0
    batches = images.split(batch_size)
    for batch in track(batches, "counting bits", len(batches), "batches"):
        generators = sample_generators(seed, EvaluationStream.BITS, range(first, first + len(batch)))
        pixels = to_rgb_floats(batch).to(autoencoder.device, autoencoder.dtype)
        bits += float(autoencoder.bits(pixels, prior, generator=generators).sum())
        first += len(batch)
    return bits / (len(images) * images.shape[-1] * images.shape[-2])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
