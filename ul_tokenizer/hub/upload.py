"""Folders to repositories of the hub, one commit a push."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from ul_tokenizer.hub.download import RepoType
from ul_tokenizer.hub.errors import explained
from ul_tokenizer.hub.weights import variant_of

CARD = "README.md"
MakeCard = Callable[
    [str, str | None], str
]  # repository's full id, text of the card that is there → text of the new one
_SUFFIXES = frozenset((".md", ".json", ".jsonl", ".yaml", ".png", ".txt", ".model", ".safetensors", ".py", ".npz"))
_OF_A_RUN = re.compile(r"checkpoint-\d+|tmp-.*|samples|metrics\.jsonl|skipped-r\d+\.jsonl")


class Target(NamedTuple):
    """Where a push goes, and as what.

    Attributes:
        repo_id: owner/name, or a name of one's own.
        repo_type: "model" or "dataset".
        revision: a branch, made if need be; None for `main`.
        subfolder: in the repository.
        private: for a repository that this push makes; None is the owner's default.
        create_pr: make a pull request of it.
        commit_message: None for "Upload" and what.
        token: None for the stored one.
    """

    repo_id: str
    repo_type: RepoType = "model"
    revision: str | None = None
    subfolder: str | None = None
    private: bool | None = None
    create_pr: bool = False
    commit_message: str | None = None
    token: str | bool | None = None

    def __repr__(self) -> str:
        """Without the token."""
        return f"Target({self.repo_id!r}, {self.repo_type!r}, revision={self.revision!r}, subfolder={self.subfolder!r})"


def push(target: Target, files: Mapping[str, Path | bytes], make_card: MakeCard | None = None) -> str:
    """Makes the repository if need be, and one commit with the files.

    Weights that a former push left beside these under other names (other shards, the same variant) go in the same
    commit. A card that is there keeps what people wrote in it.

    Args:
        target: where.
        files: path below the subfolder → file or bytes.
        make_card: None pushes no card.

    Returns:
        the commit's sha; where nothing changed, that of the last one.

    Raises:
        HubError: no access, no network, or what else the hub says.
        OSError: a file that can't be read.
    """
    repo_id = make_repository(target)
    api = huggingface_hub.HfApi(token=target.token)
    with explained(target.repo_id, target.revision):
        if target.revision is not None:
            api.create_branch(repo_id, branch=target.revision, repo_type=target.repo_type, exist_ok=True)
        info = api.repo_info(repo_id, revision=target.revision, repo_type=target.repo_type)
        known = {file.rfilename for file in getattr(info, "siblings", None) or []}
        prefix = f"{target.subfolder.strip('/')}/" if target.subfolder else ""
        placed: dict[str, Path | bytes] = {f"{prefix}{name}": content for name, content in files.items()}
        if make_card is not None:
            placed[CARD] = make_card(repo_id, _existing_card(api, target, repo_id, str(info.sha), known)).encode()
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, content) for name, content in sorted(placed.items())
        ]
        operations += [CommitOperationDelete(name) for name in sorted(stale_weights(known, placed))]
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=target.commit_message or f"Upload {prefix.rstrip('/') or repo_id.rpartition('/')[2]}",
            revision=target.revision,
            repo_type=target.repo_type,
            create_pr=target.create_pr,
        )
    return str(commit.oid)


def make_repository(target: Target) -> str:
    """Makes the repository if there is none; returns its full id.

    Raises:
        HubError: no access, no network.
    """
    api = huggingface_hub.HfApi(token=target.token)
    with explained(target.repo_id):
        made = api.create_repo(target.repo_id, private=target.private, repo_type=target.repo_type, exist_ok=True)
    return str(made.repo_id)


def _existing_card(
    api: huggingface_hub.HfApi, target: Target, repo_id: str, commit: str, known: Iterable[str]
) -> str | None:
    if CARD not in known:
        return None
    path = api.hf_hub_download(repo_id, CARD, repo_type=target.repo_type, revision=commit)
    return Path(path).read_text(encoding="utf-8", errors="replace")


def stale_weights(known: Iterable[str], placed: Iterable[str]) -> set[str]:
    """Weights in the repository, beside new ones of their variant, that are no longer part of any."""
    new = set(placed)
    kinds = {kind for name in new if (kind := _kind(name))}
    return {name for name in known if name not in new and _kind(name) in kinds and _kind(name)}


def _kind(name: str) -> tuple[str, str] | None:
    """Folder and variant of a file of weights."""
    folder, _, file = name.rpartition("/")
    variant = variant_of(file)
    return None if variant is None else (folder, variant)


def repository_files(folder: Path) -> dict[str, Path]:
    """What of a model's folder belongs into a repository: no checkpoints, samples or logs of its training.

    Raises:
        ValueError: nothing does.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and is_of_a_repository(name):
            found[name] = path
    if not any(name.endswith((".safetensors", "config.json")) for name in found):
        raise ValueError(f"Folder {folder} holds nothing to push: neither weights nor a config in it.")
    return found


def is_of_a_repository(name: str) -> bool:
    """Whether a file, by its path, is one that a model's repository has."""
    parts = name.split("/")
    is_left_out = any(part.startswith((".", "__")) or _OF_A_RUN.fullmatch(part) for part in parts)
    return Path(name).suffix in _SUFFIXES and not is_left_out
