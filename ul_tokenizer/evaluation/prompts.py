"""Captions of a data set that are the prompts of generated images, with their classes where the pipeline takes both."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ul_tokenizer.randomness import EvaluationStream, numpy_generator
from ul_tokenizer.sources.base import CAPTION, Source, caption_in, label_in


@dataclass(frozen=True)
class Prompts:
    """Prompts that take turns: image k has prompt k mod N.

    Args:
        texts: the prompts, N ≥ 1.
        labels: the class that belongs to each; None for no classes.
        data: what the data set is called in results.
    """

    texts: Sequence[str]
    labels: Sequence[int] | None = None
    data: str = ""
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if not self.texts:
            raise ValueError("prompts must hold at least one text, got none.")
        labels = [None] * len(self.texts) if self.labels is None else self.labels
        lines = "".join(f"{label}\t{text!r}\n" for text, label in zip(self.texts, labels, strict=True))
        object.__setattr__(self, "digest", hashlib.sha256(lines.encode()).hexdigest())

    @classmethod
    def of(cls, source: Source, data: str, column: str = CAPTION, num_classes: int | None = None) -> Prompts:
        """The captions of a data set in a random order, which is always the same; neighbours are often alike.

        Samples without a caption are left out. If both the pipeline and the data have classes, those without a class
        are left out as well.

        Args:
            source: the data set.
            data: what it is called in results.
            column: the samples' column with the captions.
            num_classes: classes of the pipeline; None if it has none.

        Raises:
            ValueError: no sample has a caption, or a class is none of the pipeline's.
        """
        has_classes = num_classes is not None and bool(source.class_names)
        found: list[tuple[str, int | None]] = []
        for index in numpy_generator(0, EvaluationStream.CHOICE).permutation(len(source)).tolist():
            columns = source.columns(index)
            text = caption_in(columns, column)
            label = label_in(columns, source, index) if has_classes else None
            if label is not None and num_classes is not None and label >= num_classes:
                raise ValueError(
                    f"prompts must have the pipeline's {num_classes} classes, got {label} for {source.id(index)}."
                )
            if text and not text.isspace() and not (has_classes and label is None):
                found.append((text, label))
        if not found:
            beside = " and a class" if has_classes else ""
            raise ValueError(f"prompts must hold samples with a {column}{beside}, got none in {data}.")
        labels = [label for _, label in found if label is not None]
        return cls([text for text, _ in found], labels if has_classes else None, data)

    def of_images(self, numbers: Sequence[int]) -> list[str]:
        """The prompts of images."""
        return [self.texts[number % len(self.texts)] for number in numbers]

    def labels_of_images(self, numbers: Sequence[int]) -> list[int] | None:
        """The classes of images; None without classes."""
        return None if self.labels is None else [self.labels[number % len(self.texts)] for number in numbers]

    def facts(self) -> dict[str, Any]:
        """What a result file says of them."""
        return {
            "data": self.data,
            "sha256": self.digest,
            "num": len(self.texts),
            "with_classes": self.labels is not None,
        }
