"""Ready latents as the draws of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from ul_tokenizer.training.draws.crops import NO_LABEL, index_of_draw


class LatentSource(Protocol):
    """A numbered collection of latents: `LatentDataset`, or one in memory."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """A sample: "latent", z_clean (c, h, w) fp32, and "label" where there are labels."""
        ...


class LatentBatch(TypedDict):
    """What `collate_latents` makes of a list of samples."""

    latents: Tensor  # (B, c, h, w), z_clean
    class_labels: Tensor  # (B,) int64
    skipped: list[str]  # always empty: what could not be read was left out of the data set


class LatentDraws:
    """Item n is draw n since the start of the training; each epoch goes once through all in an order of its own.

    Args:
        source: where the latents come from.
        seed: of the orders.
    """

    def __init__(self, source: LatentSource, seed: int) -> None:
        self.source, self.seed = source, seed

    def __len__(self) -> int:
        """Number of draws in an epoch."""
        return len(self.source)

    def __getitem__(self, n: int) -> dict[str, Any]:
        """Draw n, from anywhere and in any order."""
        return self.source[index_of_draw(n, len(self.source), self.seed)]


def collate_latents(samples: Sequence[dict[str, Any]]) -> LatentBatch:
    """Stacks samples into a batch."""
    labels = [sample.get("label") for sample in samples]
    return {
        "latents": torch.stack([sample["latent"] for sample in samples]).float(),
        "class_labels": torch.tensor([NO_LABEL if label is None else int(label) for label in labels]),
        "skipped": [],
    }


class LatentsInMemory:
    """Latents (N, c, h, w) and labels (N,), or None, as a `LatentSource`."""

    def __init__(self, latents: Tensor, labels: Tensor | None = None) -> None:
        self.latents, self.labels = latents, labels

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample."""
        sample: dict[str, Any] = {"latent": self.latents[index]}
        return sample if self.labels is None else {**sample, "label": int(self.labels[index])}
