"""Exact statistics of latents per channel, in float64, that merge across batches and processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

HISTOGRAM_RANGE, HISTOGRAM_BINS = 8.0, 64  # of all channels together; values outside count in the outer bins
MIN_STD = 1e-6  # so that a dead channel normalises to zeros, not to NaN


@dataclass
class ChannelStatistics:
    """Count, mean, squared deviations and extremes per channel, merged in any order (Chan et al., 1983)."""

    count: int
    mean: Tensor  # (c,) float64
    squared_deviations: Tensor  # (c,) float64
    minimum: Tensor  # (c,) float64
    maximum: Tensor  # (c,) float64
    histogram: Tensor  # (HISTOGRAM_BINS,) int64, of all channels

    @classmethod
    def of(cls, latents: Tensor) -> ChannelStatistics:
        """Statistics of one batch (B, c, …), at least one value per channel."""
        values = latents.detach().double().transpose(0, 1).flatten(1).cpu()
        mean = values.mean(1)
        squared_deviations = (values - mean[:, None]).square().sum(1)
        inside = values.clamp(-HISTOGRAM_RANGE, HISTOGRAM_RANGE).flatten()
        histogram = torch.histc(inside, HISTOGRAM_BINS, -HISTOGRAM_RANGE, HISTOGRAM_RANGE).long()
        return cls(values.shape[1], mean, squared_deviations, values.amin(1), values.amax(1), histogram)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ChannelStatistics:
        """The inverse of `to_json`, exactly."""
        numbers = {name: torch.tensor(values[name], dtype=torch.float64) for name in _PER_CHANNEL}
        return cls(count=values["count"], histogram=torch.tensor(values["histogram"]), **numbers)

    def to_json(self) -> dict[str, Any]:
        """Values that JSON holds without loss."""
        lists = {name: getattr(self, name).tolist() for name in _PER_CHANNEL}
        return {"count": self.count, **lists, "histogram": self.histogram.tolist()}

    def merged(self, other: ChannelStatistics) -> ChannelStatistics:
        """Statistics of both together."""
        count = self.count + other.count
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.count / count)
        between = difference.square() * (self.count * other.count / count)
        return ChannelStatistics(
            count,
            mean,
            self.squared_deviations + other.squared_deviations + between,
            torch.minimum(self.minimum, other.minimum),
            torch.maximum(self.maximum, other.maximum),
            self.histogram + other.histogram,
        )

    @property
    def std(self) -> Tensor:
        """Standard deviation per channel (c,), float64."""
        return (self.squared_deviations / self.count).sqrt()

    @property
    def overall_mean(self) -> float:
        """Mean over all channels."""
        return float(self.mean.mean())

    @property
    def overall_std(self) -> float:
        """Standard deviation over all channels, about their common mean."""
        return float((self.std.square() + (self.mean - self.mean.mean()).square()).mean().sqrt())

    def to_config(self) -> dict[str, float | list[float]]:
        """The config keys that hold them in diffusers' autoencoders; a dead channel gets the std MIN_STD."""
        return {
            "latents_mean": [round(value, 6) for value in self.mean.tolist()],
            "latents_std": [max(round(value, 6), MIN_STD) for value in self.std.tolist()],
            "shift_factor": round(self.overall_mean, 6),
            "scaling_factor": round(1 / max(self.overall_std, MIN_STD), 6),
        }


_PER_CHANNEL = ("mean", "squared_deviations", "minimum", "maximum")


def channel_statistics(batches: Iterable[Tensor]) -> ChannelStatistics:
    """Statistics of several batches (B, c, …); at least one."""
    return merge_statistics(map(ChannelStatistics.of, batches))


def merge_statistics(parts: Iterable[ChannelStatistics]) -> ChannelStatistics:
    """Statistics of all parts together; at least one."""
    return reduce(ChannelStatistics.merged, parts)
