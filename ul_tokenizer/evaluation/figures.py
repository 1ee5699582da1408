"""From columns of samples to the figures of a result: means with intervals, over images and not over crops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ul_tokenizer.evaluation.measures.bootstrap import bootstrap_mean
from ul_tokenizer.evaluation.measures.metrics import psnr
from ul_tokenizer.evaluation.parts import Array, Columns

Figure = dict[str, Any]
BOOTSTRAP: dict[str, Any] = {"level": 0.95, "resamples": 1000, "seed": 0, "unit": "image"}  # how intervals are made


def mean_figure(
    values: Array, groups: Array, unit: str = "", transform: Callable[[Tensor], Tensor] | None = None
) -> Figure:
    """The mean of a column with its interval. If one value isn't a number, neither is the mean: it is null.

    Args:
        values: (N,).
        groups: (N,), number of the image of each sample.
        unit: of the figure.
        transform: applied to means, such as from MSE to PSNR.
    """
    nothing = {"value": None, "low": None, "high": None, "unit": unit}
    if np.isnan(values).any():
        return {**nothing, "reason": "some results are not finite; nonfinite names them."}
    if np.isinf(values).any():  # the PSNR of an exact copy
        return nothing
    interval = bootstrap_mean(
        torch.from_numpy(values),
        torch.from_numpy(groups),
        transform,
        BOOTSTRAP["resamples"],
        BOOTSTRAP["level"],
        BOOTSTRAP["seed"],
    )
    return {**{name: _finite(value) for name, value in interval._asdict().items()}, "unit": unit}


def pixel_figures(columns: Columns, groups: Array) -> dict[str, Figure]:
    """Figures of those columns that a reconstruction has; infinite ones, of exact copies, are null.

    Args:
        columns: name → (N,), or (N, T) for figures per frame.
        groups: (N,), number of the image of each sample.
    """
    plain = {"ssim": "", "ms_ssim": "", "lpips": "", "flicker": "of the range", "source_change": "of the range"}
    figures = {
        "psnr_of_mean_mse": mean_figure(columns["mse"], groups, "dB", psnr),
        "mean_psnr": mean_figure(columns["psnr"], groups, "dB"),
    }
    if "gradient_energy" in columns:
        figures["sharpness"] = ratio_figure(columns["gradient_energy"], columns["source_gradient_energy"], groups)
    figures |= {name: mean_figure(columns[name], groups, unit) for name, unit in plain.items() if name in columns}
    if "mse_per_frame" in columns:
        means = psnr(torch.from_numpy(columns["mse_per_frame"].mean(0)))
        figures["psnr_per_frame"] = {"value": [_finite(value) for value in means.tolist()], "unit": "dB"}
    return figures


def rate_figure(bits: Array, pixels: Array, groups: Array, kind: str) -> Figure:
    """Bits per pixel: all bits by all pixels, so that large images count more; all arrays are (N,)."""
    return {**mean_figure(bits / pixels.mean(), groups, "bits/pixel"), "kind": kind}


def ratio_figure(values: Array, sources: Array, groups: Array) -> Figure:
    """The mean of a column over the mean of another one, with an interval; null if the latter is 0. All are (N,).

    Both means vary together from resample to resample. Near R = ȳ / x̄ the ratio of two means is R + mean(y − R x) / x̄,
    which is a mean again, and so has an interval like any other.
    """
    mean = sources.mean()
    if not mean > 0 and not np.isnan(values).any():
        return {"value": None, "low": None, "high": None, "unit": "", "reason": "the originals are flat."}
    ratio = values.mean() / mean
    return mean_figure(ratio + (values - ratio * sources) / mean, groups)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def medians(columns: Columns, names: Mapping[str, str]) -> dict[str, float | None]:
    """Medians of columns: name of the figure → name of the column."""
    return {name: float(np.median(columns[column])) if len(columns[column]) else None for name, column in names.items()}
