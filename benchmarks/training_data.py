"""What a loader's worker delivers: 512² crops from JPEGs of 2,000 pixels, with and without reduced decoding.

    python benchmarks/training_data.py [--images 24] [--crops 96]

One worker process reads, crops and collates batches; the main process takes them. "native" takes windows at the image's
own scale, "short side" scales the image by its shorter side (--scaling short_side), which covers it from a half or as a
whole. Each is measured as it would have been done until version 0.13 (the whole JPEG is decoded and copied twice, and
float32 pixels leave the worker) and as it is done now (no copies, uint8, and JPEGs decoded at half their size where that
is enough for the short side). The runs take turns, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import machine
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from ul_tokenizer.media.pixels import to_float
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.training.draws.crops import CropSample, DrawSampler, RandomCropDataset, collate_crops

SIDE, BATCH, ROUNDS = 512, 8, 5
KINDS = {"native": (0.5, "native"), "short side, half": (0.5, "short_side"), "short side, whole": (1.0, "short_side")}


class ImagesBefore(DecodedImages):
    """Images as they were read before: decoded whole, and copied by two functions of Pillow."""

    def read(self, index: int, shorter_side: int | None = None) -> Image.Image:
        path = self.source.open(index)
        assert isinstance(path, Path)
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")


class InFloats(Dataset[CropSample]):
    """Crops as they left a worker before: float32 in [−1, 1]."""

    def __init__(self, crops: RandomCropDataset) -> None:
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, n: int) -> CropSample:
        crop = self.crops[n]
        return {**crop, "pixel_values": to_float(crop["pixel_values"])}


def write_photographs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEGs of noise with the spectrum of photographs: its power falls as the frequency to the power of 2.5."""
    rows, columns = np.fft.fftfreq(size[1])[:, None], np.fft.rfftfreq(size[0])[None]
    fall = np.maximum(np.hypot(rows, columns), 1 / max(size)) ** -1.25
    for n in range(count):
        noise = np.random.default_rng(n).normal(size=(3, size[1], size[0]))
        waves = np.fft.irfft2(np.fft.rfft2(noise) * fall, s=(size[1], size[0]))
        waves /= waves.std(axis=(1, 2), keepdims=True)
        amplitudes = np.array([50, 12, 12])[:, None, None]  # of brightness and of two colours
        channels = (128 + amplitudes * waves).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        picture = Image.frombytes("YCbCr", size, channels.tobytes())
        picture.save(folder / f"{n}.jpg", quality=90)


def crops_per_second(dataset: Dataset[CropSample], count: int) -> float:
    loader: DataLoader[Any] = DataLoader(
        dataset, BATCH, sampler=DrawSampler(0, BATCH + count), num_workers=1, collate_fn=collate_crops
    )
    batches = iter(loader)
    next(batches)  # until here, the worker starts
    start = time.perf_counter()
    taken = sum(len(batch["pixel_values"]) for batch in batches)
    return taken / (time.perf_counter() - start)


def measured(datasets: dict[str, Dataset[CropSample]], count: int) -> dict[str, list[float]]:
    """Crops per second of each data set, in several rounds."""
    rates: dict[str, list[float]] = {name: [] for name in datasets}
    for _ in range(ROUNDS):
        for name, dataset in datasets.items():
            rates[name].append(crops_per_second(dataset, count))
    return rates


def report(rates: dict[str, list[float]]) -> None:
    for kind in KINDS:
        before, now = rates[f"{kind}, before"], rates[f"{kind}, now"]
        ratios = [new / old for new, old in zip(now, before, strict=True)]
        print(
            f"  {kind:20}{statistics.median(before):8.1f} → {statistics.median(now):6.1f} crops/s   "
            f"× {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--crops", type=int, default=96)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    for size in ((2000, 2000), (2000, 1500)):
        with tempfile.TemporaryDirectory() as folder:
            write_photographs(Path(folder), args.images, size)
            source = FolderSource(folder, keep_duplicates=True)
            images = DecodedImages(source)
            datasets: dict[str, Dataset[CropSample]] = {}
            for name, (lowest, scaling) in KINDS.items():
                options: dict[str, Any] = {"scale": (lowest, 1.0), "random_flip": True, "scaling": scaling}
                datasets[f"{name}, before"] = InFloats(RandomCropDataset(ImagesBefore(source), SIDE, **options))
                datasets[f"{name}, now"] = RandomCropDataset(images, SIDE, **options)
            kilobytes = sum(path.stat().st_size for path in Path(folder).iterdir()) / args.images / 1000
            print(
                f"{size[0]}×{size[1]}, {kilobytes:.0f} kB, to {SIDE}×{SIDE}: one worker, median of {ROUNDS} rounds "
                "(lowest to highest)"
            )
            report(measured(datasets, args.crops))


if __name__ == "__main__":
    main()
