"""Measures of clips: features through a network of images, and flicker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ul_tokenizer.evaluation.nets.feature_nets import FeatureNet


@dataclass(frozen=True)
class ClipNet:
    """A network of images that describes clips.

    The features of a clip are the mean of its frames' features, and the mean absolute change of the features from
    frame to frame. So both appearance and motion count. It is no FVD, whose network sees the frames together.

    Args:
        net: a network of images with D features.
    """

    net: FeatureNet

    @property
    def name(self) -> str:
        """What the network is called."""
        return f"{self.net.name}-clips"

    @property
    def dim(self) -> int:
        """Number of features, 2 D."""
        return 2 * self.net.dim

    @property
    def metric(self) -> str:
        """What a Fréchet distance on these features is called."""
        return f"{self.net.metric} over clips"

    def facts(self) -> dict[str, Any]:
        """Everything on which the features depend."""
        return {**self.net.facts(), "clips": "mean and mean absolute change of the frames' features"}

    def __call__(self, clips: Tensor) -> Tensor:
        """(B, 3, T, H, W), uint8 → (B, 2 D), fp32, on the CPU."""
        frames = clips.transpose(1, 2)
        each = self.net(frames.flatten(0, 1)).unflatten(0, tuple(frames.shape[:2]))
        change = each.diff(dim=1).abs().mean(1) if each.shape[1] > 1 else torch.zeros_like(each[:, 0])
        return torch.cat([each.mean(1), change], dim=1)


def changes(source: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    """Flicker and the source's own change of clips (B, 3, T, H, W), uint8; (B,) each, float64, parts of the range.

    Flicker is the mean absolute difference between the changes from frame to frame of the two.
    """
    before, after = (clip.double().diff(dim=2) / 255 for clip in (source, reconstruction))
    return (before - after).abs().flatten(1).mean(1), before.abs().flatten(1).mean(1)
