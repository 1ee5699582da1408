"""Which files of a model's folder belong in a repository."""

from __future__ import annotations

import re
from pathlib import Path

_SUFFIXES = frozenset((".md", ".json", ".jsonl", ".yaml", ".png", ".txt", ".model", ".safetensors", ".py", ".npz"))
_OF_A_TRAINING = re.compile(r"checkpoint-\d+|tmp-.*|samples|metrics\.jsonl|skipped-r\d+\.jsonl")


def repository_files(folder: Path) -> dict[str, Path]:
    """The files of a model, without the checkpoints, samples and logs of its training.

    Args:
        folder: of the model.

    Returns:
        path below the folder, with slashes → file.

    Raises:
        ValueError: the folder holds neither weights nor a config.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    found = {name: path for name, path in paths.items() if belongs_in_repository(name)}
    if not any(name.endswith((".safetensors", "config.json")) for name in found):
        raise ValueError(f"Folder {folder} holds nothing to push: there are no weights and no config in it.")
    return found


def belongs_in_repository(name: str) -> bool:
    """Whether a model's repository has a file of this path."""
    parts = name.split("/")
    is_left_out = any(part.startswith((".", "__")) or _OF_A_TRAINING.fullmatch(part) for part in parts)
    return Path(name).suffix in _SUFFIXES and not is_left_out
