"""Bundled models, as package data: NAME/ is a repository, `manifest.json` holds the sha256 of its files."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from ul_tokenizer.files import sha256_of, write_json

ROOT = Path(__file__).resolve().parent
MANIFEST = "manifest.json"
# What decides how a model computes; its card and its training curve may be edited.
_LISTED = ("*.safetensors", "*.safetensors.index.json", "config.json")


def bundled_names() -> list[str]:
    """Names that `from_pretrained` and `--model` take without a download, sorted."""
    return sorted(_read_manifest(ROOT))


def bundled_path(name: str) -> Path | None:
    """The folder of a bundled model, its files checked against the manifest once per process.

    Returns:
        None if no bundled model has this name.

    Raises:
        ValueError: a file is missing or not the one that was bundled.
    """
    if name not in _read_manifest(ROOT):
        return None
    _verify(ROOT, name)
    return ROOT / name


def write_manifest(folder: Path) -> dict[str, str]:
    """Adds a bundled model, under the name of its folder, to the manifest beside it.

    Returns:
        relative file → sha256 of what was entered.

    Raises:
        ValueError: the folder holds no weights.
    """
    files = sorted({path for pattern in _LISTED for path in folder.rglob(pattern)})
    if not any(path.suffix == ".safetensors" for path in files):
        raise ValueError(f"folder must hold safetensors files, got {folder}.")
    entry = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    manifest = {**_read_manifest(folder.parent), folder.name: entry}
    write_json(folder.parent / MANIFEST, manifest, sort_keys=True)
    _verify.cache_clear()
    return entry


def _read_manifest(root: Path) -> dict[str, dict[str, str]]:
    path = root / MANIFEST
    if not path.is_file():
        return {}
    manifest: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


@functools.cache
def _verify(root: Path, name: str) -> None:
    for file, expected in _read_manifest(root)[name].items():
        path = root / name / file
        if not path.is_file():
            raise ValueError(f"Bundled file {path} is missing; install ul_tokenizer again.")
        if sha256_of(path) != expected:
            raise ValueError(
                f"Bundled file {path} is damaged: its sha256 differs from the manifest; install ul_tokenizer again."
            )
