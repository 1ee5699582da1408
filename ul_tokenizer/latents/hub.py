"""Pushing and pulling of latent data sets, which are data set repositories on the hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ul_tokenizer.hub.download import Access, Snapshot, fetch
from ul_tokenizer.hub.upload import Target, push
from ul_tokenizer.latents.integrity import verify
from ul_tokenizer.latents.manifest import HEADER, is_shard, manifests, read_header, read_shards
from ul_tokenizer.latents.shards import described
from ul_tokenizer.publish.card_merge import Card, card_reviser
from ul_tokenizer.publish.cards import CARD, latents_card

SKIPPED = "skipped.jsonl"


def push_latents(folder: str | Path, target: Target, license: str | None = None) -> str:
    """Pushes a data set with a card in one commit, and returns the hash of the commit.

    Args:
        folder: of the data set.
        target: the destination; its `repo_type` is ignored.
        license: for the card, the hub's identifier, e.g. "cc0-1.0"; None for no entry.

    Raises:
        ValueError: the folder holds no data set, or an empty or damaged one.
        HubError: the hub refused the push or can't be reached.
    """
    folder = Path(folder)
    header = read_header(folder)
    shards = [shard for path in manifests(folder) for shard in read_shards(path)]
    if not shards:
        raise ValueError(f"Latent data set {folder} is empty: no shard of it is finished.")
    if problems := verify(folder):
        raise ValueError(f"{folder} is not whole: {problems[0].file}: {problems[0].reason}; run `latents verify`.")
    names = [HEADER, *(path.name for path in manifests(folder)), *(shard.file for shard in shards)]
    names += [SKIPPED] if (folder / SKIPPED).is_file() else []
    shapes = ", ".join(sorted({"×".join(map(str, shard.shape[1:])) for shard in shards}))
    samples = sum(len(shard.ids) for shard in shards)

    def make_card(repo_id: str) -> Card:
        own = folder / CARD
        if own.is_file():
            return Card.parsed(own.read_text(encoding="utf-8"))
        return latents_card(header, repo_id, samples, shapes, license)

    files = {name: folder / name for name in names}
    return push(target._replace(repo_type="dataset"), files, {CARD: card_reviser(make_card)})


def pull_latents(
    repo_id: str, output: str | Path, revision: str | None = None, access: Access | None = None
) -> Snapshot:
    """Downloads a data set into a new folder, completely or not at all.

    Args:
        repo_id: owner/name.
        output: the new folder.
        revision: branch, tag or commit; None for `main`.
        access: token, cache and whether to send requests.

    Raises:
        ValueError: the folder exists, or the repository holds no data set or a damaged one.
        HubError: the request failed.
        OSError: the disk is full or read-only.
    """
    output = Path(output)
    if output.exists():
        raise ValueError(f"output must be a new folder, got {output}, which exists.")
    snapshot = fetch(repo_id, _all_files, revision, "dataset", access)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        shutil.copytree(snapshot.folder, Path(temporary, "latents"))
        if problems := verify(Path(temporary, "latents")):
            raise ValueError(f"{repo_id} is not whole: {problems[0].file}: {problems[0].reason}.")
        Path(temporary, "latents").rename(output)
    return Snapshot(output, snapshot.commit)


def _all_files(files: Sequence[str]) -> list[str]:
    return [*described(files), *(name for name in files if is_shard(name) or name in (SKIPPED, CARD))]
