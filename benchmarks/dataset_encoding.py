"""The encoding job, end to end, beside its two limits and beside the loop that one would write by hand.

    python benchmarks/dataset_encoding.py [--images 600] [--resolution 128] [--data DIR] [--memory]

JPEGs are cut out of the demo's photographs, unless --data names a folder. The script prints images per second of the
encoder alone on ready batches, of decoding alone and of the job, and what the first two allow together on this
machine's cores: 1 / (1 / encoder + 1 / (cores × decoding)). Then follow a plain loop, two processes against one, and
with --memory the job's peak memory over 1,000 and over 20,000 images.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, set_start_method
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import machine, median_seconds, peak_memory_bytes, reset_peak_memory
from PIL import Image

from ul_tokenizer import LatentDataset, UnifiedLatentsAutoencoder
from ul_tokenizer.latents.job import encode_dataset, load_encoder
from ul_tokenizer.media.transforms import Preprocessing
from ul_tokenizer.sources.folder import FolderSource

ROOT = Path(__file__).parent.parent
MODEL, BATCH = "ul-photo-f8", 32


def make_photos(folder: Path, count: int, side: int) -> None:
    """JPEGs of about 3:2 whose shorter side is `side`, cut out of the demo's photographs."""
    random = np.random.default_rng(0)
    photos = [Image.open(path).convert("RGB") for path in sorted((ROOT / "examples" / "images").glob("*.jpg"))]
    folder.mkdir(parents=True)
    for number in range(count):
        photo = photos[number % len(photos)]
        width = min(photo.width, int(photo.height * 1.5))
        height = int(width / 1.5)
        left, top = (
            int(random.integers(0, whole - part + 1)) for whole, part in zip(photo.size, (width, height), strict=True)
        )
        box = (left, top, left + width, top + height)
        turned = photo.resize((side * 3 // 2, side), box=box).rotate(float(random.uniform(-3, 3)))
        turned.save(folder / f"{number:05d}.jpg", quality=90)


def in_a_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function in a process with memory and caches of its own."""
    # A spawned process would spawn its loader's workers too, which import torch anew for seconds.
    again: dict[str, Any] = {"initializer": set_start_method, "initargs": (None, True)}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), **again) as pool:
        return pool.submit(function, *args).result()


# ---------------------------------------------------------------- what is measured


def encoder_rate(resolution: int) -> float:
    """Images/s on ready batches."""
    encoder = load_encoder(MODEL, device="cpu")
    pixels = torch.rand(BATCH, 3, resolution, resolution)
    with encoder.in_use():
        return BATCH / median_seconds(lambda: encoder(pixels), runs=9, warmup=2)


def decoding_rate(folder: Path, resolution: int) -> float:
    """Images/s of one process that reads, decodes and scales."""
    samples, preprocessing = FolderSource(folder, keep_duplicates=True), Preprocessing(resolution)
    start = time.perf_counter()
    for index in range(len(samples)):
        preprocessing(samples.open(index))
    return len(samples) / (time.perf_counter() - start)


def job(folder: Path, output: Path, resolution: int) -> tuple[float, int, int]:
    """Images/s, peak bytes of this process, and files."""
    autoencoder = load_encoder(MODEL, device="cpu").autoencoder
    with torch.inference_mode():
        autoencoder.encode(torch.zeros(BATCH, 3, resolution, resolution))
    reset_peak_memory()
    start = time.perf_counter()
    encode_dataset(folder, output, model=autoencoder, resolution=resolution, batch_size=BATCH)
    count = len(list(folder.iterdir()))
    return count / (time.perf_counter() - start), peak_memory_bytes(), len(list(output.iterdir()))


def by_hand(folder: Path, output: Path, resolution: int) -> tuple[float, int]:
    """Images/s and files of a plain loop over the images."""
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(MODEL).eval()
    output.mkdir()
    paths = sorted(folder.iterdir())
    start = time.perf_counter()
    for first in range(0, len(paths), BATCH):
        batch = paths[first : first + BATCH]
        images = []
        for path in batch:
            image = Image.open(path).convert("RGB")
            scale = resolution / min(image.size)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
            left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
            image = image.crop((left, top, left + resolution, top + resolution))
            images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1)
        with torch.no_grad():
            latents = autoencoder.encode(torch.stack(images)).latent
        for path, latent in zip(batch, latents, strict=True):
            torch.save(latent.half().clone(), output / f"{path.stem}.pt")
    return len(paths) / (time.perf_counter() - start), len(list(output.iterdir()))


def command(folder: Path, output: Path, resolution: int, processes: int) -> float:
    """Seconds of the command line with its start, as one process or as several under torchrun."""
    words = [str(folder), "-o", str(output), "--model", MODEL, "--resolution", str(resolution), "--keep-duplicates"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    script = [str(ROOT / "examples" / "encode_dataset.py"), *words]
    threads = max(1, (os.cpu_count() or 1) // processes)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *script],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)},
        check=True,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def digests(folder: Path) -> dict[str, str]:
    """The sha256 of every latent, by id."""
    return {s["id"]: hashlib.sha256(s["latent"].numpy().tobytes()).hexdigest() for s in LatentDataset(folder)}


# ---------------------------------------------------------------- the report


def report_speed(folder: Path, work: Path, resolution: int) -> None:
    count = len(list(folder.iterdir()))
    encoder = in_a_new_process(encoder_rate, resolution)
    decoding = in_a_new_process(decoding_rate, folder, resolution)
    allowed = 1 / (1 / encoder + 1 / ((os.cpu_count() or 1) * decoding))
    rate, _, files = in_a_new_process(job, folder, work / "job", resolution)
    hand, hand_files = in_a_new_process(by_hand, folder, work / "hand", resolution)
    print(f"{count} JPEGs to {resolution}×{resolution}, batches of {BATCH}, fp32, images/s:")
    print(f"  encoder on ready batches   {encoder:8.1f}")
    print(f"  decoding, one process      {decoding:8.1f}")
    print(f"  both on these cores allow  {allowed:8.1f}")
    of_limits = f"{rate / encoder:.2f} of the encoder, {rate / allowed:.2f} of what both allow"
    print(f"  the job                    {rate:8.1f}   {of_limits}")
    of_hand = f"the job takes {hand / rate:.2f} of its time, {files} files against {hand_files}"
    print(f"  the loop by hand           {hand:8.1f}   {of_hand}")


def report_processes(folder: Path, work: Path, resolution: int) -> None:
    one, two = (command(folder, work / f"p{n}", resolution, n) for n in (1, 2))
    same = digests(work / "p1") == digests(work / "p2")
    print(f"  two processes take {two / one:.2f} of one's time, start included; same ids and bytes: {same}")


def report_memory(work: Path) -> None:
    peaks = []
    for count in (1_000, 20_000):
        folder = work / f"small-{count}"
        make_photos(folder, count, 64)
        peaks.append(in_a_new_process(job, folder, work / f"latents-{count}", 64)[1])
    few, many = (f"{peak / 2**20:.0f} MiB" for peak in peaks)
    print(f"  peak memory {few} over 1,000 images, {many} over 20,000: × {peaks[1] / peaks[0]:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--data", type=Path, help="a folder of JPEGs (made of the demo's photographs)")
    parser.add_argument("--memory", action="store_true", help="measure the memory over 20,000 images, too")
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = args.data or work / "photos"
        if args.data is None:
            make_photos(folder, args.images, 384)
        report_speed(folder, work, args.resolution)
        report_processes(folder, work, args.resolution)
        if args.memory:
            report_memory(work)


if __name__ == "__main__":
    main()
