"""Reading a latent data set back in shuffled order, beside a file per sample.

python benchmarks/latent_reading.py [--samples 20000]

Latents of 16×16×16 in fp16, written for the occasion and in the system's cache. One thread, no worker processes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from _measure import machine
from torch.utils.data import DataLoader

from ul_tokenizer import LatentDataset
from ul_tokenizer.latents.writer import SHARD_SAMPLES, LatentWriter

SHAPE, BATCH = (16, 16, 16), 256
SHARDS = 1000  # of a second data set: a million samples have as many


def write(folder: Path, count: int, shard_samples: int = SHARD_SAMPLES) -> None:
    header = {"latent_channels": SHAPE[0], "latent_logsnr": 5.0, "dtype": "float16"}
    random = torch.Generator().manual_seed(0)
    with LatentWriter(folder, header, shard_samples=shard_samples) as writer:
        for first in range(0, count, BATCH):
            ids = [f"{index:06d}" for index in range(first, min(first + BATCH, count))]
            columns = [{"label": index % 10} for index in range(len(ids))]
            writer.append(ids, torch.randn(len(ids), *SHAPE, generator=random), columns)


def write_files(folder: Path, count: int) -> None:
    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    for index in range(count):
        torch.save(torch.randn(*SHAPE, generator=random).half(), folder / f"{index:06d}.pt")


def rate(read: Callable[[], Iterable[int]]) -> float:
    """Samples/s of the second pass; the first one warms the cache."""
    sum(read())
    start = time.perf_counter()
    count = sum(read())
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        write(Path(name, "data"), args.samples)
        write(Path(name, "shards"), args.samples, shard_samples=max(1, args.samples // SHARDS))
        write_files(Path(name, "files"), args.samples)
        dataset, of_shards = LatentDataset(Path(name, "data")), LatentDataset(Path(name, "shards"))
        order = np.random.default_rng(0).permutation(len(dataset)).tolist()
        files = sorted(Path(name, "files").iterdir())
        stream = DataLoader(dataset.stream(seed=0, batch_size=BATCH), batch_size=None)
        found = {
            "stream in batches of 256": rate(lambda: (len(batch["latents"]) for batch in stream)),
            "one by one, at random": rate(lambda: (len(dataset[i]["latent"]) and 1 for i in order)),
            f"the same of {len(of_shards.shards)} shards": rate(
                lambda: (len(of_shards[i]["latent"]) and 1 for i in order)
            ),
            "torch.load of a file each": rate(lambda: (len(torch.load(files[i])) and 1 for i in order)),
        }
    print(f"{args.samples} latents of {'×'.join(map(str, SHAPE))} fp16, shuffled, latents/s:")
    for label, value in found.items():
        print(f"  {label:26}{value:10,.0f}")


if __name__ == "__main__":
    main()
