"""Where the time of a call goes, by kind of operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = {  # kind → parts of operators' names, the first that fits
    "convolution": ("conv",),
    "matrix products": ("mm", "gemm", "linear_pointwise"),
    "attention": ("scaled_dot_product", "flash", "softmax"),
    "normalisation": ("layer_norm", "group_norm"),
    "activation": ("silu", "relu", "gelu"),
    "casts and copies": ("copy_", "cat", "pixel_", "clone"),
    "optimiser": ("adam", "_foreach", "clip"),
    "element-wise": ("add", "mul", "sub", "div", "sum", "square", "neg", "elementwise"),
}


def shares_of(call: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Kind of operator → fraction of the call's time, largest first; on a GPU of the time of its kernels."""
    is_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with profile(activities=activities) as trace:
        call()
    times: defaultdict[str, float] = defaultdict(float)
    for event in trace.key_averages():
        times[kind_of(event.key)] += event.self_device_time_total if is_gpu else event.self_cpu_time_total
    total = sum(times.values()) or 1.0
    return {kind: time / total for kind, time in sorted(times.items(), key=lambda item: -item[1]) if time}


def kind_of(operator: str) -> str:
    """The kind of an operator or kernel, by its name."""
    name = operator.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")
