"""Reconstruction quality of a model on photos it never saw: the figures in MODEL_CARD.md.

python benchmarks/reconstruction.py --data ~/.cache/ul_tokenizer/debian-photos/validation [--output FILE --grid FILE]

Protocol: N random square crops of the held-out photos, scaled by a random factor from --scale_min to 1, seed 0;
latents are drawn with their noise; bits from the bundled prior at 16 stratified levels per image.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from _measure import machine
from torch import Tensor

from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsTransformer
from ul_tokenizer.evaluation.metrics import comparison_grid, mean_psnr, psnr_of_mean_mse
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.training.draws.crops import RandomCropDataset


def generators(count: int, seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


class Evaluation:
    """A model's reconstructions of fixed crops."""

    def __init__(self, name: str, pixels: Tensor, batch_size: int = 16) -> None:
        self.autoencoder = UnifiedLatentsAutoencoder.from_pretrained(name).eval()
        self.prior = UnifiedLatentsTransformer.from_pretrained(name, subfolder="prior").eval()
        self.pixels, self.batch_size = pixels, batch_size
        self.latents = torch.cat(
            [
                self.autoencoder.encode(batch).latent_dist.sample(generators(len(batch), 10_000 + i * batch_size))
                for i, batch in enumerate(pixels.split(batch_size))
            ]
        )

    def decode(self, latents: Tensor, steps: int) -> Tensor:
        parts = [
            self.autoencoder.decode(
                z, num_inference_steps=steps, generator=generators(len(z), i * self.batch_size)
            ).sample
            for i, z in enumerate(latents.split(self.batch_size))
        ]
        return torch.cat(parts)

    def bits_per_pixel(self) -> float:
        bits = [
            self.autoencoder.bits(x, self.prior, generator=generators(len(x), 20_000 + i * self.batch_size))
            for i, x in enumerate(self.pixels.split(self.batch_size))
        ]
        return float(torch.cat(bits).mean()) / (self.pixels.shape[-1] * self.pixels.shape[-2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ul-photo-f8")
    parser.add_argument("--data", type=Path, default=Path("~/.cache/ul_tokenizer/debian-photos/validation"))
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--scale_min", type=float, default=0.5)
    parser.add_argument("--num_images", type=int, default=256)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--output", type=Path, default=None, help="write the figures here as JSON")
    parser.add_argument("--grid", type=Path, default=None, help="write a picture: originals, one step, most steps")
    args = parser.parse_args()

    try:
        source = DecodedImages(FolderSource(args.data.expanduser(), keep_duplicates=True), cache_bytes=1 << 30)
    except ValueError as error:
        print(f"skipped: {error} `make photos` fetches them.")
        return
    crops = RandomCropDataset(source, args.resolution, seed=0, scale=(args.scale_min, 1.0))
    pixels = torch.stack([crops[n]["pixel_values"] for n in range(args.num_images)])
    with torch.inference_mode():
        evaluation = Evaluation(args.model, pixels)
        outputs = {steps: evaluation.decode(evaluation.latents, steps) for steps in args.steps}
        swapped = evaluation.decode(evaluation.latents.roll(1, 0), 1)
        bits_per_pixel = evaluation.bits_per_pixel()
    figures = {
        "model": args.model,
        "images": args.num_images,
        "photos": len(source),
        "resolution": args.resolution,
        "scale_min": args.scale_min,
        "machine": machine(),
        "bits_per_pixel": bits_per_pixel,
        "psnr_of_mean_mse": {steps: psnr_of_mean_mse(pixels, y) for steps, y in outputs.items()},
        "mean_of_psnr": {steps: mean_psnr(pixels, y) for steps, y in outputs.items()},
        "psnr_with_another_images_latent": psnr_of_mean_mse(pixels, swapped),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")
    if args.grid:
        comparison_grid([pixels, outputs[min(outputs)], outputs[max(outputs)]], columns=8).save(args.grid)


if __name__ == "__main__":
    main()
