"""Plans the frames of a clip: how many a pipeline generates, and which are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ul_tokenizer.diffusion.objective import diffuse
from ul_tokenizer.models.any_autoencoder import encode_clean, frames_of, latent_frames_of, temporal_ratio
from ul_tokenizer.models.latent_normalization import normalize_latents
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.schedulers.log_snr import Generators


@dataclass(frozen=True)
class ClipPlan:
    """How many frames a pipeline generates; an image if it has no number of frames."""

    latent_frames: int | None = None  # number of latent frames to generate
    num_frames: int | None = None  # frames of the whole result, given ones included
    context: Tensor | None = None  # (B, c, t', h, w), clean latents of the given frames

    @property
    def new_latent_frames(self) -> tuple[int, ...]:
        """The part of the latents' shape that stands for time: (t,), or () for images."""
        return () if self.latent_frames is None else (self.latent_frames,)

    def completed(self, z: Tensor, logsnr: float, generator: Generators) -> Tensor:
        """z_0 (B, c, t' + t, h, w) of the whole result: given frames at the same noise level, then the generated `z`.

        Without given frames, `z` (B, c, [t,] h, w) is returned.
        """
        if self.context is None:
            return z
        noise = randn_tensor(tuple(self.context.shape), generator=generator, device=z.device, dtype=torch.float32)
        given = diffuse(self.context.to(z), noise, torch.tensor(logsnr, device=z.device))
        return torch.cat([given, z], dim=2)


def plan_clip(
    vae: Any,
    transformer: UnifiedLatentsTransformer,
    num_frames: int | None,
    context_frames: Tensor | None,
    context_latents: Tensor | None,
    batch_size: int,
    device: torch.device,
) -> ClipPlan:
    """Works out what to generate from the arguments of a call.

    Args:
        vae: an autoencoder of ours or of diffusers.
        transformer: the base model.
        num_frames: frames of the whole result; None takes the length that the model was trained on.
        context_frames: given frames, (B, 3, T, H, W) in [−1, 1].
        context_latents: instead, their clean latents, (B, c, t, h, w).
        batch_size: number of clips.
        device: where to compute, also for offloaded models.

    Raises:
        ValueError: both kinds of context are given, their number is not that of the clips, or the length after given
            frames is not a multiple of the temporal compression ratio.
    """
    ratio = temporal_ratio(vae)
    trained = transformer.config.sample_frames
    if num_frames is not None and (not isinstance(num_frames, int) or isinstance(num_frames, bool) or num_frames < 1):
        raise ValueError(f"num_frames must be a whole number of at least 1, got {num_frames!r}.")
    if context_frames is not None and context_latents is not None:
        raise ValueError("context_frames and context_latents exclude each other, got both.")
    context = context_latents
    if context_frames is not None:
        context = _encoded(vae, context_frames, device)
    if context is None:
        if num_frames is None and trained is None:
            return ClipPlan()
        latent_frames = int(trained) if num_frames is None else latent_frames_of(vae, num_frames)
        return ClipPlan(latent_frames, frames_of(vae, latent_frames) if num_frames is None else num_frames)
    if context.ndim != 5 or len(context) != batch_size:
        raise ValueError(f"context must be {batch_size} clips, one per result, got {tuple(context.shape)}.")
    if num_frames is not None and num_frames % ratio:
        raise ValueError(f"num_frames must be a multiple of {ratio} after given frames, got {num_frames}.")
    more = max(1, (trained or 0) - context.shape[2]) if num_frames is None else num_frames // ratio
    given = frames_of(vae, context.shape[2]) if context_frames is None else context_frames.shape[2]
    return ClipPlan(more, given + more * ratio, context.to(device, torch.float32))


@torch.no_grad()
def _encoded(vae: Any, frames: Tensor, device: torch.device) -> Tensor:
    if frames.ndim != 5 or not frames.is_floating_point():
        raise ValueError(f"context_frames must be floats (B, 3, T, H, W), got {tuple(frames.shape)} {frames.dtype}.")
    return normalize_latents(vae, encode_clean(vae, frames.to(device)))
