"""Validation of a distilled decoder on fixed images, latents and noise, beside its teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.evaluation.grids import comparison_grid
from ul_tokenizer.evaluation.measures.metrics import psnr_of_mean_mse, sharpness
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.latent_distribution import draw_noise
from ul_tokenizer.training.distillation import Teacher
from ul_tokenizer.training.validation_metrics import ValidationMetrics

_LATENT_NOISE, _DECODER_NOISE = 0, 1000  # first seeds


class HeldOutImages:
    """Held-out images with their latents, their noise, and what the teacher makes of them.

    Args:
        teacher: on `device`.
        pixels: (B, 3, H, W) in [−1, 1].
        batch_size: images that are encoded or decoded at once; no value depends on it.
        device: of the networks.
    """

    def __init__(self, teacher: Teacher, pixels: Tensor, batch_size: int, device: torch.device) -> None:
        self.pixels, self.batch_size, self.device = pixels, batch_size, device
        self.noise = draw_noise(tuple(pixels.shape), _generators(len(pixels), _DECODER_NOISE), torch.device("cpu"))
        noise_of_latents = _generators(len(pixels), _LATENT_NOISE)

        def encode(x: Tensor, first: int) -> Tensor:
            distribution = teacher.autoencoder.encode(x).latent_dist
            shape = tuple(distribution.latent.shape)
            noise = draw_noise(shape, noise_of_latents[first : first + len(x)], torch.device("cpu"))
            return distribution.mean + distribution.std * noise.to(device)

        self.latents = self._in_batches(encode, pixels)
        self.of_teacher = self.decoded(teacher.autoencoder, teacher.num_steps)

    @torch.no_grad()
    def decoded(self, autoencoder: UnifiedLatentsAutoencoder, num_steps: int) -> Tensor:
        """The images (B, 3, H, W), fp32, on the CPU."""

        def decode(z: Tensor, first: int) -> Tensor:
            noise = self.noise[first : first + len(z)].to(self.device)
            return autoencoder.decode(z, noise=noise, num_inference_steps=num_steps).sample

        return self._in_batches(decode, self.latents)

    @torch.no_grad()
    def _in_batches(self, function: Callable[[Tensor, int], Tensor], tensor: Tensor) -> Tensor:
        firsts = range(0, len(tensor), self.batch_size)
        parts = [function(tensor[first : first + self.batch_size].to(self.device), first) for first in firsts]
        return torch.cat([part.float().cpu() for part in parts])


def validate_student(
    student: UnifiedLatentsAutoencoder, held_out: HeldOutImages, steps: Sequence[int], metrics: ValidationMetrics
) -> tuple[dict[str, float], Image.Image]:
    """Validates a student.

    Args:
        student: in evaluation mode, on the device of the held-out images.
        held_out: the images.
        steps: numbers of decoding steps.
        metrics: further metrics.

    Returns:
        metrics and a picture of originals, the student's images for each number of steps, and the teacher's. The
        metrics are those that `metrics` asks for, sharpness, and the PSNR of the student against the teacher.
    """
    pictures = {_named(n): held_out.decoded(student, n) for n in steps}
    values: dict[str, float] = {}
    for name, again in {**pictures, "teacher": held_out.of_teacher}.items():
        values |= {f"{metric}_{name}": value for metric, value in _measured(held_out, again, metrics).items()}
    values |= {f"psnr_to_teacher_{name}": psnr_of_mean_mse(held_out.of_teacher, x) for name, x in pictures.items()}
    return values, comparison_grid([held_out.pixels, *pictures.values(), held_out.of_teacher], columns=8)


def _measured(held_out: HeldOutImages, again: Tensor, metrics: ValidationMetrics) -> dict[str, float]:
    psnr = {"psnr": psnr_of_mean_mse(held_out.pixels, again)} if "psnr" in metrics.names else {}
    further = metrics.of_reconstructions(held_out.pixels, again, held_out.batch_size)
    return {**psnr, **further, "sharpness": sharpness(held_out.pixels, again)}


def _named(num_steps: int) -> str:
    return "1_step" if num_steps == 1 else f"{num_steps}_steps"


def _generators(count: int, seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]
