"""Reconstruction of held-out clips by a video model: the figures of its card.

    python benchmarks/video_reconstruction.py [--model ul-video] [--videos DIR] [--photos DIR] [--output metrics.json]

Clips of 16 frames of 96×96: 16 parts of held-out videos (random squares, scaled), and 16 pans over held-out photos,
seed 0, latents drawn with their noise. PSNR is that of the mean squared error, and the mean over clips; flicker the
mean absolute difference of the changes from frame to frame, of the range, beside the source's own change.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from _measure import machine
from torch import Tensor

from ul_tokenizer import UnifiedLatentsAutoencoder
from ul_tokenizer.data.clips import RandomClipDataset, VideoFolder
from ul_tokenizer.data.crops import RandomCropDataset
from ul_tokenizer.data.images import ImageFolder
from ul_tokenizer.evaluation.metrics import mean_psnr, psnr_of_mean_mse
from ul_tokenizer.models.repository import load_prior
from ul_tokenizer.training.validation import flicker

CACHE = Path("~/.cache/ul_tokenizer").expanduser()
FRAMES, SIDE, COUNT, STEPS = 16, 96, 16, (1, 2, 4)


def clips_of(videos: Path, photos: Path) -> dict[str, Tensor]:
    """Name → (COUNT, 3, FRAMES, SIDE, SIDE)."""
    crops = RandomCropDataset(ImageFolder(photos), SIDE, scale=(0.5, 1.0))
    kinds = {"videos": VideoFolder(videos, 4 * SIDE, min_frames=FRAMES), "pans": None}
    drawn = {}
    for name, folder in kinds.items():
        dataset = RandomClipDataset(crops, folder, FRAMES, 1, image_fraction=0.0, pan_fraction=0.0, max_stride=1)
        drawn[name] = torch.stack([dataset.clip(n)["pixel_values"] for n in range(COUNT)])
    return drawn


def seeded(count: int, first: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + n) for n in range(count)]


@torch.inference_mode()
def measure(model: UnifiedLatentsAutoencoder, prior: Any, clips: Tensor) -> dict[str, Any]:
    figures: dict[str, Any] = {"source_change": float((clips[:, :, 1:] - clips[:, :, :-1]).abs().mean()) / 2}
    parts = clips.split(4)
    z = [model.encode(part).latent_dist.sample(seeded(len(part), 4 * n)) for n, part in enumerate(parts)]
    bits = torch.cat(
        [model.bits(part, prior, generator=seeded(len(part), 900 + 4 * n)) for n, part in enumerate(parts)]
    )
    figures["bits_per_pixel"] = float(bits.mean()) / (FRAMES * SIDE * SIDE)

    def decoded(steps: int, noise_per_frame: bool = False) -> Tensor:
        out = []
        for n, latent in enumerate(z):
            generators = seeded(len(latent), 500 + 4 * n)
            noise = None
            if noise_per_frame:
                noise = torch.stack([torch.randn(3, FRAMES, SIDE, SIDE, generator=g) for g in generators])
            out.append(model.decode(latent, generator=generators, num_inference_steps=steps, noise=noise).sample)
        return torch.cat(out)

    for steps in STEPS:
        again = decoded(steps)
        figures[f"psnr_of_mean_mse_{steps}"] = psnr_of_mean_mse(clips, again)
        figures[f"mean_of_psnr_{steps}"] = mean_psnr(clips, again)
        figures[f"flicker_{steps}"] = flicker(clips, again)
    figures["flicker_4_noise_per_frame"] = flicker(clips, decoded(4, noise_per_frame=True))
    swapped = torch.cat(z).roll(1, 0)
    z = list(swapped.split(4))
    figures["psnr_with_another_clips_latent"] = psnr_of_mean_mse(clips, decoded(1))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="ul-video")
    parser.add_argument("--videos", type=Path, default=CACHE / "clips" / "validation")
    parser.add_argument("--photos", type=Path, default=CACHE / "debian-photos" / "validation")
    parser.add_argument("--output", type=Path, help="write JSON here, too")
    args = parser.parse_args()
    model = UnifiedLatentsAutoencoder.from_pretrained(args.model).eval()
    model.use_tiling = False
    prior = load_prior(args.model).eval()
    protocol = {"model": Path(args.model).name, "frames": FRAMES, "side": SIDE, "clips": COUNT, "machine": machine()}
    figures = {name: measure(model, prior, clips) for name, clips in clips_of(args.videos, args.photos).items()}
    print(json.dumps({**protocol, **figures}, indent=2))
    if args.output is not None:
        args.output.write_text(json.dumps({**protocol, **figures}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
