"""What a model loses on pictures larger than its training crops: with tiles, without, with sharper attention.

    python benchmarks/large_pictures.py --model ul-photo-f8 [--images DIR] [--num 4] [--train-tokens 64 256]

Each picture is cut to a square and scaled to 512 px. Rows: its crops of 128 px one by one; the whole, decoded in tiles
of 128 px; the whole without tiles; and the same with the log-length temperature of `attention_train_tokens` in decoder
and prior, for every number given. All rows decode the same noise in one step. PSNR is a mean over pictures, bits are
the prior's bound per pixel; tiles concern the decoder alone, so their bits are those of the whole.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from _measure import machine
from PIL import Image, ImageOps
from torch import Tensor, nn

from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsTransformer
from ul_tokenizer.evaluation.measures.metrics import mean_psnr
from ul_tokenizer.media.pixels import frame_to_uint8, to_float
from ul_tokenizer.models.attention import RotaryAttention
from ul_tokenizer.models.repository import load_autoencoder, load_prior
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.sources.folder import FolderSource

PHOTOS = Path("~/.cache/ul_tokenizer/debian-photos/validation").expanduser()


def pictures(folder: Path, count: int, side: int) -> Tensor:
    """(count, 3, side, side), evenly spread over the folder."""
    images = DecodedImages(FolderSource(folder))
    chosen = [images.read(k * len(images) // count) for k in range(min(count, len(images)))]
    squares = [ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC) for image in chosen]
    return to_float(torch.stack([frame_to_uint8(square) for square in squares]))


def crops_of(x: Tensor, side: int) -> Tensor:
    """(1, C, H, W) → its crops (N, C, side, side), row by row."""
    return x.unfold(2, side, side).unfold(3, side, side)[0].permute(1, 2, 0, 3, 4).flatten(0, 1)


def joined(crops: Tensor, side: int) -> Tensor:
    """Undoes `crops_of`; `side` is that of the whole."""
    across = side // crops.shape[-1]
    rows = crops.unflatten(0, (across, across)).permute(2, 0, 3, 1, 4)
    return rows.reshape(1, crops.shape[1], side, side)


def set_train_tokens(model: nn.Module, count: int | None) -> None:
    """Changes the log-length temperature of a model; both of ours have a single width of attention grids."""
    for module in model.modules():
        if isinstance(module, RotaryAttention):
            module.train_tokens = count


class Measured:
    """A model and the pictures that it is measured on, with their noise."""

    def __init__(
        self, vae: UnifiedLatentsAutoencoder, prior: UnifiedLatentsTransformer, x: Tensor, levels: int
    ) -> None:
        self.vae, self.prior, self.x, self.levels = vae.eval(), prior.eval(), x, levels
        self.noise = torch.randn(1, *x.shape[1:], generator=torch.Generator().manual_seed(0))

    def row(self, crop: int | None = None, tile: int | None = None) -> tuple[float, float]:
        """PSNR, and bits per pixel, of the crops of each picture or of the whole."""
        self.vae.disable_tiling()
        if tile is not None:
            self.vae.enable_tiling(tile, tile)
        values = [self._of_picture(x[None], crop) for x in self.x]
        quality, bits = (sum(column) / len(values) for column in zip(*values, strict=True))
        return quality, bits

    @torch.no_grad()
    def _of_picture(self, x: Tensor, crop: int | None) -> tuple[float, float]:
        parts, noise = (x, self.noise) if crop is None else (crops_of(x, crop), crops_of(self.noise, crop))
        z = self.vae.encode(parts).latent_dist.sample(torch.Generator().manual_seed(0))
        y = self.vae.decode(z, noise=noise, num_inference_steps=1).sample
        y = (y if crop is None else joined(y, x.shape[-1])).clamp(-1, 1)
        bits = self.vae.bits(parts, self.prior, self.levels, torch.Generator().manual_seed(0)).sum()
        return mean_psnr(x, y), float(bits) / (x.shape[-1] * x.shape[-2])


def rows(measured: Measured, crop: int, train_tokens: list[int]) -> Iterator[tuple[str, float, float]]:
    """Name, PSNR and bits per pixel of each way."""
    yield "crops", *measured.row(crop=crop)
    yield "whole, tiles", *measured.row(tile=crop)
    yield "whole", *measured.row()
    for count in train_tokens:
        for model in (measured.vae, measured.prior):
            set_train_tokens(model, count)
        yield f"whole, train tokens {count}", *measured.row()


def main() -> None:
    parser = argparse.ArgumentParser(description="PSNR and bits of pictures larger than the training crops.")
    parser.add_argument("--model", default="ul-photo-f8", help="bundled name, folder or hub id (default: %(default)s)")
    parser.add_argument("--images", type=Path, default=PHOTOS, help="folder (default: %(default)s)")
    parser.add_argument("--num", type=int, default=4, help="pictures (default: %(default)s)")
    parser.add_argument("--side", type=int, default=512, help="of a picture, in pixels (default: %(default)s)")
    parser.add_argument("--crop", type=int, default=128, help="of crops and tiles, in pixels (default: %(default)s)")
    parser.add_argument("--levels", type=int, default=8, help="noise levels of the bits (default: %(default)s)")
    parser.add_argument("--train-tokens", type=int, nargs="*", default=[64, 256], help="(default: 64 256)")
    args = parser.parse_args()
    vae, prior = load_autoencoder(args.model), load_prior(args.model)
    measured = Measured(vae, prior, pictures(args.images, args.num, args.side), args.levels)
    print(json.dumps({"model": args.model, "pictures": len(measured.x), "machine": machine()}), flush=True)
    for name, quality, bits in rows(measured, args.crop, args.train_tokens):
        print(f"{name:26} {quality:6.2f} dB {bits:7.4f} bits/pixel", flush=True)


if __name__ == "__main__":
    main()
