"""Images through a model: to latent files, back to pictures, and both beside each other with figures."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.cli.codec import DEFAULT_TILE, DecodeOptions, LoadedModel
from ul_tokenizer.cli.latent_file import read_latent, write_latent
from ul_tokenizer.cli.options import Fit
from ul_tokenizer.cli.tasks import FileTask
from ul_tokenizer.evaluation.grids import comparison_grid
from ul_tokenizer.evaluation.measures.metrics import psnr_of_mean_mse
from ul_tokenizer.files import whole_file
from ul_tokenizer.media.images import fit_to_multiple, read_image
from ul_tokenizer.media.pixels import frame_to_float, to_image
from ul_tokenizer.models.any_autoencoder import check_deterministic
from ul_tokenizer.models.latent_distribution import LatentDistribution
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer


class ImageReconstruction(NamedTuple):
    """Figures of one reconstructed image."""

    file: str
    kind: str
    width: int
    height: int
    psnr: float | None  # dB; None if the reconstruction is exact
    bits_per_pixel: float | None  # None without a prior
    seconds: float  # encoding and decoding
    output: str


class ImageTotals(NamedTuple):
    """Figures of all reconstructed images; None as in `ImageReconstruction`."""

    model: str
    files: int
    mean_psnr: float | None
    psnr_of_mean_mse: float | None
    bits_per_pixel: float | None
    pixels: int
    seconds: float  # mean per image


def image_totals(model: str, rows: Sequence[ImageReconstruction]) -> ImageTotals:
    """Means over images of PSNR and of MSE; bits and pixels are summed before they are divided."""
    pixels = [row.width * row.height for row in rows]
    bits = [row.bits_per_pixel * n for row, n in zip(rows, pixels, strict=True) if row.bits_per_pixel is not None]
    psnrs = [math.inf if row.psnr is None else row.psnr for row in rows]
    relative_mse = sum(10 ** (-psnr / 10) for psnr in psnrs) / len(rows)
    return ImageTotals(
        model,
        len(rows),
        _finite(sum(psnrs) / len(rows)),
        -10 * math.log10(relative_mse) if relative_mse else None,
        sum(bits) / sum(pixels) if len(bits) == len(rows) else None,
        sum(pixels),
        sum(row.seconds for row in rows) / len(rows),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass
class ImageCodec:
    """Images through a loaded model."""

    model: LoadedModel

    # ---------------------------------------------------------------- tensors

    def encode(self, pixels: Tensor) -> Tensor:
        """(1, 3, H, W) in [−1, 1] → z_clean (1, c, h, w), fp32."""
        self.model.set_tiling(*pixels.shape[-2:])
        autoencoder = self.model.autoencoder
        check_deterministic(autoencoder)
        latent: Tensor = autoencoder.encode(pixels.to(autoencoder.device)).latent
        return latent.float()

    def decode(self, z_clean: Tensor, how: DecodeOptions) -> Tensor:
        """(1, c, h, w) → (1, 3, H, W), fp32, in [−1, 1], on the CPU; the noise follows from seed and latent."""
        self.model.set_tiling(*(side * self.model.ratio for side in z_clean.shape[-2:]))
        generator = torch.Generator().manual_seed(_seed_of(z_clean, how.seed))
        autoencoder = self.model.autoencoder
        distribution = LatentDistribution(z_clean.to(autoencoder.device), autoencoder.config.latent_logsnr)
        z = distribution.mode() if how.mode else distribution.sample(generator)
        sample: Tensor = autoencoder.decode(z, generator=generator, num_inference_steps=how.steps).sample
        return sample.float().clamp(-1, 1).cpu()

    def bits(self, pixels: Tensor, prior: UnifiedLatentsTransformer, seed: int) -> float:
        """Bound on the bits in the latent of (1, 3, H, W): a sum over pieces, as attention grows with their square."""
        generator = torch.Generator().manual_seed(seed)
        multiple, autoencoder = self.model.prior_multiple, self.model.autoencoder
        side = max(DEFAULT_TILE // multiple, 1) * multiple
        pieces = [piece for strip in torch.split(pixels, side, -2) for piece in torch.split(strip, side, -1)]
        return sum(float(autoencoder.bits(p.to(autoencoder.device), prior, generator=generator)) for p in pieces)

    # ---------------------------------------------------------------- files

    @torch.inference_mode()
    def encode_file(self, job: FileTask, fit: Fit) -> None:
        """Image → latent file."""
        image = read_image(job.source)
        fitted = fit_to_multiple(image, self.model.ratio, fit)
        width, height = image.size if fit == "pad" else fitted.size
        metadata = {
            **self.model.latent_metadata(),
            "original_width": str(image.width),
            "original_height": str(image.height),
            "width": str(width),  # of the decoded picture
            "height": str(height),
            "fit": "none" if fitted.size == image.size else fit,
        }
        write_latent(job.target, self.encode(frame_to_float(fitted)[None])[0].cpu(), metadata)

    @torch.inference_mode()
    def decode_file(self, job: FileTask, how: DecodeOptions) -> None:
        """Latent file → PNG."""
        latent, metadata = read_latent(job.source)
        width, height = self.model.check_latent(job.source, latent, metadata)
        _save_png(to_image(self.decode(latent[None], how)[0, :, :height, :width]), job.target)

    @torch.inference_mode()
    def reconstruct_file(self, job: FileTask, fit: Fit, how: DecodeOptions) -> ImageReconstruction:
        """Image → PNG of original and reconstruction, side by side, and its figures."""
        image, prior = read_image(job.source), self.model.prior
        fitted = fit_to_multiple(image, self.model.prior_multiple, fit)
        width, height = image.size if fit == "pad" else fitted.size
        pixels = frame_to_float(fitted)[None]
        start = time.perf_counter()
        decoded = self.decode(self.encode(pixels), how)
        seconds = time.perf_counter() - start
        original, again = pixels[..., :height, :width], decoded[..., :height, :width]
        bits = None if prior is None else self.bits(pixels, prior, how.seed) / (width * height)
        _save_png(comparison_grid([torch.cat([original, again])], columns=2), job.target)
        psnr = _finite(psnr_of_mean_mse(original, again))
        return ImageReconstruction(job.name, "image", width, height, psnr, bits, seconds, str(job.target))


def _seed_of(latent: Tensor, seed: int) -> int:
    """A seed for each latent: the same wherever its file lies, and different noise for different files."""
    content = latent.detach().cpu().contiguous().numpy().tobytes()
    return int.from_bytes(hashlib.sha256(seed.to_bytes(8, "little") + content).digest()[:8], "little")


def _save_png(image: Image.Image, path: Path) -> None:
    with whole_file(path) as temporary:
        image.save(temporary, "PNG")
