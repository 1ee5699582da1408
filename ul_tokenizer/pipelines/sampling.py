"""Images and clips from a pipeline in batches: the noise of each depends on the seed and itself, not on the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from ul_tokenizer.models.repository import load_autoencoder, load_prior
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.randomness import mixed_seed
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample; None stands for the model's own value."""

    steps: int  # of the base model
    decoder_steps: int | None
    guidance: float
    guidance_interval: tuple[float, float] | None  # log-SNR; None for all levels
    height: int | None  # pixels
    width: int | None
    seed: int
    batch_size: int


@dataclass(frozen=True)
class Wanted:
    """One image: its class and its number, which determine its noise, and its prompt with the prompt's number."""

    label: int | None
    number: int
    prompt: str | None = None
    prompt_number: int = 0

    def generator(self, seed: int) -> torch.Generator:
        """A generator that depends on the seed and this image, not on what else is generated."""
        return torch.Generator().manual_seed(mixed_seed(seed, self.number, 0 if self.label is None else 1 + self.label))


def load_pipeline(
    name: str, revision: str | None, device: torch.device, dtype: torch.dtype, solver: str
) -> UnifiedLatentsPipeline:
    """Loads a pipeline onto a device and sets its solver.

    Raises:
        ValueError: no pipeline of this name, or one that can't be loaded.
    """
    diffusers_logging.disable_progress_bar()  # the one of loading, which takes a moment only
    pipeline: UnifiedLatentsPipeline = UnifiedLatentsPipeline.from_pretrained(name, revision=revision, dtype=dtype)
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, algorithm_type=solver)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    return pipeline


def pipeline_of_prior(
    name: str, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> UnifiedLatentsPipeline:
    """A pipeline that generates with the stage-1 prior of an autoencoder's repository.

    Raises:
        ValueError: no model of this name, or one without a prior.
    """
    prior = load_prior(name, revision=revision, torch_dtype=dtype)
    scheduler = LogSNRScheduler(prior.config.latent_logsnr)
    return UnifiedLatentsPipeline(prior, scheduler, load_autoencoder(name, revision=revision, torch_dtype=dtype))


def in_batches(
    pipeline: UnifiedLatentsPipeline,
    wanted: Sequence[Wanted],
    sampling: SamplingOptions,
    num_frames: int | None = None,
    context: Tensor | None = None,
) -> Iterator[Tensor]:
    """Generates images or clips, batch by batch.

    Args:
        pipeline: generates them.
        wanted: the images; either all or none of them have a class, and likewise a prompt.
        sampling: how to sample.
        num_frames: of clips; None for as many as in training, or for images.
        context: frames (1, 3, T, H, W) in [−1, 1] that all clips continue.

    Yields:
        pixels (B, [T,] 3, H, W) in [−1, 1], on the CPU.
    """
    for start in range(0, len(wanted), sampling.batch_size):
        part = wanted[start : start + sampling.batch_size]
        labels = [one.label for one in part if one.label is not None]
        prompts = [one.prompt for one in part if one.prompt is not None]
        (pixels,) = pipeline(
            class_labels=labels or None,
            prompt=prompts or None,
            num_images_per_prompt=1 if labels or prompts else len(part),
            height=sampling.height,
            width=sampling.width,
            num_inference_steps=sampling.steps,
            decoder_num_inference_steps=sampling.decoder_steps,
            guidance_scale=sampling.guidance,
            guidance_interval=sampling.guidance_interval,
            generator=[one.generator(sampling.seed) for one in part],
            num_frames=num_frames,
            context_frames=None if context is None else context.expand(len(part), -1, -1, -1, -1),
            output_type="pt",
            return_dict=False,
        )
        yield 2 * pixels.cpu() - 1
