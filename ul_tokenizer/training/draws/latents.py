"""Latents that are already encoded, as the draws of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from ul_tokenizer.training.draws.crops import NO_LABEL, index_of_draw


class LatentSource(Protocol):
    """A numbered collection of latents, such as `LatentDataset` or `LatentsInMemory`."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """A sample: "latent", z_clean (c, h, w) fp32, and "label" if there are labels."""
        ...


class LatentBatch(TypedDict):
    """A batch of samples, made by `collate_latents`."""

    latents: Tensor  # (B, c, h, w), z_clean
    class_labels: Tensor  # (B,) int64
    skipped: list[str]  # always empty, since unreadable images are not in a latent data set


class LatentDraws:
    """Item n is draw n since the start of the training; every epoch draws each sample once, in a new order.

    Args:
        source: The latents.
        seed: Seed of the order.
    """

    def __init__(self, source: LatentSource, seed: int) -> None:
        self.source, self.seed = source, seed

    def __len__(self) -> int:
        """Number of draws in an epoch."""
        return len(self.source)

    def __getitem__(self, n: int) -> dict[str, Any]:
        """The sample of draw n; draws may be read in any order."""
        return self.source[index_of_draw(n, len(self.source), self.seed)]


def collate_latents(samples: Sequence[dict[str, Any]]) -> LatentBatch:
    """Stacks samples of the same shape into a batch."""
    labels = [sample.get("label") for sample in samples]
    return {
        "latents": torch.stack([sample["latent"] for sample in samples]).float(),
        "class_labels": torch.tensor([NO_LABEL if label is None else int(label) for label in labels]),
        "skipped": [],
    }


class LatentsInMemory:
    """A `LatentSource` of latents (N, c, h, w) and labels (N,), or None for no labels."""

    def __init__(self, latents: Tensor, labels: Tensor | None = None) -> None:
        self.latents, self.labels = latents, labels

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample."""
        sample: dict[str, Any] = {"latent": self.latents[index]}
        return sample if self.labels is None else {**sample, "label": int(self.labels[index])}
