"""Peak memory of an evaluation over 2,000 and over 20,000 images, features and KID included.

    python benchmarks/evaluation_memory.py [--few 2000] [--many 20000] [--features efficientnet-lite0]

Images of 64×64 are cut out of the demo's photographs. Each count runs in a process of its own; what is measured is a
codec, since the memory of an autoencoder depends on its batch only.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from _measure import machine, peak_memory_bytes, reset_peak_memory
from PIL import Image

from ul_tokenizer.evaluation.job import evaluate_reconstruction

ROOT = Path(__file__).parent.parent
SIDE = 64


def make_images(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    photos = [np.array(Image.open(path).convert("RGB")) for path in sorted((ROOT / "examples/images").glob("*.jpg"))]
    folder.mkdir(parents=True)
    for number in range(count):
        photo = photos[number % len(photos)]
        top, left = (int(random.integers(0, side - SIDE)) for side in photo.shape[:2])
        Image.fromarray(photo[top : top + SIDE, left : left + SIDE]).save(folder / f"{number:06d}.bmp")


def peak_and_seconds(folder: Path, reference: Path, feature: str) -> tuple[int, float]:
    """Of one evaluation of jpeg:30; a first small one loads everything that is loaded once."""
    small = folder.parent / "small"
    evaluate_reconstruction(small, ["jpeg:30"], features=[feature], lpips=None)
    reset_peak_memory()
    start = time.perf_counter()
    evaluate_reconstruction(folder, ["jpeg:30"], features=[feature], references={feature: reference}, lpips=None)
    return peak_memory_bytes(), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=2_000)
    parser.add_argument("--many", type=int, default=20_000)
    parser.add_argument("--features", default="efficientnet-lite0")
    args = parser.parse_args()
    print(machine())
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_images(root / "small", 64)
        for count in (args.few, args.many):
            make_images(root / str(count), count)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                work = pool.submit(peak_and_seconds, root / str(count), root / f"{count}.safetensors", args.features)
                peaks[count], seconds = work.result()
            print(f"{count:,} images: peak {peaks[count] / 2**20:.0f} MiB, {count / seconds:.0f} images/s", flush=True)
    print(f"× {peaks[args.many] / peaks[args.few]:.3f}")


if __name__ == "__main__":
    main()
