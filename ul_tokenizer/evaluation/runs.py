"""What the evaluations share: the names of results, folders for parts, and the features of all parts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ul_tokenizer.evaluation.nets.feature_nets import FeatureNet
from ul_tokenizer.evaluation.parts import FeatureFile, Parts, write_features
from ul_tokenizer.processes import Processes


def label_of_subject(facts: Mapping[str, Any]) -> str:
    """What a subject is called where its steps matter, such as "ul-photo-f8, 4 steps"."""
    steps = facts.get("num_inference_steps")
    return str(facts["name"]) if steps is None else f"{facts['name']}, {steps} step{'s' if steps > 1 else ''}"


def stem_of(facts: Mapping[str, Any]) -> str:
    """The first part of a result's file name."""
    text = label_of_subject(facts).rstrip("/").rsplit("/", 1)[-1]
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text).replace("--", "-")


@contextmanager
def parts_folder(path: Path | None, key: str, processes: Processes) -> Iterator[Path]:
    """A folder for the parts of a result, removed at the end: beside the result, where a killed job is continued."""
    if path is None:
        (base, *_) = processes.gather(tempfile.mkdtemp() if processes.is_main else "")
        folder = Path(base)
    else:
        folder = path.parent / ".parts" / key[:16]
    try:
        yield folder
    except BaseException:
        if path is None:  # nobody can continue it
            shutil.rmtree(folder, ignore_errors=True)
        raise
    processes.wait()
    if processes.is_main:
        shutil.rmtree(folder, ignore_errors=True)
        if path is not None and not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def features_column(net: FeatureNet) -> str:
    """The column of a part that holds a network's features."""
    return f"features:{net.name}"


@contextmanager
def merged_features(parts: Parts, net: FeatureNet, count: int) -> Iterator[FeatureFile]:
    """The features of all parts in one file, for as long as it is needed."""
    with tempfile.TemporaryDirectory(dir=parts.paths[0].parent) as folder:
        path = Path(folder, "features.safetensors")
        write_features(path, parts.blocks(features_column(net)), count, net.dim, {})
        yield FeatureFile(path)
