"""Reconstruction of held-out clips by a video model: the figures of its card.

    python benchmarks/video_reconstruction.py [--model ul-video] [--image-model ul-photo-f8] [--videos DIR]
        [--photos DIR] [--output metrics.json]

Clips of 16 frames of 96×96: 16 parts of held-out videos (random squares, scaled), and 16 pans over held-out photos,
seed 0, latents drawn with their noise. PSNR is that of the mean squared error, and the mean over clips; flicker the
mean absolute difference of the changes from frame to frame, of the range, beside the source's own change.

Frame by frame: the same clips through an image model, one step, one noise for all frames.

Seams: four clips of 72 frames are decoded in windows as they overlap, in windows side by side, and in one window; the
flicker of the changes at which windows meet, in each of the three.
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
from ul_tokenizer.evaluation.metrics import mean_psnr, psnr_of_mean_mse
from ul_tokenizer.evaluation.sweep import weights_sha256
from ul_tokenizer.models.repository import load_prior
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.training.draws.clips import RandomClipDataset
from ul_tokenizer.training.draws.crops import RandomCropDataset
from ul_tokenizer.training.draws.video_pool import VideoPool
from ul_tokenizer.training.validation import flicker

CACHE = Path("~/.cache/ul_tokenizer").expanduser()
FRAMES, SIDE, COUNT, STEPS = 16, 96, 16, (1, 2, 4)
LONG_FRAMES, LONG_COUNT = 72, 4


def loaded(name: str) -> tuple[UnifiedLatentsAutoencoder, Any]:
    """A model and its prior."""
    model = UnifiedLatentsAutoencoder.from_pretrained(name).eval()
    model.use_tiling = False
    return model, load_prior(name).eval()


def clips_of(videos: Path, photos: Path, frames: int, count: int) -> dict[str, Tensor]:
    """Name → (count, 3, frames, SIDE, SIDE)."""
    crops = RandomCropDataset(DecodedImages(FolderSource(photos, keep_duplicates=True)), SIDE, scale=(0.5, 1.0))
    kinds = {"videos": VideoPool(videos, 4 * SIDE, min_frames=frames), "pans": None}
    drawn = {}
    for name, folder in kinds.items():
        dataset = RandomClipDataset(crops, folder, frames, 1, image_fraction=0.0, pan_fraction=0.0, max_stride=1)
        drawn[name] = torch.stack([dataset.clip(n)["pixel_values"] for n in range(count)])
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


@torch.inference_mode()
def frame_by_frame(model: UnifiedLatentsAutoencoder, prior: Any, clips: Tensor) -> dict[str, float]:
    """What an image model makes of the clips."""
    noise = torch.randn(1, 3, SIDE, SIDE, generator=seeded(1, 500)[0]).expand(FRAMES, -1, -1, -1)
    again, bits = [], 0.0
    for n, clip in enumerate(clips):
        frames = clip.transpose(0, 1)
        z = model.encode(frames).latent_dist.sample(seeded(1, n)[0])
        again.append(model.decode(z, num_inference_steps=1, noise=noise).sample.transpose(0, 1))
        bits += float(model.bits(frames, prior, generator=seeded(1, 900 + n)[0]).sum())
    return {
        "bits_per_pixel": bits / clips[:, 0].numel(),
        "psnr_of_mean_mse": psnr_of_mean_mse(clips, torch.stack(again)),
        "mean_of_psnr": mean_psnr(clips, torch.stack(again)),
        "flicker": flicker(clips, torch.stack(again)),
    }


@torch.inference_mode()
def seams(model: UnifiedLatentsAutoencoder, clips: Tensor) -> dict[str, float]:
    """Flicker where windows meet; `overlapping` and `side_by_side` beside what `one_window` has there."""
    size, overlap, ratio = model.decode_window_latents, model.decode_window_overlap, model.temporal_compression_ratio
    z = [model.encode(clip[None]).latent_dist.mode() for clip in clips]

    def error(window: int, shared: int) -> Tensor:
        """|Δ reconstruction − Δ source| of each change, (LONG_FRAMES − 1,)."""
        model.decode_window_latents, model.decode_window_overlap = window, shared
        again = torch.cat([model.decode(latent, generator=seeded(1, n)).sample for n, latent in enumerate(z)])
        model.decode_window_latents, model.decode_window_overlap = size, overlap
        return ((again - clips).diff(dim=2).abs().mean(dim=(0, 1, 3, 4))) / 2

    step = (size - overlap) * ratio
    blended = [n for first in range(step, LONG_FRAMES, step) for n in range(first - 1, first + overlap * ratio)]
    met = list(range(size * ratio - 1, LONG_FRAMES - 1, size * ratio))
    whole = error(LONG_FRAMES, 0)
    mean = {
        "overlapping": error(size, overlap)[[n for n in blended if n < LONG_FRAMES - 1]],
        "overlapping_one_window": whole[[n for n in blended if n < LONG_FRAMES - 1]],
        "side_by_side": error(size, 0)[met],
        "side_by_side_one_window": whole[met],
    }
    return {name: float(errors.mean()) for name, errors in mean.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="ul-video")
    parser.add_argument("--image-model", default="ul-photo-f8")
    parser.add_argument("--videos", type=Path, default=CACHE / "clips" / "validation")
    parser.add_argument("--photos", type=Path, default=CACHE / "debian-photos" / "validation")
    parser.add_argument("--output", type=Path, help="write JSON here, too")
    args = parser.parse_args()
    (model, prior), (image_model, image_prior) = map(loaded, (args.model, args.image_model))
    figures: dict[str, Any] = {"model": Path(args.model).name, "weights_sha256": weights_sha256(model, prior)}
    figures |= {"frames": FRAMES, "side": SIDE, "clips": COUNT, "machine": machine()}
    for name, clips in clips_of(args.videos, args.photos, FRAMES, COUNT).items():
        figures[name] = measure(model, prior, clips)
        figures[name]["frame_by_frame"] = frame_by_frame(image_model, image_prior, clips)
    for name, clips in clips_of(args.videos, args.photos, LONG_FRAMES, LONG_COUNT).items():
        figures[name]["seams"] = seams(model, clips)
    text = json.dumps(figures, indent=2)
    print(text)
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
