"""Draws of a training run from stored latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor

from ul_tokenizer.sources.base import caption_in
from ul_tokenizer.training.draws.buckets import BucketedOrder
from ul_tokenizer.training.draws.crops import NO_LABEL, index_of_draw


class LatentSource(Protocol):
    """A numbered collection of latents, such as a `LatentDataset` or a part of it."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """A sample: "latent", z_clean (c, [t,] h, w), and "label" and "caption" if it has them."""
        ...


class LatentBatch(TypedDict):
    """A batch from `collate_latents`."""

    latents: Tensor  # (B, c, [t,] h, w) fp32, z_clean
    class_labels: Tensor  # (B,) int64
    captions: list[str | None]
    skipped: list[str]  # always empty, because stored latents can always be read


class LatentDraws:
    """Item n is draw n since the start of the training; each epoch takes every sample once, in a new order.

    Args:
        source: the latents.
        seed: seed of the orders.
        order: an order for latents of several shapes, in which all draws of a step have one shape.
    """

    def __init__(self, source: LatentSource, seed: int, order: BucketedOrder | None = None) -> None:
        self.source, self.seed, self.order = source, seed, order

    def __len__(self) -> int:
        """Number of draws in an epoch."""
        return len(self.source if self.order is None else self.order)

    def __getitem__(self, n: int) -> dict[str, Any]:
        """Draw n; any number in any order is possible."""
        return self.source[index_of_draw(n, len(self.source), self.seed) if self.order is None else self.order.index(n)]


def collate_latents(samples: Sequence[dict[str, Any]]) -> LatentBatch:
    """Stacks samples of one shape into a batch."""
    labels = [sample.get("label") for sample in samples]
    return {
        "latents": torch.stack([sample["latent"] for sample in samples]).float(),
        "class_labels": torch.tensor([NO_LABEL if label is None else int(label) for label in labels]),
        "captions": [caption_in(sample) for sample in samples],
        "skipped": [],
    }
