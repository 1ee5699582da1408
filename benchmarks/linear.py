"""Why `models.layers.Linear` exists: fp32 linear layers through torch's default and through oneDNN, on this machine.

python benchmarks/linear.py
"""

from __future__ import annotations

from functools import partial

import torch
from _measure import machine, median_seconds

from ul_tokenizer.models.layers import Linear

SHAPES = ((1024, 1024, 1024), (1024, 1024, 4096), (1024, 4096, 1024), (4096, 192, 768))  # positions, C, C'


def main() -> None:
    torch.manual_seed(0)
    print(machine())
    print(f"{'positions':>9} {'C':>5} {'C out':>5} {'torch GFLOP/s':>14} {'oneDNN GFLOP/s':>15} {'difference':>11}")
    for positions, channels, out_channels in SHAPES:
        layer, x = Linear(channels, out_channels), torch.randn(1, positions, channels)
        flops = 2 * positions * channels * out_channels

        def default(layer: Linear = layer, x: torch.Tensor = x) -> torch.Tensor:
            return torch.nn.functional.linear(x, layer.weight, layer.bias)

        with torch.inference_mode():
            times = [median_seconds(f, runs=9, warmup=3) for f in (default, partial(layer, x))]
            rates = [flops / seconds / 1e9 for seconds in times]
            difference = float((default() - layer(x)).abs().max())
        print(f"{positions:>9} {channels:>5} {out_channels:>5} {rates[0]:>14.0f} {rates[1]:>15.0f} {difference:>11.1e}")


if __name__ == "__main__":
    main()
