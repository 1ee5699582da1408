"""Peak memory of encoding and one-step decoding a large image with tiling.

python benchmarks/tiling_memory.py [--model ul-photo-f8] [--size 4096]
"""

from __future__ import annotations

import argparse
import time

import torch
from _measure import machine, peak_memory_bytes, reset_peak_memory

from ul_tokenizer import UnifiedLatentsAutoencoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ul-photo-f8")
    parser.add_argument("--size", type=int, default=4096)
    args = parser.parse_args()
    model = UnifiedLatentsAutoencoder.from_pretrained(args.model).eval()
    model.enable_tiling()
    x = torch.rand(1, 3, args.size, args.size) * 2 - 1
    print(machine())
    for job in ("encode", "decode"):
        reset_peak_memory()
        start = time.perf_counter()
        with torch.inference_mode():
            if job == "encode":
                z = model.encode(x).latent_dist.mode()
            else:
                model.decode(z, num_inference_steps=1, generator=torch.Generator().manual_seed(0))
        seconds = time.perf_counter() - start
        print(f"{job} {args.size}×{args.size}: peak {peak_memory_bytes() / 1e9:.2f} GB resident, {seconds:.1f} s")


if __name__ == "__main__":
    main()
