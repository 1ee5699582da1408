"""Exact statistics of latents per channel, in float64, that merge across batches and processes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

MIN_STD = 1e-6  # so that a dead channel normalises to zeros, not to NaN


@dataclass
class ChannelStatistics:
    """Count, mean and sum of squared deviations per channel, merged in any order (Chan et al., 1983)."""

    count: int
    mean: Tensor  # (c,) float64
    squared_deviations: Tensor  # (c,) float64

    @classmethod
    def of(cls, latents: Tensor) -> ChannelStatistics:
        """Statistics of one batch (B, c, …)."""
        values = latents.detach().double().transpose(0, 1).flatten(1).cpu()
        mean = values.mean(1)
        return cls(values.shape[1], mean, (values - mean[:, None]).square().sum(1))

    def merged(self, other: ChannelStatistics) -> ChannelStatistics:
        """Statistics of both together."""
        count = self.count + other.count
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.count / count)
        between = difference.square() * (self.count * other.count / count)
        return ChannelStatistics(count, mean, self.squared_deviations + other.squared_deviations + between)

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


def channel_statistics(batches: list[Tensor]) -> ChannelStatistics:
    """Statistics of several batches (B, c, …)."""
    statistics = ChannelStatistics.of(batches[0])
    for batch in batches[1:]:
        statistics = statistics.merged(ChannelStatistics.of(batch))
    return statistics
