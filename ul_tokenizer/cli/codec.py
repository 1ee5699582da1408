"""A model that is loaded for the command line: the autoencoder with its files, its prior and its tiles."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from ul_tokenizer import __version__
from ul_tokenizer.cli.latent_file import FORMAT
from ul_tokenizer.cli.reporting import UsageError
from ul_tokenizer.models import devices
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.repository import MissingPriorError, ModelFiles, load_autoencoder, load_prior, locate
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

TILE_ABOVE, DEFAULT_TILE = 1024, 512  # pixels a side


@dataclass(frozen=True)
class DecodeOptions:
    """How latents are decoded."""

    seed: int
    steps: int | None  # decoding steps; None for those of the model's config
    mode: bool  # without the latent's noise


@dataclass
class LoadedModel:
    """An autoencoder on its device, and what the command line knows about it."""

    name: str
    autoencoder: UnifiedLatentsAutoencoder
    files: ModelFiles
    weights_sha256: str
    tile: int | None  # pixels a side; 0 never tiles, None tiles large images
    warned: set[str] = field(default_factory=set)

    @property
    def ratio(self) -> int:
        """Pixels per latent on each side."""
        return int(self.autoencoder.spatial_compression_ratio)

    @property
    def temporal_ratio(self) -> int:
        """Frames per latent frame; 1 for models of images."""
        return int(self.autoencoder.temporal_compression_ratio)

    @property
    def latent_logsnr(self) -> float:
        """Log-SNR of the noisy latents that the decoder takes."""
        return float(self.autoencoder.config.latent_logsnr)

    @cached_property
    def prior(self) -> UnifiedLatentsTransformer | None:
        """The model's prior, in fp32 because its bits are a measurement; None if the model has none."""
        try:
            prior = load_prior(self.name, revision=self.files.revision)
        except MissingPriorError:
            return None
        prior.to(self.autoencoder.device)
        return prior

    @property
    def prior_multiple(self) -> int:
        """The multiple in pixels that both sides need so that the prior, if there is one, takes the latent."""
        return self.ratio * (1 if self.prior is None else int(self.prior.size_multiple))

    def set_tiling(self, height: int, width: int) -> None:
        """Switches tiles on or off for pictures of this size, as --tile or the model's config says."""
        automatic = self.autoencoder.config.tile_sample_size or (DEFAULT_TILE if max(height, width) > TILE_ABOVE else 0)
        tile = automatic if self.tile is None else self.tile
        if tile:
            self.autoencoder.enable_tiling(tile, tile)
        else:
            self.autoencoder.disable_tiling()

    def latent_metadata(self) -> dict[str, str]:
        """What every latent file of this model says about how it was made."""
        return {
            "format": FORMAT,
            "library_version": __version__,
            "model": self.name,
            "revision": self.files.revision or "",
            "weights_sha256": self.weights_sha256,
            "latent_logsnr": str(self.autoencoder.config.latent_logsnr),
        }

    def check_latent(self, path: Path, latent: Tensor, metadata: Mapping[str, str]) -> tuple[int, int]:
        """Checks that this model can decode a latent (c, [t,] h, w); other weights are a warning.

        Returns:
            width and height to which the decoded picture is cut.

        Raises:
            ValueError: a latent of another kind of model, or a size that doesn't fit the latent's shape.
        """
        made_by = metadata.get("model")
        if latent.shape[0] != self.autoencoder.config.latent_channels or metadata.get("latent_logsnr") != str(
            self.autoencoder.config.latent_logsnr
        ):
            raise ValueError(
                f"Latent {path} was made by the model {made_by} and doesn't fit {self.name}; pass its model as --model."
            )
        if metadata.get("weights_sha256") != self.weights_sha256:
            self._warn(f"warning: latents made by {made_by} are decoded by {self.name}, which has other weights")
        sizes = [metadata.get(key, "") for key in ("width", "height")]
        for size, side in zip(sizes, (latent.shape[-1], latent.shape[-2]), strict=True):
            if not size.isdecimal() or not 0 < int(size) <= side * self.ratio:
                raise ValueError(f"Latent {path} claims the size {'×'.join(sizes)}, which doesn't fit its shape.")
        return int(sizes[0]), int(sizes[1])

    def _warn(self, message: str) -> None:
        """Prints a message once."""
        if message not in self.warned:
            print(message, file=sys.stderr)
        self.warned.add(message)


def load_model(name: str, revision: str | None, device: torch.device, dtype: str, tile: int | None) -> LoadedModel:
    """Loads an autoencoder for use from the command line.

    Raises:
        UsageError: tiles that are smaller than one latent.
        ValueError: as `load_autoencoder`.
    """
    diffusers_logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers warns about arguments that it passes itself
        autoencoder = load_autoencoder(name, revision=revision, torch_dtype=getattr(torch, dtype)).to(device)
    files = locate(name, revision=autoencoder.commit_hash or revision)
    model = LoadedModel(name, autoencoder, files, files.sha256(), tile)
    if tile and tile < model.ratio:
        raise UsageError(f"--tile must be 0 or at least the compression ratio {model.ratio}, got {tile}.")
    return model


def pick_device(name: str | None) -> torch.device:
    """The device of this name, or the best one for None.

    Raises:
        UsageError: this machine has no such device.
    """
    try:
        return devices.pick_device(name)
    except ValueError as error:
        raise UsageError(f"--device must be a device of this machine, such as cpu or cuda, got {name}.") from error
