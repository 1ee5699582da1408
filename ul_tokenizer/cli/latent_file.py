"""Latent files: what `encode` writes and `decode` reads, a safetensors file with one latent and its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ul_tokenizer.files import write_whole

FORMAT = "ul_tokenizer.latent.1"
NUM_FRAMES = "num_frames"  # the metadata's key that only latents of videos have


def write_latent(path: Path, latent: Tensor, metadata: Mapping[str, str]) -> None:
    """Writes a latent (c, [t,] h, w) and its metadata, completely or not at all."""
    write_whole(path, save({"latent": latent.contiguous()}, dict(metadata)))


def read_latent(path: Path) -> tuple[Tensor, dict[str, str]]:
    """Latent (c, [t,] h, w), fp32, and metadata of a file that `encode` wrote.

    Raises:
        ValueError: another kind of file, or a damaged one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            latent = file.get_tensor("latent") if "latent" in file.keys() else torch.empty(0)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"Latent {path} can't be read: {error}.") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"Latent {path} must have the format {FORMAT}, got {metadata.get('format')}.")
    has_rank = latent.ndim == (4 if NUM_FRAMES in metadata else 3)
    if not has_rank or 0 in latent.shape or not latent.is_floating_point() or not latent.isfinite().all():
        raise ValueError(
            f"Latent {path} must hold finite floats (channels, [frames,] height, width), got {tuple(latent.shape)}."
        )
    return latent.float(), metadata


def is_video_latent(path: Path) -> bool:
    """Whether a file's metadata says that it holds a video; False for files that can't be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return NUM_FRAMES in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
