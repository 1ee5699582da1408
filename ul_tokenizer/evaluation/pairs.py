"""Reconstructions that somebody else made, as a subject: a folder whose files pair with the originals."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from ul_tokenizer.evaluation.samples import EvaluationSamples
from ul_tokenizer.evaluation.subjects import Reconstruction

PREFIX = "folder:"


class FolderSubject:
    """The images of a data set, as reconstructions of those of another one.

    Both are cropped in the same way. They pair by their order, and their names must be the same apart from suffixes.

    Args:
        samples: the reconstructions.
        originals: what they are reconstructions of.

    Raises:
        ValueError: another number of images, or other names.
    """

    kind_of_bits = None  # nobody knows what they were made of
    device = torch.device("cpu")

    def __init__(self, samples: EvaluationSamples, originals: EvaluationSamples) -> None:
        counts = len(samples.source), len(originals.source)
        if counts[0] != counts[1]:
            raise ValueError(
                f"{samples.name} must hold as many images as {originals.name}, {counts[1]}, got {counts[0]}."
            )
        pairs = (tuple(_stem(part.source.id(n)) for part in (samples, originals)) for n in range(counts[0]))
        if odd := next((pair for pair in pairs if pair[0] != pair[1]), None):
            raise ValueError(
                f"{samples.name} must hold images of the originals' names, got {odd[0]} in place of {odd[1]}."
            )
        self._samples = samples

    @property
    def name(self) -> str:
        """What it is called in results."""
        return PREFIX + self._samples.name

    def facts(self) -> dict[str, Any]:
        """Everything on which the reconstructions depend."""
        listing = self._samples.listing_sha256
        return {"name": self.name, "type": "folder", "source_sha256": listing, "num_inference_steps": None}

    def reconstruct(self, pixels: Tensor, numbers: Sequence[int]) -> Reconstruction:
        """Reads the partners of a batch (B, 3, H, W).

        Raises:
            ValueError: a partner has another size.
            UnreadableImageError: a partner can't be read.
        """
        start = time.perf_counter()
        partners = [self._samples.read(number) for number in numbers]
        for partner in partners:
            if partner.pixels.shape != pixels.shape[1:]:
                got, wanted = ("×".join(map(str, shape[1:])) for shape in (partner.pixels.shape, pixels.shape[1:]))
                raise ValueError(
                    f"{self.name} must hold images of the originals' sizes, got {got} for {wanted} in {partner.id}."
                )
        again = torch.stack([partner.pixels for partner in partners])
        nothing = torch.zeros(len(again), dtype=torch.float64)
        return Reconstruction(
            again, torch.ones(len(again), dtype=torch.bool), nothing, 0.0, time.perf_counter() - start
        )

    def flops(self, shape: tuple[int, ...]) -> None:
        """None: what was done is not known."""


def _stem(name: str) -> str:
    return str(PurePath(name).with_suffix(""))
