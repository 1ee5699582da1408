"""Validation of a base model on fixed latents with fixed noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from ul_tokenizer.diffusion.objective import SigmoidWeighting, diffuse, eps_squared_error, sigmoid_loss
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.evaluation.grids import comparison_grid
from ul_tokenizer.models.any_autoencoder import frames_of
from ul_tokenizer.models.rate import latent_bits
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.training.frozen import FrozenAutoencoder
from ul_tokenizer.training.text import TextStates

NUM_LEVELS = 5  # noise levels at which the error is measured, spread evenly over the schedule
GRID_COLUMNS = 10
GRID_ROWS = 4
_HELD_OUT_NOISE, _BITS_NOISE = 1_000_000, 2_000_000  # first seeds; samples have the seeds from 0 on


@dataclass(frozen=True)
class HeldOutLatents:
    """Latents that the training never sees."""

    latents: Tensor  # (B, c, [t,] h, w), z_clean
    class_labels: Tensor | None  # (B,)
    num_context: int = 0  # latent frames at the start of a clip that the model sees
    text: TextStates | None = None  # captions, for models with text

    @property
    def context(self) -> Tensor | None:
        """The latent frames that the model sees, (B, c, t, h, w); None if there are none."""
        return self.latents[:, :, : self.num_context] if self.num_context else None

    @property
    def target(self) -> Tensor:
        """The latents that the model generates, (B, c, [t,] h, w)."""
        return self.latents[:, :, self.num_context :] if self.num_context else self.latents

    def model_inputs(self, part: slice) -> dict[str, Tensor | None]:
        """Conditions of some of the latents, (n, …) each, as `UnifiedLatentsTransformer` takes them."""
        text = None if self.text is None else self.text.rows(part)
        return {
            "class_labels": None if self.class_labels is None else self.class_labels[part],
            "context_latents": None if self.context is None else self.context[part],
            "encoder_hidden_states": None if text is None else text.states,
            "encoder_attention_mask": None if text is None else text.mask,
        }


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
    """Validates a base model.

    Args:
        pipeline: pipeline of the base model, in evaluation mode.
        held_out: the latents to measure on.
        schedule: noise schedule λ(t).
        weighting: weighting of the training loss.
        batch_size: number of latents in each batch.
        num_inference_steps: number of sampling steps.
        guidance_scale: guidance scale of the samples.

    Returns:
        metrics and a grid of samples with one class or one caption in each column. The metrics are the weighted loss,
        ‖ε − ε̂‖² at fixed log-SNRs, and an upper bound on the bits from the model without conditions, all per latent
        dimension.
    """
    base = pipeline.transformer
    metrics = _errors(base, held_out, schedule, weighting, batch_size)
    metrics["bits_per_latent_dim"] = _bits(base, held_out.latents, schedule, batch_size) / held_out.latents[0].numel()
    return metrics, sample_grid(pipeline, num_inference_steps, guidance_scale, held_out.context, held_out.text)


def _bits(base: UnifiedLatentsTransformer, latents: Tensor, schedule: LogSNRSchedule, batch_size: int) -> float:
    """Mean bits of a latent; its noise is its own, whatever the batches."""
    generators = _generators(latents.device, range(len(latents)), _BITS_NOISE)
    parts = range(0, len(latents), batch_size)
    bits = [latent_bits(latents[i : i + batch_size], base, schedule, 8, generators[i : i + batch_size]) for i in parts]
    return float(torch.cat(bits).mean())


def _errors(
    base: UnifiedLatentsTransformer,
    held_out: HeldOutLatents,
    schedule: LogSNRSchedule,
    weighting: SigmoidWeighting,
    batch_size: int,
) -> dict[str, float]:
    z = held_out.target
    generator = torch.Generator(z.device).manual_seed(0)
    noise = torch.randn(z.shape, generator=generator, device=z.device)
    metrics, losses = {}, []
    for level in range(NUM_LEVELS):
        t = torch.full((len(z),), (level + 0.5) / NUM_LEVELS, device=z.device)
        logsnr = schedule.logsnr(t)
        z_t = diffuse(z, noise, logsnr)
        parts = range(0, len(z), batch_size)
        v = torch.cat([_predict(base, z_t, logsnr, held_out, slice(i, i + batch_size)) for i in parts])
        error = eps_squared_error(v, z, noise, logsnr, "v_prediction").mean() / z[0].numel()
        metrics[f"eps_mse_at_logsnr_{float(logsnr[0]):.1f}"] = float(error)
        losses.append(float(sigmoid_loss(v, z, noise, t, schedule, weighting).mean()) / z[0].numel())
    return {"loss": sum(losses) / NUM_LEVELS, **metrics}


def _predict(
    base: UnifiedLatentsTransformer, z_t: Tensor, logsnr: Tensor, held_out: HeldOutLatents, part: slice
) -> Tensor:
    v: Tensor = base(z_t[part], logsnr[part], **held_out.model_inputs(part)).sample
    return v


def sample_grid(
    pipeline: UnifiedLatentsPipeline,
    num_inference_steps: int,
    guidance_scale: float,
    context: Tensor | None = None,
    text: TextStates | None = None,
) -> Image.Image:
    """Draws samples with fixed seeds, for clips the first frame above the last.

    Every column has one class or else, for models of text, one held-out caption.

    Args:
        pipeline: the base model with the autoencoder.
        num_inference_steps: steps of the base model.
        guidance_scale: 1 for none.
        context: given clean latents of clips, (B, c, t, h, w).
        text: held-out captions.
    """
    num_classes = pipeline.transformer.config.num_class_embeds
    kinds = num_classes or (GRID_COLUMNS if text is None else len(text.mask))
    columns = min(kinds, GRID_COLUMNS)
    count = GRID_ROWS * columns if context is None else min(columns, len(context))
    prompts = None if text is None else text.rows(torch.arange(count) % min(columns, len(text.mask)))
    device = pipeline.device
    pipeline.set_progress_bar_config(disable=True)
    (pixels,) = pipeline(
        class_labels=None if num_classes is None else [i % columns for i in range(count)],
        **_prompts(prompts),
        num_images_per_prompt=count if num_classes is None and text is None else 1,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator(device).manual_seed(i) for i in range(count)],
        context_latents=None if context is None else context[:count],
        output_type="pt",
        return_dict=False,
    )
    if pixels.ndim == 5:  # (B, T, 3, H, W)
        pixels = torch.cat([pixels[:, 0], pixels[:, -1]], dim=-2)
    return comparison_grid(list((2 * pixels - 1).split(columns)), columns)


def _prompts(text: TextStates | None) -> dict[str, Any]:
    """Captions as a pipeline takes them."""
    if text is None:
        return {"prompt_embeds": None, "prompt_attention_mask": None}
    return {"prompt_embeds": text.states, "prompt_attention_mask": text.mask}


# ----------------------------------------------------------------------------------------------------------------
# Samples and held-out images, to be compared as sets
# ----------------------------------------------------------------------------------------------------------------


def decode_held_out(
    autoencoder: FrozenAutoencoder, held_out: HeldOutLatents, latent_logsnr: float, batch_size: int
) -> Iterator[Tensor]:
    """Decodes the held-out latents, at the noise level of samples; for clips, only the frames after the context.

    Yields:
        pixels (B, 3, [T,] H, W), about [−1, 1].
    """
    latents, first_frame = held_out.latents, autoencoder.frames_of(held_out.num_context)
    for first in range(0, len(latents), batch_size):
        z = latents[first : first + batch_size]
        generators = _generators(z.device, range(first, first + len(z)), _HELD_OUT_NOISE)
        noise = randn_tensor(tuple(z.shape), generator=generators, device=z.device, dtype=torch.float32)
        pixels = autoencoder.decode(diffuse(z, noise, torch.tensor(latent_logsnr, device=z.device)), generators)
        yield pixels[:, :, first_frame:] if pixels.ndim == 5 else pixels


def draw_samples(
    pipeline: UnifiedLatentsPipeline,
    held_out: HeldOutLatents,
    batch_size: int,
    num_inference_steps: int,
    guidance_scale: float,
) -> Iterator[Tensor]:
    """Draws a sample for each held-out latent, with its class and context; of clips, only the frames after the context.

    Yields:
        pixels (B, 3, [T,] H, W) in [−1, 1].
    """
    pipeline.set_progress_bar_config(disable=True)
    num_frames = None
    if held_out.latents.ndim == 5:
        frames = [frames_of(pipeline.vae, n) for n in (held_out.latents.shape[2], held_out.num_context) if n]
        num_frames = frames[0] - sum(frames[1:])
    for rows in _rows_of_one_kind(pipeline, held_out, batch_size):
        (pixels,) = pipeline(
            **_conditions(held_out, rows, pipeline.transformer.null_class_label),
            height=held_out.latents.shape[-2] * pipeline.vae_scale_factor,
            width=held_out.latents.shape[-1] * pipeline.vae_scale_factor,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=_generators(pipeline.device, rows.tolist()),
            output_type="pt",
            return_dict=False,
        )
        yield 2 * (pixels if num_frames is None else pixels[:, -num_frames:].transpose(1, 2)) - 1


def _rows_of_one_kind(pipeline: UnifiedLatentsPipeline, held_out: HeldOutLatents, batch_size: int) -> Iterator[Tensor]:
    """Numbers of held-out latents, in batches that all have a class or all have none."""
    rows = torch.arange(len(held_out.latents))
    if held_out.class_labels is None:
        kinds = [rows]
    else:
        has_class = held_out.class_labels.cpu() != pipeline.transformer.null_class_label
        kinds = [rows[has_class], rows[~has_class]]
    for kind in kinds:
        yield from kind.split(batch_size) if len(kind) else ()


def _conditions(held_out: HeldOutLatents, rows: Tensor, null_label: int | None) -> dict[str, Any]:
    """What the pipeline gets for these rows, see `_rows_of_one_kind`."""
    labels = None if held_out.class_labels is None else held_out.class_labels.cpu()[rows]
    has_class = labels is not None and int(labels[0]) != null_label
    return {
        "class_labels": labels if has_class else None,
        "num_images_per_prompt": 1 if has_class or held_out.text is not None else len(rows),
        **_prompts(None if held_out.text is None else held_out.text.rows(rows.to(held_out.text.mask.device))),
        "context_latents": None if held_out.context is None else held_out.context[rows.to(held_out.latents.device)],
    }


def _generators(device: torch.device, rows: Iterable[int], first_seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator(device).manual_seed(first_seed + row) for row in rows]
