"""Reads the latents of one shard without reading the whole shard."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ul_tokenizer.latents.manifest import Shard


class ShardReader:
    """The latents of one shard. The file is mapped into memory, so a sample is read when it is asked for.

    Raises:
        ValueError: the file is missing or cut short, or it doesn't match its line in the manifest.
    """

    def __init__(self, path: Path, shard: Shard) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                self._latents: Tensor = file.get_tensor("latents")
                self._scale: Tensor | None = file.get_tensor("scale") if shard.dtype == "int8" else None
        except (OSError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise ValueError(f"Shard {path} is missing or damaged: {reason}; run `latents verify`.") from error
        if tuple(self._latents.shape) != shard.shape or str(self._latents.dtype) != f"torch.{shard.dtype}":
            raise ValueError(f"Shard {path} must hold latents {shard.shape} {shard.dtype}, as its manifest says.")

    def read(self, rows: list[int]) -> Tensor:
        """Reads samples: (B, c, [t,] h, w), fp32, in memory of their own."""
        latents = torch.stack([self._latents[row] for row in rows]).float()
        if self._scale is None:
            return latents
        return latents * self._scale.reshape(1, -1, *[1] * (latents.ndim - 2))
