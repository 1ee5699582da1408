"""What a validation of a base model measures on fixed latents with fixed noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.diffusion.objective import SigmoidWeighting, diffuse, eps_squared_error, sigmoid_loss
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.evaluation.metrics import comparison_grid
from ul_tokenizer.models.rate import latent_bits
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline

NUM_LEVELS = 5  # at which the error is logged, evenly over the schedule
GRID_COLUMNS = 10
GRID_ROWS = 4


@dataclass(frozen=True)
class HeldOutLatents:
    """Latents that are not trained on."""

    latents: Tensor  # (B, c, h, w), z_clean
    class_labels: Tensor | None  # (B,)


@torch.no_grad()
def validate_base(
    pipeline: UnifiedLatentsPipeline,
    held_out: HeldOutLatents,
    schedule: LogSNRSchedule,
    weighting: SigmoidWeighting,
    batch_size: int,
    num_inference_steps: int,
    guidance_scale: float,
) -> tuple[dict[str, float], Image.Image]:
    """Measures.

    Args:
        pipeline: of the base model, in evaluation mode.
        held_out: what to measure on.
        schedule: λ(t).
        weighting: of the training loss.
        batch_size: latents at a time.
        num_inference_steps: of the samples.
        guidance_scale: of the samples.

    Returns:
        the weighted loss and ‖ε − ε̂‖², both per latent dimension, the latter at fixed log-SNRs; the bits per latent
        dimension that the model, without classes, gives as a bound; and a grid of samples, a class per column.
    """
    base = pipeline.transformer
    metrics = _errors(base, held_out, schedule, weighting, batch_size)
    generator = torch.Generator(held_out.latents.device).manual_seed(0)
    bits = [latent_bits(z, base, schedule, 8, generator) for z in held_out.latents.split(batch_size)]
    metrics["bits_per_latent_dim"] = float(torch.cat(bits).mean()) / held_out.latents[0].numel()
    return metrics, sample_grid(pipeline, num_inference_steps, guidance_scale)


def _errors(
    base: UnifiedLatentsTransformer,
    held_out: HeldOutLatents,
    schedule: LogSNRSchedule,
    weighting: SigmoidWeighting,
    batch_size: int,
) -> dict[str, float]:
    z, labels = held_out.latents, held_out.class_labels
    generator = torch.Generator(z.device).manual_seed(0)
    noise = torch.randn(z.shape, generator=generator, device=z.device)
    metrics, losses = {}, []
    for level in range(NUM_LEVELS):
        t = torch.full((len(z),), (level + 0.5) / NUM_LEVELS, device=z.device)
        logsnr = schedule.logsnr(t)
        z_t = diffuse(z, noise, logsnr)
        parts = range(0, len(z), batch_size)
        v = torch.cat([_predict(base, z_t, logsnr, labels, slice(i, i + batch_size)) for i in parts])
        error = eps_squared_error(v, z, noise, logsnr, "v_prediction").mean() / z[0].numel()
        metrics[f"eps_mse_at_logsnr_{float(logsnr[0]):.1f}"] = float(error)
        losses.append(float(sigmoid_loss(v, z, noise, t, schedule, weighting).mean()) / z[0].numel())
    return {"loss": sum(losses) / NUM_LEVELS, **metrics}


def _predict(
    base: UnifiedLatentsTransformer, z_t: Tensor, logsnr: Tensor, labels: Tensor | None, part: slice
) -> Tensor:
    v: Tensor = base(z_t[part], logsnr[part], None if labels is None else labels[part]).sample
    return v


def sample_grid(pipeline: UnifiedLatentsPipeline, num_inference_steps: int, guidance_scale: float) -> Image.Image:
    """Samples with fixed seeds; with classes, a class per column."""
    num_classes = pipeline.transformer.config.num_class_embeds
    columns = min(num_classes or GRID_COLUMNS, GRID_COLUMNS)
    count = GRID_ROWS * columns
    device = pipeline.device
    pipeline.set_progress_bar_config(disable=True)
    (pixels,) = pipeline(
        class_labels=None if num_classes is None else [i % columns for i in range(count)],
        num_images_per_prompt=count if num_classes is None else 1,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator(device).manual_seed(i) for i in range(count)],
        output_type="pt",
        return_dict=False,
    )
    return comparison_grid(list((2 * pixels - 1).split(columns)), columns)
