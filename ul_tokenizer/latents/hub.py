"""Pushes latent data sets to the hub and pulls them from it; needs no torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from ul_tokenizer.files import check_new_folder, new_folder
from ul_tokenizer.hub.download import Access, Snapshot, fetch
from ul_tokenizer.hub.upload import Target, push
from ul_tokenizer.latents.index import LatentIndex
from ul_tokenizer.latents.integrity import verify
from ul_tokenizer.latents.location import described
from ul_tokenizer.latents.manifest import HEADER, is_shard, manifests, read_header
from ul_tokenizer.publish.card_merge import Card, card_reviser
from ul_tokenizer.publish.cards import CARD, latents_card

SKIPPED = "skipped.jsonl"


def push_latents(folder: str | Path, target: Target, license: str | None = None) -> str:
    """Pushes a data set in one commit, with a card.

    Args:
        folder: folder of the data set.
        target: the repository; its type is taken to be "dataset".
        license: the hub's identifier of the license for the card, for example "cc0-1.0"; None for no entry.

    Returns:
        the commit's sha.

    Raises:
        ValueError: the folder holds no data set, or one that is empty or damaged.
        HubError: the hub refuses the push or can't be reached.
    """
    folder = Path(folder)
    header = read_header(folder)
    if problems := verify(folder):
        raise ValueError(f"{folder} is not whole: {problems[0].file}: {problems[0].reason}; run `latents verify`.")
    index = LatentIndex(folder, header)
    if not len(index):
        raise ValueError(f"Latent data set {folder} is empty: it has no finished shard.")
    names = [HEADER, *(path.name for path in manifests(folder)), *(shard.file for shard in index.shards)]
    names += [SKIPPED] if (folder / SKIPPED).is_file() else []
    shapes = ", ".join(sorted("×".join(map(str, shape)) for shape in index.shapes))

    def make_card(repo_id: str) -> Card:
        own = folder / CARD
        if own.is_file():
            return Card.parsed(own.read_text(encoding="utf-8"))
        return latents_card(header, repo_id, len(index), shapes, license)

    files = {name: folder / name for name in names}
    return push(target._replace(repo_type="dataset"), files, {CARD: card_reviser(make_card)})


def pull_latents(
    repo_id: str, output: str | Path, revision: str | None = None, access: Access | None = None
) -> Snapshot:
    """Downloads a data set of the hub into a new folder, completely or not at all.

    Returns:
        the folder, and the commit that it holds.

    Raises:
        ValueError: the folder exists, or the repository holds no data set or a damaged one.
        HubError: the repository can't be read.
        OSError: the disk is full or can't be written.
    """
    output = Path(output)
    check_new_folder(output)  # before the download
    snapshot = fetch(repo_id, _all_files, revision, "dataset", access)
    with new_folder(output) as folder:
        shutil.copytree(snapshot.folder, folder, dirs_exist_ok=True)
        if problems := verify(folder):
            raise ValueError(f"{repo_id} is not whole: {problems[0].file}: {problems[0].reason}.")
    return Snapshot(output, snapshot.commit)


def _all_files(files: Sequence[str]) -> list[str]:
    return [*described(files), *(name for name in files if is_shard(name) or name in (SKIPPED, CARD))]
