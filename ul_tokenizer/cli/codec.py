"""Images through a model to latent files, and back: everything of the command line that needs a network."""

from __future__ import annotations

import hashlib
import math
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ul_tokenizer import __version__
from ul_tokenizer.cli.files import FileTask
from ul_tokenizer.evaluation.metrics import comparison_grid, psnr_of_mean_mse
from ul_tokenizer.files import whole_file
from ul_tokenizer.media.images import fit_to_multiple, read_image
from ul_tokenizer.media.pixels import frame_to_float, to_image
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.devices import pick_device as pick_device
from ul_tokenizer.models.latent_distribution import LatentDistribution
from ul_tokenizer.models.repository import (
    PRIOR,
    MissingPriorError,
    ModelFiles,
    license_and_metrics,
    load_autoencoder,
    load_prior,
    locate,
)
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

Fit = Literal["error", "pad", "crop"]
FORMAT = "ul_tokenizer.latent.1"
TILE_ABOVE, DEFAULT_TILE = 1024, 512  # pixels a side

# ---------------------------------------------------------------- the model


class Reconstruction(NamedTuple):
    """What a reconstruction is worth; `psnr` is None if it is exact, `bits_per_pixel` if there is no prior."""

    image: str
    width: int
    height: int
    psnr: float | None  # dB
    bits_per_pixel: float | None
    seconds: float  # encoding and decoding
    output: str


class Totals(NamedTuple):
    """Over all reconstructions; None as there."""

    mean_psnr: float | None
    psnr_of_mean_mse: float | None
    bits_per_pixel: float | None
    pixels: int
    seconds: float  # mean per image


