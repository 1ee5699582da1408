"""What the benchmarks share: the machine and its own peaks, timing and peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ul_tokenizer.evaluation import environment as environment_of_results
from ul_tokenizer.models.layers import Linear

CPU = torch.device("cpu")
# Shapes that come close to the peak: (channels, side, batch) of convolutions, sides of square matrices.
CONVOLUTIONS = {
    "cpu": ((64, 64, 8), (128, 64, 8), (256, 64, 4), (512, 32, 4)),
    "cuda": ((128, 128, 32), (256, 64, 64), (512, 64, 32), (1024, 32, 32)),
}
MATRICES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}


# ---------------------------------------------------------------- time


def seconds_of(function: Callable[[], Any], device: torch.device = CPU) -> float:
    """Wall time of a call, until the device has done all of its work."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def median_seconds(function: Callable[[], Any], runs: int = 5, warmup: int = 1, device: torch.device = CPU) -> float:
    """Median wall time of a call."""
    for _ in range(warmup):
        function()
    return statistics.median(seconds_of(function, device) for _ in range(runs))


def synchronize(device: torch.device) -> None:
    """Waits for a GPU; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---------------------------------------------------------------- the machine's peaks


def convolution_peak(dtype: torch.dtype, device: torch.device = CPU) -> float:
    """FLOP/s of the best 3×3 convolution here: the ceiling that fractions are of."""
    rates = []
    for channels, side, batch in CONVOLUTIONS[device.type]:
        x = torch.randn(batch, channels, side, side, dtype=dtype, device=device)
        w = torch.randn(channels, channels, 3, 3, dtype=dtype, device=device)
        x, w = (tensor.to(memory_format=torch.channels_last) for tensor in (x, w))
        seconds = _fastest(partial(torch.nn.functional.conv2d, x, w, padding=1), device)
        rates.append(2 * 9 * channels**2 * side**2 * batch / seconds)
    return max(rates)


def matmul_peak(dtype: torch.dtype, device: torch.device = CPU) -> float:
    """FLOP/s of the best product of square matrices here, by torch's own kernel or by that of our linear layers."""
    rates = []
    for side in MATRICES[device.type]:
        layer = Linear(side, side, bias=False, dtype=dtype, device=device)
        x = torch.randn(side, side, dtype=dtype, device=device)
        products: tuple[Callable[[], Tensor], ...] = (partial(torch.mm, x, layer.weight.t()), partial(layer, x))
        rates += [2 * side**3 / _fastest(product, device) for product in products]
    return max(rates)


def _fastest(function: Callable[[], Any], device: torch.device) -> float:
    with torch.inference_mode():
        return median_seconds(function, runs=9, warmup=3, device=device)


# ---------------------------------------------------------------- the machine


def machine() -> str:
    """One line on where a figure was measured."""
    return f"{environment_of_results.machine()}, torch {torch.__version__}"


def environment(device: torch.device) -> dict[str, Any]:
    """What results of evaluations record of machine and versions, and the settings on which speed depends; JSON."""
    return {
        **environment_of_results.environment(device),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32 if device.type == "cuda" else None,
    }


# ---------------------------------------------------------------- memory


def memory_of(function: Callable[[], Any], device: torch.device = CPU) -> int | None:
    """Bytes that a call needs at its peak, beyond what was taken before it; None where nobody tells."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    if not sys.platform.startswith("linux"):
        function()
        return None
    with contextlib.suppress(AttributeError):  # without glibc
        ctypes.CDLL(None).malloc_trim(0)  # else the call would take memory that earlier ones left behind
    reset_peak_memory()
    before = peak_memory_bytes()
    function()
    return peak_memory_bytes() - before


def peak_memory_bytes() -> int:
    """Peak resident memory of this process so far (Linux)."""
    peak = environment_of_results.peak_memory_bytes()
    assert peak is not None
    return peak


def reset_peak_memory() -> None:
    """Makes `peak_memory_bytes` count from now (Linux)."""
    environment_of_results.reset_peak_memory()
