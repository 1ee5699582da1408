"""What an encoding job did, and the lists of the samples that it skipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ul_tokenizer.files import write_whole
from ul_tokenizer.sources.base import SkippedSample

SKIPPED = "skipped.jsonl"


@dataclass
class EncodingSummary:
    """The result of an encoding job; `print` shows it in one line.

    Attributes:
        encoded: number of samples that were encoded; a mirrored view counts as one.
        found: number of samples that the data set had already.
        skipped: the samples that could not be encoded, with reasons.
        seconds: duration, without loading the model.
        output: folder of the latent data set.
    """

    encoded: int = 0
    found: int = 0
    skipped: list[SkippedSample] = field(default_factory=list)
    seconds: float = 0.0
    output: Path = Path()

    @property
    def total(self) -> int:
        """Number of samples that were encoded, found or skipped."""
        return self.encoded + self.found + len(self.skipped)

    @property
    def images_per_second(self) -> float:
        """Samples that were encoded per second."""
        return self.encoded / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        found = f", {self.found} were there already" if self.found else ""
        rate = f"{self.seconds:.1f} s, {self.images_per_second:.1f} images/s"
        return f"encoded {self.encoded} images in {rate}{found}, {len(self.skipped)} skipped: {self.output}"

    def facts(self) -> dict[str, Any]:
        """The figures as a dict, without the list of skipped samples."""
        figures = {"encoded": self.encoded, "found": self.found, "skipped": len(self.skipped)}
        return {"output": str(self.output), **figures, **self._rates()}

    def _rates(self) -> dict[str, float]:
        return {"seconds": self.seconds, "images_per_second": self.images_per_second}

    def check(self, max_skip_fraction: float) -> None:
        """Refuses a result with too many skipped samples.

        Raises:
            TooManySkippedError: more than `max_skip_fraction` of the samples were skipped, or all of them.
        """
        skipped = len(self.skipped)
        if skipped and skipped == self.total:
            message = f"source must hold images that can be encoded, got none among {self.total}."
            raise TooManySkippedError(message, self)
        if skipped > max_skip_fraction * self.total:
            limit = f"max_skip_fraction {max_skip_fraction:g}"
            raise TooManySkippedError(
                f"{skipped} of {self.total} samples were skipped, more than {limit} allows.", self
            )


class TooManySkippedError(ValueError):
    """An encoding job skipped more samples than allowed. All others are in the data set.

    Attributes:
        summary: what the job did.
    """

    def __init__(self, message: str, summary: EncodingSummary) -> None:
        super().__init__(message)
        self.summary = summary


def combined(parts: Sequence[EncodingSummary]) -> EncodingSummary:
    """The summary of several processes that worked at the same time."""
    return EncodingSummary(
        sum(part.encoded for part in parts),
        sum(part.found for part in parts),
        [skip for part in parts for skip in part.skipped],
        max(part.seconds for part in parts),
        parts[0].output,
    )


def write_skipped(output: Path, skipped: Sequence[SkippedSample], rank: int = 0) -> None:
    """Writes the list of the samples that a process skipped, as JSON lines."""
    lines = (json.dumps(skip._asdict(), ensure_ascii=False) + "\n" for skip in skipped)
    write_whole(output / f"skipped-r{rank:03d}.jsonl", "".join(lines))


def gather_skipped(output: Path, world_size: int) -> None:
    """Writes skipped.jsonl, which holds the lists of all processes that have finished.

    Lists that an earlier job with more processes left are removed: their samples have been dealt with again.
    """
    parts = sorted(output.glob("skipped-r*.jsonl"))
    ranks = {part: int(part.stem.removeprefix("skipped-r")) for part in parts}
    lists = [part.read_text(encoding="utf-8") for part in parts if ranks[part] < world_size]
    write_whole(output / SKIPPED, "".join(lists))
    for part in parts:
        if ranks[part] >= world_size:
            part.unlink(missing_ok=True)
