"""Draws of a training run from stored latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from ul_tokenizer.training.draws.crops import NO_LABEL, index_of_draw


class LatentSource(Protocol):
    """A numbered collection of latents: `LatentDataset` or `LatentsInMemory`."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """A sample: "latent", z_clean (c, [t,] h, w), and "label" if there are labels."""
        ...


class LatentBatch(TypedDict):
    """A batch from `collate_latents`."""

    latents: Tensor  # (B, c, [t,] h, w) fp32, z_clean
    class_labels: Tensor  # (B,) int64
    skipped: list[str]  # always empty, because stored latents can always be read


class LatentDraws:
    """Item n is draw n since the start of the training; each epoch takes every sample once, in a new order.

    Args:
        source: the latents.
        seed: seed of the orders.
    """

    def __init__(self, source: LatentSource, seed: int) -> None:
        self.source, self.seed = source, seed

    def __len__(self) -> int:
        """Number of draws in an epoch."""
        return len(self.source)

    def __getitem__(self, n: int) -> dict[str, Any]:
        """Draw n; any number in any order is possible."""
        return self.source[index_of_draw(n, len(self.source), self.seed)]


def collate_latents(samples: Sequence[dict[str, Any]]) -> LatentBatch:
    """Stacks samples of one shape into a batch."""
    labels = [sample.get("label") for sample in samples]
    return {
        "latents": torch.stack([sample["latent"] for sample in samples]).float(),
        "class_labels": torch.tensor([NO_LABEL if label is None else int(label) for label in labels]),
        "skipped": [],
    }


class LatentsInMemory:
    """Latents in memory as a `LatentSource`.

    Args:
        latents: (N, c, h, w), z_clean.
        labels: (N,), or None without labels.
    """

    def __init__(self, latents: Tensor, labels: Tensor | None = None) -> None:
        self.latents, self.labels = latents, labels

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A sample, as `LatentSource` describes."""
        sample: dict[str, Any] = {"latent": self.latents[index]}
        return sample if self.labels is None else {**sample, "label": int(self.labels[index])}
