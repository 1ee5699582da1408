"""Features of real images: computed once, stored with what they depend on, and refused where anything differs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ul_tokenizer.evaluation.nets.feature_nets import FeatureNet
from ul_tokenizer.evaluation.parts import (
    NUMBER,
    Array,
    Batch,
    FeatureFile,
    PartedJob,
    PartNotes,
    Parts,
    write_features,
)
from ul_tokenizer.evaluation.samples import EvaluationSamples
from ul_tokenizer.processes import Processes
from ul_tokenizer.randomness import EvaluationStream, numpy_generator

CACHE = Path("~/.cache/ul_tokenizer/features")
FORMAT, VERSION = "ul_tokenizer.features", 1
FEATURES, DIGEST = "features", "digest"
_UNNAMED = ("data",)  # what the protocol says of a data set without changing its pixels


@dataclass(frozen=True)
class ReferenceFeatures:
    """Features of real images.

    Attributes:
        features: (N, D), in the order of the samples, without those that can't be read.
        facts: what they depend on, as the file's header states it.
    """

    features: FeatureFile
    facts: dict[str, Any]

    @property
    def pixels_sha256(self) -> str:
        """Hash of the pixels of all samples."""
        return str(self.facts["pixels_sha256"])

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """Samples that can't be read, each with its "id" and the "reason"."""
        return [{name: entry[name] for name in ("id", "reason")} for entry in self.facts.get("skipped", ())]

    @property
    def numbers(self) -> Array:
        """(N,), number of the sample of each row."""
        skipped = [entry["number"] for entry in self.facts.get("skipped", ())]
        return np.delete(np.arange(len(self.features) + len(skipped)), skipped)

    def halves(self, seed: int = 0) -> tuple[Rows, Rows]:
        """Two random halves, whose distance is the floor of all distances to these features."""
        order = numpy_generator(seed, EvaluationStream.SPLIT).permutation(len(self.features))
        half = len(order) // 2
        return Rows(self.features, np.sort(order[:half])), Rows(self.features, np.sort(order[half : 2 * half]))


class Rows:
    """Some rows of features, read when they are needed; behaves like the array (N, D) that it stands for."""

    ndim = 2

    def __init__(self, features: FeatureFile, numbers: Array) -> None:
        self._features, self._numbers = features, numbers
        self.shape = len(numbers), features.shape[1]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._numbers)

    def __getitem__(self, rows: slice | Array) -> Array:
        """The rows of a slice, or those with the given numbers."""
        return self._features[self._numbers[rows]]


def key_of(*facts: Any) -> str:
    """Hash of JSON values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def pixels_sha256(digests: Array) -> str:
    """Hash of all samples' pixels, out of the samples' own hashes (N, 16) in order."""
    return hashlib.sha256(np.ascontiguousarray(digests).tobytes()).hexdigest()


def digests_of(batch: Batch) -> Array:
    """Hash of the pixels of each sample, (B, 16) uint8."""
    digests = []
    for sample in batch.samples:
        digest = hashlib.blake2b(str(tuple(sample.pixels.shape)).encode(), digest_size=16)
        digest.update(sample.pixels.contiguous().numpy().data)
        digests.append(np.frombuffer(digest.digest(), np.uint8))
    return np.stack(digests)


def load_reference_features(
    samples: EvaluationSamples,
    net: FeatureNet,
    processes: Processes,
    *,
    path: Path | None = None,
    batch_size: int = 32,
) -> ReferenceFeatures:
    """The features of all samples; read from a file if they were computed before.

    Args:
        samples: the real images or clips.
        net: the network.
        processes: those that share the work; all of them get the result.
        path: the file; None for one in `CACHE` that is named after what the features depend on.
        batch_size: images per batch.

    Raises:
        ValueError: the file at `path` holds the features of other data, of another protocol or of another network; or
            no image can be read.
        OSError: the disk is full or can't be written.
    """
    facts = {"format": FORMAT, "version": VERSION, "protocol": _protocol(samples), "net": dict(net.facts())}
    key = key_of(facts)
    target = CACHE.expanduser() / f"{key[:16]}.safetensors" if path is None else path
    found = _found(target, facts, is_cache=path is None)
    if all(processes.gather(found is not None)) and found is not None:
        return found
    folder = target.with_name(f"{target.name}.parts")

    def measure(batch: Batch, notes: PartNotes) -> Mapping[str, Any]:
        pixels = torch.stack([sample.pixels for sample in batch.samples])
        return {FEATURES: net(pixels).numpy(), DIGEST: digests_of(batch)}

    parts = PartedJob(samples, measure, folder, key, batch_size, processes, f"{net.name} of {samples.name}").run()
    with processes.together():
        if processes.is_main:
            _merge(parts, target, net.dim, facts, len(samples))
            shutil.rmtree(folder)
    merged = _found(target, facts, is_cache=False)
    if merged is None:
        raise OSError(f"the features can't be read back from {target}.")
    return merged


def _protocol(samples: EvaluationSamples) -> dict[str, Any]:
    return {name: value for name, value in samples.facts().items() if name not in _UNNAMED}


def _merge(parts: Parts, target: Path, dim: int, facts: Mapping[str, Any], count: int) -> None:
    columns, notes = parts.columns(FEATURES), parts.notes()
    if not columns:
        raise ValueError(f"data must hold images that can be read, got none among {count}.")
    digests, unread = columns[DIGEST], np.setdiff1d(np.arange(count), columns[NUMBER]).tolist()
    skipped = [
        {"number": number, "id": name, "reason": reason}
        for number, (name, reason) in zip(unread, notes.skipped, strict=True)
    ]
    known = {**facts, "pixels_sha256": pixels_sha256(digests), "skipped": skipped}
    write_features(target, parts.blocks(FEATURES), len(digests), dim, {"facts": json.dumps(known, ensure_ascii=False)})


def _found(path: Path, expected: Mapping[str, Any], is_cache: bool) -> ReferenceFeatures | None:
    """The features in a file; None if there is none, or in the cache a damaged one."""
    if not path.exists():
        return None
    try:
        file = FeatureFile(path)
        facts = json.loads(file.metadata.get("facts", "{}"))
    except (ValueError, OSError):
        if is_cache:
            return None
        raise
    for place, here, wanted in _differences(facts, expected):
        raise ValueError(f"reference {path} holds features of another {place}: {here!r}, not {wanted!r}.")
    return ReferenceFeatures(file, facts)


def _differences(facts: Mapping[str, Any], expected: Mapping[str, Any], place: str = "") -> Iterator[Sequence[Any]]:
    for name, wanted in sorted(expected.items(), key=lambda item: item[0].endswith("sha256")):  # hashes say least
        here = facts.get(name)
        if isinstance(wanted, Mapping) and isinstance(here, Mapping):
            yield from _differences(here, wanted, f"{name}.")
        elif here != json.loads(json.dumps(wanted)):
            yield f"{place}{name}", here, wanted
