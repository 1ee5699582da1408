"""Opening a latent data set of millions of samples: time, and the memory of the process and of its workers.

    python benchmarks/latent_index.py [--samples 1000000]

Manifests are made up, with ids, labels, sizes and captions; there are no latents. Printed are the size of the
manifests, the seconds of the first and of the second opening, the memory that an open data set adds to the process, the
memory of each of two forked workers that read the id and columns of every sample, and the size of a pickled data set,
which spawned workers receive. USS is what a process has for itself, PSS adds its share of what several processes map.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from _measure import machine

from ul_tokenizer import LatentDataset

SHARD, CHANNELS = 1024, 16
MEGABYTE = 1_000_000


def make_manifests(folder: Path, count: int) -> None:
    """A header, and the manifests of eight processes."""
    folder.mkdir()
    header = {"format": "ul_tokenizer.latents", "version": 1, "latent_channels": CHANNELS, "latent_logsnr": 5.0}
    (folder / "header.json").write_text(json.dumps({**header, "dtype": "float16"}))
    files = [(folder / f"manifest-r{rank:03d}.jsonl").open("w") for rank in range(8)]
    for number, start in enumerate(range(0, count, SHARD)):
        rank = number % len(files)
        line = make_line(range(start, min(start + SHARD, count)), f"shard-r{rank:03d}-{number // len(files):06d}")
        files[rank].write(json.dumps(line) + "\n")
    for file in files:
        file.close()


def make_line(samples: range, name: str) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {
        "height": [256 + i % 512 for i in samples],
        "width": [256 + i * 7 % 512 for i in samples],
        "label": [i * 31 % 1000 for i in samples],
        "caption": [f"a photograph of thing number {i}" for i in samples],
    }
    values = [0.123456789 * (i + 1) for i in range(CHANNELS)]
    per_channel = dict.fromkeys(("mean", "squared_deviations", "minimum", "maximum"), values)
    return {
        "file": f"{name}.safetensors",
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "bytes": len(samples) * CHANNELS * 2048,
        "shape": [len(samples), CHANNELS, 32, 32],
        "dtype": "float16",
        "ids": [f"n{i * 31 % 1000:08d}/image_{i:08d}.jpg" for i in samples],
        "columns": columns,
        "statistics": {"count": len(samples) * 1024, **per_channel, "histogram": list(range(64))},
        "rounding": {"max": 0.001, "rms": 0.0001},
    }


# ---------------------------------------------------------------- measuring


def memory() -> dict[str, float]:
    """Megabytes of this process: its own (USS), and with its share of common ones (PSS)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines}
    return {"USS": sizes["Private_Clean"] + sizes["Private_Dirty"], "PSS": sizes["Pss"]}


def read_all(dataset: LatentDataset) -> Iterator[Any]:
    """Every id and value, as a training reads them over an epoch."""
    for shard in dataset.shards:
        yield from shard.ids
        for values in shard.columns.values():
            yield from values


def work(dataset: LatentDataset, results: Any, barrier: Any) -> None:
    for _ in read_all(dataset):
        pass
    barrier.wait()  # all are alive while they are measured, so that shares are shares
    results.put(memory())
    barrier.wait()


def measure(folder: Path) -> dict[str, Any]:
    before = memory()
    start = time.perf_counter()
    dataset = LatentDataset(folder)
    found: dict[str, Any] = {"seconds": time.perf_counter() - start, "samples": len(dataset)}
    after = memory()
    found["process"] = {name: after[name] - before[name] for name in after}
    found["pickled"] = len(pickle.dumps(dataset))
    context = multiprocessing.get_context("fork")
    results, barrier = context.Queue(), context.Barrier(2)
    workers = [context.Process(target=work, args=(dataset, results, barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found["workers"] = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return found


def in_a_new_process(function: Callable[..., Any], *args: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = name  # so that the first opening is one
        folder = Path(name, "data")
        make_manifests(folder, args.samples)
        size = sum(path.stat().st_size for path in folder.iterdir())
        first, second = (in_a_new_process(measure, folder) for _ in range(2))
        index = sum(path.stat().st_size for path in Path(name).rglob("*.index"))
    print(f"{args.samples:,} samples, manifests of {size / MEGABYTE:,.0f} MB, index of {index / MEGABYTE:,.0f} MB")
    print(f"  first opening   {first['seconds']:8.2f} s")
    print(f"  second opening  {second['seconds']:8.2f} s")
    for label, values in (("open, added", second["process"]), *(("worker", worker) for worker in second["workers"])):
        print(f"  {label:14}  USS {values['USS']:8,.0f} MB, PSS {values['PSS']:8,.0f} MB")
    print(f"  pickled         {second['pickled'] / MEGABYTE:12,.3f} MB")


if __name__ == "__main__":
    main()