def mean_figures(rows: Sequence[Reconstruction]) -> Totals:
    """Means over images of PSNR and of MSE; bits and pixels are summed first."""
    pixels = [row.width * row.height for row in rows]
    bits = [row.bits_per_pixel * n for row, n in zip(rows, pixels, strict=True) if row.bits_per_pixel is not None]
    psnrs = [math.inf if row.psnr is None else row.psnr for row in rows]
    relative_mse = sum(10 ** (-psnr / 10) for psnr in psnrs) / len(rows)
    return Totals(
        _finite(sum(psnrs) / len(rows)),
        -10 * math.log10(relative_mse) if relative_mse else None,
        sum(bits) / sum(pixels) if len(bits) == len(rows) else None,
        sum(pixels),
        sum(row.seconds for row in rows) / len(rows),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass
class Codec:
    """A loaded model, and files through it."""

    name: str
    autoencoder: UnifiedLatentsAutoencoder
    files: ModelFiles
    weights_sha256: str
    tile: int | None
    warned: set[str] = field(default_factory=set)

    @property
    def ratio(self) -> int:
        """Pixels per latent, a side."""
        return int(self.autoencoder.spatial_compression_ratio)

    def load_prior(self) -> UnifiedLatentsTransformer | None:
        """The model's prior, in fp32 as its bits are a measurement; None if it has none."""
        try:
            prior = load_prior(self.name, revision=self.files.revision)
        except MissingPriorError:
            return None
        prior.to(self.autoencoder.device)
        return prior

    # Tensors

    def encode(self, pixels: Tensor) -> Tensor:
        """(1, 3, H, W) in [−1, 1] → z_clean (1, c, h, w), fp32."""
        self.set_tiling(*pixels.shape[-2:])
        latent: Tensor = self.autoencoder.encode(pixels.to(self.autoencoder.device)).latent
        return latent.float()

    def decode(self, z_clean: Tensor, seed: int, steps: int | None, mode: bool) -> Tensor:
        """(1, c, h, w) → (1, 3, H, W), fp32, in [−1, 1], on the CPU; its noise follows from seed and latent."""
        self.set_tiling(*(side * self.ratio for side in z_clean.shape[-2:]))
        generator = torch.Generator().manual_seed(_seed_of(z_clean, seed))
        distribution = LatentDistribution(z_clean.to(self.autoencoder.device), self.autoencoder.config.latent_logsnr)
        z = distribution.mode() if mode else distribution.sample(generator)
        sample: Tensor = self.autoencoder.decode(z, generator=generator, num_inference_steps=steps).sample
        return sample.float().clamp(-1, 1).cpu()

    def bits(self, pixels: Tensor, prior: UnifiedLatentsTransformer, seed: int) -> float:
        """Bound on the bits in the latent of (1, 3, H, W), summed over pieces: attention grows with their square."""
        generator = torch.Generator().manual_seed(seed)
        side = max(DEFAULT_TILE // self.multiple(prior), 1) * self.multiple(prior)
        pieces = [piece for strip in torch.split(pixels, side, -2) for piece in torch.split(strip, side, -1)]
        device = self.autoencoder.device
        return sum(float(self.autoencoder.bits(p.to(device), prior, generator=generator)) for p in pieces)

    def multiple(self, prior: UnifiedLatentsTransformer | None) -> int:
        """What a side must be a multiple of."""
        return self.ratio * (int(prior.size_multiple) if prior is not None else 1)

    def set_tiling(self, height: int, width: int) -> None:
        """Tiles as the options or the model's config want them for pictures of this size."""
        automatic = self.autoencoder.config.tile_sample_size or (DEFAULT_TILE if max(height, width) > TILE_ABOVE else 0)
        tile = automatic if self.tile is None else self.tile
        if tile:
            self.autoencoder.enable_tiling(tile, tile)
        else:
            self.autoencoder.disable_tiling()

    # Files

    @torch.inference_mode()
    def encode_file(self, job: FileTask, fit: Fit) -> None:
        """Image → latent file."""
        image = read_image(job.source)
        fitted = fit_to_multiple(image, self.ratio, fit)
        latent = self.encode(frame_to_float(fitted)[None])[0].cpu().contiguous()
        width, height = image.size if fit == "pad" else fitted.size
        metadata = {
            "format": FORMAT,
            "library_version": __version__,
            "model": self.name,
            "revision": self.files.revision or "",
            "weights_sha256": self.weights_sha256,
            "latent_logsnr": str(self.autoencoder.config.latent_logsnr),
            "original_width": str(image.width),
            "original_height": str(image.height),
            "width": str(width),  # of what decoding gives
            "height": str(height),
            "fit": "none" if fitted.size == image.size else fit,
        }
        with whole_file(job.target) as path:
            path.write_bytes(save({"latent": latent}, metadata))

    @torch.inference_mode()
    def decode_file(self, job: FileTask, seed: int, steps: int | None, mode: bool) -> None:
        """Latent file → PNG."""
        latent, metadata = read_latent(job.source)
        width, height = self.check_latent(job.source, latent, metadata)
        pixels = self.decode(latent[None], seed, steps, mode)[0, :, :height, :width]
        _save_png(to_image(pixels), job.target)

    def check_latent(self, path: Path, latent: Tensor, metadata: dict[str, str]) -> tuple[int, int]:
        """Width and height to cut the decoded picture to."""
        config, made_by = self.autoencoder.config, metadata.get("model")
        if latent.shape[0] != config.latent_channels or metadata.get("latent_logsnr") != str(config.latent_logsnr):
            raise ValueError(f"Latent {path} was made by the model {made_by} and doesn't fit {self.name}; see --model.")
        if metadata.get("weights_sha256") != self.weights_sha256:
            self._warn(f"warning: latents that {made_by} made are decoded by other weights, those of {self.name}")
        sizes = [metadata.get(key, "") for key in ("width", "height")]
        for size, side in zip(sizes, (latent.shape[2], latent.shape[1]), strict=True):
            if not size.isdecimal() or not 0 < int(size) <= side * self.ratio:
                raise ValueError(f"Latent {path} claims the size {'×'.join(sizes)}, which doesn't fit its shape.")
        return int(sizes[0]), int(sizes[1])

    def _warn(self, message: str) -> None:
        if message not in self.warned:
            print(message, file=sys.stderr)
        self.warned.add(message)

    @torch.inference_mode()
    def reconstruct_file(
        self,
        job: FileTask,
        fit: Fit,
        prior: UnifiedLatentsTransformer | None,
        seed: int,
        steps: int | None,
        mode: bool,
    ) -> Reconstruction:
        """Image → picture of original and reconstruction, side by side, and its figures."""
        image = read_image(job.source)
        fitted = fit_to_multiple(image, self.multiple(prior), fit)
        width, height = image.size if fit == "pad" else fitted.size
        pixels = frame_to_float(fitted)[None]
        start = time.perf_counter()
        decoded = self.decode(self.encode(pixels), seed, steps, mode)
        seconds = time.perf_counter() - start
        original, again = pixels[..., :height, :width], decoded[..., :height, :width]
        bits = None if prior is None else self.bits(pixels, prior, seed) / (width * height)
        _save_png(comparison_grid([torch.cat([original, again])], columns=2), job.target)
        psnr = _finite(psnr_of_mean_mse(original, again))
        return Reconstruction(job.name, width, height, psnr, bits, seconds, str(job.target))


def load_codec(name: str, revision: str | None, device: torch.device, dtype: str, tile: int | None) -> Codec:
    """Loads a model for use from the command line; errors as `load_autoencoder`."""
    diffusers_logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers, about arguments that it passes itself
        autoencoder = load_autoencoder(name, revision=revision, torch_dtype=getattr(torch, dtype)).to(device)
    files = locate(name, revision=autoencoder.commit_hash or revision)
    return Codec(name, autoencoder, files, files.sha256(), tile)


def read_latent(path: Path) -> tuple[Tensor, dict[str, str]]:
    """Latent (c, h, w), fp32, and metadata of a file that `encode` wrote.

    Raises:
        ValueError: it is another file, or a damaged one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            latent = file.get_tensor("latent") if "latent" in file.keys() else torch.empty(0)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"Latent {path} can't be read: {error}.") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"Latent {path} must have the format {FORMAT}, got {metadata.get('format')}.")
    if (
        latent.ndim != (4 if "num_frames" in metadata else 3)
        or 0 in latent.shape
        or not latent.is_floating_point()
        or not latent.isfinite().all()
    ):
        raise ValueError(
            f"Latent {path} must hold finite floats (channels, [frames,] height, width), got {tuple(latent.shape)}."
        )
    return latent.float(), metadata


def _seed_of(latent: Tensor, seed: int) -> int:
    """A seed for each latent: the same wherever its file lies, and different noise for different files."""
    content = latent.detach().cpu().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(seed.to_bytes(8, "little") + content).digest()[:8], "little")


def _save_png(image: Image.Image, path: Path) -> None:
    with whole_file(path) as temporary:
        image.save(temporary, "PNG")


# ---------------------------------------------------------------- describing


def describe(name: str, revision: str | None) -> dict[str, Any]:
    """What there is to know of a model."""
    codec = load_codec(name, revision, torch.device("cpu"), "float32", None)
    prior, config = codec.load_prior(), codec.autoencoder.config
    parameters = codec.autoencoder.num_parameters_by_part()
    if prior is not None:
        parameters[PRIOR] = sum(p.numel() for p in prior.parameters())
    license, metrics = license_and_metrics(codec.files)
    weights = codec.files.weights() + codec.files.weights(PRIOR)
    return {
        "model": name,
        "from": codec.files.origin,
        "folder": str(codec.files.folder),
        "revision": codec.files.revision,
        "parameters": {**parameters, "total": sum(parameters.values())},
        "compression_per_side": codec.ratio,
        "latent_channels": config.latent_channels,
        "latent_logsnr": config.latent_logsnr,
        "decoding_steps": config.num_inference_steps,
        "bytes": sum(path.stat().st_size for path in weights),
        "weights_sha256": codec.weights_sha256,
        "license": license,
        "metrics": metrics,
    }
