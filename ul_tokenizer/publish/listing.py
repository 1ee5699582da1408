"""Models on this machine: the bundled ones, and models of our classes in the hub's cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import huggingface_hub
from huggingface_hub import constants

from ul_tokenizer.pretrained import ROOT, bundled_names
from ul_tokenizer.publish.card_merge import Card
from ul_tokenizer.publish.cards import CARD
from ul_tokenizer.publish.records import class_name
from ul_tokenizer.registration import OUR_CLASSES


class ListedModel(NamedTuple):
    """A model that loads without a network."""

    name: str
    kind: str  # its class
    origin: Literal["bundled", "cached"]
    bytes: int
    revision: str | None  # the commit; None for bundled models
    license: str | None
    folder: Path


def list_models(cache_dir: str | Path | None = None) -> list[ListedModel]:
    """Lists the bundled models, then every cached commit of models on the hub.

    Args:
        cache_dir: folder of the hub's cache; None for its default.
    """
    return [*_bundled(), *_cached(cache_dir)]


def _bundled() -> Iterator[ListedModel]:
    for name in bundled_names():
        folder = ROOT / name
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        yield ListedModel(name, class_name(folder), "bundled", size, None, _license(folder), folder)


def _cached(cache_dir: str | Path | None) -> Iterator[ListedModel]:
    try:
        cache = huggingface_hub.scan_cache_dir(cache_dir or constants.HF_HUB_CACHE)
    except huggingface_hub.errors.CacheNotFound:
        return
    for repo in sorted(cache.repos, key=lambda repo: repo.repo_id):
        for snapshot in sorted(repo.revisions, key=lambda snapshot: snapshot.last_modified, reverse=True):
            kind = class_name(snapshot.snapshot_path)
            if repo.repo_type == "model" and kind in OUR_CLASSES:
                folder, size = snapshot.snapshot_path, snapshot.size_on_disk
                yield ListedModel(repo.repo_id, kind, "cached", size, snapshot.commit_hash, _license(folder), folder)


def _license(folder: Path) -> str | None:
    path = folder / CARD
    if not path.is_file():
        return None
    license = Card.parsed(path.read_text(encoding="utf-8", errors="replace")).metadata.get("license")
    return None if license is None else str(license)
