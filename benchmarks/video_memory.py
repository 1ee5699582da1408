"""Peak memory of long clips.

    python benchmarks/video_memory.py [--seconds 600] [--preset ul-tiny-f8]

Peak memory of encoding and decoding 176×144 clips of ten seconds and of --seconds at 25 frames a second, each in a
process of its own, as `encode_stream` and `decode_stream` go through them; frames are made as they are asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from _measure import machine, peak_memory_bytes, reset_peak_memory
from torch import Tensor

from ul_tokenizer.models.presets import build_autoencoder

RATE, HEIGHT, WIDTH = 25, 144, 176


def in_a_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """Its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def peaks(preset: str, seconds: int) -> tuple[int, int]:
    """Peak bytes of encoding, and of encoding and decoding, a clip of so many seconds."""
    torch.manual_seed(0)
    changes = {"temporal_compression_ratio": 4}
    model = build_autoencoder(preset, changes).eval()
    count = seconds * RATE

    def frames() -> Iterator[Tensor]:
        picture = torch.rand(1, 3, 1, HEIGHT, WIDTH) * 2 - 1
        for n in range(count):
            yield picture.roll(n, -1)

    reset_peak_memory()
    encoded = sum(latents.shape[2] for latents in model.encode_stream(frames(), count))
    encoding = peak_memory_bytes()
    decoded = sum(part.shape[2] for part in model.decode_stream(model.encode_stream(frames(), count), count))
    assert (encoded, decoded) == (-(-count // 4), count)
    return encoding, peak_memory_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--preset", default="ul-tiny-f8", help="larger ones take hours")
    args = parser.parse_args()
    print(machine())
    few, many = (in_a_new_process(peaks, args.preset, seconds) for seconds in (10, args.seconds))
    for name, short, long in zip(("encoding", "encoding and decoding"), few, many, strict=True):
        figures = f"{short / 2**20:.0f} MiB over 10 s, {long / 2**20:.0f} over {args.seconds} s"
        print(f"peak memory of {name}, {WIDTH}×{HEIGHT}: {figures}: × {long / short:.3f}")


if __name__ == "__main__":
    main()
