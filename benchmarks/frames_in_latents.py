"""What is left of a clip whose latents are those of fewer frames: why `temporal_downsample: latents` starts with all.

    python benchmarks/frames_in_latents.py [--image-model ul-photo-f8] [--videos DIR] [--photos DIR]

The clips are 16 parts of held-out videos and 16 pans over held-out photographs, 16 frames of 96×96 each. Of every four
frames, the image model's latents of one to four are kept: their mean; the last frame's, and how others differ from it.
Each is noised as any latent is, the frames between are put on the line between their neighbours, and all are decoded
frame by frame in one step with one noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from _measure import machine
from torch import Tensor

from ul_tokenizer import UnifiedLatentsAutoencoder
from ul_tokenizer.evaluation.measures.metrics import flicker, psnr_of_mean_mse
from ul_tokenizer.media.pixels import to_float
from ul_tokenizer.models.latent_distribution import LatentDistribution
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.training.draws.clips import RandomClipDataset
from ul_tokenizer.training.draws.crops import RandomCropDataset
from ul_tokenizer.training.draws.video_pool import VideoPool

CACHE = Path("~/.cache/ul_tokenizer").expanduser()
FRAMES, SIDE, COUNT, RATIO = 16, 96, 16, 4


def clips_of(videos: Path, photos: Path, frames: int, count: int) -> dict[str, Tensor]:
    """Name → (count, 3, frames, SIDE, SIDE)."""
    crops = RandomCropDataset(DecodedImages(FolderSource(photos, keep_duplicates=True)), SIDE, scale=(0.5, 1.0))
    kinds = {"videos": VideoPool(videos, 4 * SIDE, min_frames=frames), "pans": None}
    drawn = {}
    for name, folder in kinds.items():
        dataset = RandomClipDataset(crops, folder, frames, 1, image_fraction=0.0, pan_fraction=0.0, max_stride=1)
        drawn[name] = to_float(torch.stack([dataset.clip(n)["pixel_values"] for n in range(count)]))
    return drawn


def seeded(count: int, first: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + n) for n in range(count)]


def kept(z: Tensor, count: int, generator: torch.Generator, logsnr: float) -> Tensor:
    """(RATIO, c, h, w) → the same, of which only `count` frames were kept."""

    def noised(latent: Tensor) -> Tensor:
        sample: Tensor = LatentDistribution(latent, logsnr).sample(generator)
        return sample

    if count == 1:
        return noised(z.mean(0, keepdim=True)).expand_as(z)
    last = noised(z[-1:])[0]
    first = last + noised(z[:1] - z[-1:])[0]
    if count == 2:
        return torch.stack([torch.lerp(first, last, n / 3) for n in range(RATIO)])
    if count == 3:
        middle = last + noised(z[1:3].mean(0, keepdim=True) - z[-1:])[0]
        return torch.stack([first, torch.lerp(middle, first, 1 / 6), torch.lerp(middle, last, 1 / 6), last])
    return torch.stack([first, *(last + noised(z[n : n + 1] - z[-1:])[0] for n in (1, 2)), last])


@torch.inference_mode()
def reconstructed(model: UnifiedLatentsAutoencoder, clip: Tensor, count: int, seed: int) -> Tensor:
    """(3, FRAMES, H, W) → the same."""
    z, generator = model.encode(clip.transpose(0, 1)).latent, seeded(1, seed)[0]
    parts = [kept(part, count, generator, model.config.latent_logsnr) for part in torch.split(z, RATIO)]
    noise = torch.randn(1, 3, *clip.shape[-2:], generator=seeded(1, 500)[0]).expand(FRAMES, -1, -1, -1)
    frames: Tensor = model.decode(torch.cat(parts), num_inference_steps=1, noise=noise).sample
    return frames.transpose(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image-model", default="ul-photo-f8")
    parser.add_argument("--videos", type=Path, default=CACHE / "clips" / "validation")
    parser.add_argument("--photos", type=Path, default=CACHE / "debian-photos" / "validation")
    args = parser.parse_args()
    model = UnifiedLatentsAutoencoder.from_pretrained(args.image_model).eval()
    model.use_tiling = False
    print(machine())
    print("clips    frames kept of 4   PSNR of the mean MSE (dB)   flicker")
    for name, clips in clips_of(args.videos, args.photos, FRAMES, COUNT).items():
        for count in range(1, RATIO + 1):
            again = torch.stack([reconstructed(model, clip, count, n) for n, clip in enumerate(clips)])
            print(f"{name:8} {count:16} {psnr_of_mean_mse(clips, again):27.2f} {flicker(clips, again):9.4f}")


if __name__ == "__main__":
    main()
