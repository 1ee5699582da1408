"""Validation of an autoencoder on fixed images or clips with fixed noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.evaluation.grids import comparison_grid
from ul_tokenizer.evaluation.measures.metrics import flicker, mean_psnr, psnr_of_mean_mse
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.training.validation_metrics import ValidationMetrics

COLLAPSED_GAP_DB, COLLAPSED_BITS_PER_PIXEL = 1.0, 0.01  # below both, the latent carries no information
_LATENT_NOISE, _DECODER_NOISE, _BITS = 0, 1000, 1_000_000  # first seeds


@torch.no_grad()
def validate_autoencoder(
    autoencoder: UnifiedLatentsAutoencoder,
    prior: UnifiedLatentsTransformer,
    pixels: Tensor,
    batch_size: int,
    num_inference_steps: int,
    device: torch.device,
    metrics: ValidationMetrics | None = None,
) -> tuple[dict[str, float], Image.Image]:
    """Validates an autoencoder and its prior.

    Args:
        autoencoder: the autoencoder, in evaluation mode, on `device`.
        prior: its prior, likewise.
        pixels: (B, 3, [T,] H, W) in [−1, 1], B ≥ 2; neighbours must show different things.
        batch_size: number of images in each batch; no metric depends on it.
        num_inference_steps: number of decoding steps for the second PSNR.
        device: the device of the models.
        metrics: further metrics; without them, PSNR alone.

    Returns:
        metrics and a picture of originals, reconstructions in one step and in more steps. The metrics are the loss in
        dB if an image is decoded with another image's latent, and bits per pixel; for clips also `flicker`. Those that
        `metrics` asks for are given in one step and in more, by default PSNR.
    """

    def in_batches(function: Callable[[Tensor, int], Tensor], tensor: Tensor) -> Tensor:
        firsts = range(0, len(tensor), batch_size)
        parts = [function(tensor[first : first + batch_size].to(device), first) for first in firsts]
        return torch.cat([part.float().cpu() for part in parts])

    def encode(x: Tensor, first: int) -> Tensor:
        return autoencoder.encode(x).latent_dist.sample(_generators(x, _LATENT_NOISE + first))

    def decode(z: Tensor, steps: int) -> Tensor:
        def decode_part(part: Tensor, first: int) -> Tensor:
            generators = _generators(part, _DECODER_NOISE + first)
            frames = pixels.shape[2] if pixels.ndim == 5 else None
            return autoencoder.decode(part, generator=generators, num_inference_steps=steps, num_frames=frames).sample

        return in_batches(decode_part, z)

    z = in_batches(encode, pixels)
    one_step, more_steps, swapped = decode(z, 1), decode(z, num_inference_steps), decode(z.roll(1, 0), 1)
    bits = in_batches(lambda x, first: autoencoder.bits(x, prior, generator=_generators(x, _BITS + first)), pixels)
    psnr, several = psnr_of_mean_mse(pixels, one_step), f"{num_inference_steps}_steps"
    values = {
        "psnr_1_step": psnr,
        f"psnr_{several}": psnr_of_mean_mse(pixels, more_steps),
        "mean_of_psnr_1_step": mean_psnr(pixels, one_step),
        "latent_gap_db": psnr - psnr_of_mean_mse(pixels, swapped),
        "bits_per_pixel": float(bits.mean()) / (pixels[0].numel() / pixels.shape[1]),
    }
    if pixels.ndim == 5:
        values["flicker"] = flicker(pixels, one_step)
    if metrics is not None:
        values = {name: value for name, value in values.items() if "psnr" not in name or "psnr" in metrics.names}
        for steps, again in (("1_step", one_step), (several, more_steps)):
            measured = metrics.of_reconstructions(pixels, again, batch_size)
            values |= {f"{name}_{steps}": value for name, value in measured.items()}
    return values, comparison_grid([_as_pictures(x) for x in (pixels, one_step, more_steps)], columns=8)


def _as_pictures(x: Tensor) -> Tensor:
    """Images unchanged; for clips, the first frame above the last."""
    return x if x.ndim == 4 else torch.cat([x[:, :, 0], x[:, :, -1]], dim=-2)


def collapse_warning(step: int, metrics: dict[str, float]) -> str | None:
    """A warning if the latent costs no bits and the decoder does not use it; otherwise None."""
    gap, bits = metrics["latent_gap_db"], metrics["bits_per_pixel"]
    if gap >= COLLAPSED_GAP_DB or bits >= COLLAPSED_BITS_PER_PIXEL:
        return None
    return (
        f"posterior collapse at step {step}: {bits:.4f} bits per pixel, and decoding with another image's latent "
        f"costs only {gap:.2f} dB; keep the prior's weight low for longer (--prior_min_hold_steps, "
        "--prior_hold_gap_db) or lower it (--prior_hold_weight), or raise --loss_factor or --decoder_bias."
    )


def _generators(batch: Tensor, seed: int) -> list[torch.Generator]:
    return [torch.Generator(batch.device).manual_seed(seed + i) for i in range(len(batch))]
