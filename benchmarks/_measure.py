"""What the benchmarks share: the machine's own peak, timing and peak memory."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch


def median_seconds(function: Callable[[], Any], runs: int = 5, warmup: int = 1) -> float:
    """Median wall time of a call."""
    for _ in range(warmup):
        function()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def convolution_peak(dtype: torch.dtype) -> float:
    """FLOP/s of the best 3×3 convolution here: the ceiling that fractions are of."""
    rates = []
    for channels, side, batch in ((64, 64, 8), (128, 64, 8), (256, 64, 4), (512, 32, 4)):
        x = torch.randn(batch, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last)
        w = torch.randn(channels, channels, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            seconds = median_seconds(partial(torch.nn.functional.conv2d, x, w, padding=1), runs=9, warmup=3)
        rates.append(2 * 9 * channels**2 * side**2 * batch / seconds)
    return max(rates)


def machine() -> str:
    """One line on where a figure was measured."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def peak_memory_bytes() -> int:
    """Peak resident memory of this process so far."""
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))


def reset_peak_memory() -> None:
    """Makes `peak_memory_bytes` count from now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
