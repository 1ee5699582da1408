"""An autoencoder's encoder as the encoding job uses it, and the facts about it that a data set's header records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ul_tokenizer import __version__
from ul_tokenizer.models.any_autoencoder import check_deterministic
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.repository import ModelFiles, locate

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")


class Identity(NamedTuple):
    """Which weights an autoencoder has; fields as in a data set's header."""

    autoencoder: str | None
    revision: str | None
    weights_sha256: str


@dataclass(frozen=True)
class Encoder:
    """Pixels (B, 3, [T,] H, W) in [−1, 1] → z_clean (B, c, [t,] h, w), on the autoencoder's device.

    Args:
        autoencoder: the autoencoder, on its device.
        identity: which weights it has.
        dtype: what it computes in: "float32", "bfloat16" or "float16".

    Raises:
        ValueError: another dtype, or an autoencoder with a learned variance.
    """

    autoencoder: UnifiedLatentsAutoencoder
    identity: Identity
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in COMPUTE_DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(COMPUTE_DTYPES)}, got {self.dtype!r}.")
        check_deterministic(self.autoencoder)

    @property
    def device(self) -> torch.device:
        """The autoencoder's device."""
        device: torch.device = self.autoencoder.device
        return device

    @property
    def ratio(self) -> int:
        """Pixels per latent, along a side."""
        return int(self.autoencoder.spatial_compression_ratio)

    def header(self) -> dict[str, Any]:
        """The fields of a data set's header that describe the autoencoder."""
        config = self.autoencoder.config
        return {
            **self.identity._asdict(),
            "latent_channels": config.latent_channels,
            "latent_logsnr": config.latent_logsnr,
            "spatial_compression_ratio": self.autoencoder.spatial_compression_ratio,
            "temporal_compression_ratio": self.autoencoder.temporal_compression_ratio,
            "library_version": __version__,
        }

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, [T,] H, W) in [−1, 1] → z_clean (B, c, [t,] h, w) on the encoder's device."""
        x = pixels.to(self.device, non_blocking=True)
        is_reduced = self.dtype != "float32"
        reduced = getattr(torch, self.dtype) if is_reduced else None
        with torch.autocast(self.device.type, reduced, enabled=is_reduced):
            latent: Tensor = self.autoencoder.encode(x).latent
        return latent

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Prepares the autoencoder for many batches; afterwards it is as it was before."""
        was_training = self.autoencoder.training
        self.autoencoder.eval().to(memory_format=torch.channels_last)
        try:
            yield
        finally:
            self.autoencoder.train(was_training).to(memory_format=torch.contiguous_format)


# ---------------------------------------------------------------- which weights


def identity_of_files(name: str, files: ModelFiles) -> Identity:
    """The identity of an autoencoder that was loaded by name and not changed since."""
    return Identity(name if files.origin != "folder" else Path(name).name, files.revision, files.sha256())


def identity_of(autoencoder: UnifiedLatentsAutoencoder) -> Identity:
    """The identity of an autoencoder in memory.

    If it still has the weights of the files that it was loaded from, the identity is theirs. If not, the name is None
    and the sha256 is that of the file which `save_pretrained` would write.
    """
    name = autoencoder.config.get("_name_or_path")
    if name:
        try:
            files = locate(name, revision=autoencoder.commit_hash)
            if _has_weights_of(autoencoder, files):
                return identity_of_files(name, files)
        except (ValueError, OSError):  # the files are gone
            pass
    tensors = {key: value.contiguous() for key, value in autoencoder.state_dict().items()}
    return Identity(None, None, hashlib.sha256(save(tensors, {"format": "pt"})).hexdigest())


def _has_weights_of(autoencoder: UnifiedLatentsAutoencoder, files: ModelFiles) -> bool:
    state, seen = autoencoder.state_dict(), set()
    for path in files.weights():
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # not a dict
                seen.add(key)
                if key not in state or not torch.equal(file.get_tensor(key).to(state[key]), state[key]):
                    return False
    return bool(seen == state.keys())
