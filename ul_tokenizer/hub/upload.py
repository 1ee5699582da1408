"""Uploads to a repository of the hub, one commit per push."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from ul_tokenizer.hub.download import RepoType
from ul_tokenizer.hub.errors import explained, status_of
from ul_tokenizer.hub.weights import variant_of

TRIES = 3
CHANGED_MEANWHILE = 412  # the hub's status if the parent of a commit is no longer the head

Revise = Callable[[str, str | None], str]
"""Full id of the repository, and the text of a file in it (None if it has none) → the new text of this file."""


class Target(NamedTuple):
    """The destination of a push.

    Attributes:
        repo_id: owner/name, or a name below the user's own account.
        repo_type: "model" or "dataset".
        revision: a branch, created if needed; None for `main`.
        subfolder: folder in the repository; None for its root.
        private: visibility of a repository that the push creates; None for the owner's default.
        create_pr: open a pull request instead of committing to the branch.
        commit_message: None for "Upload" and the name.
        token: None for the stored token, False for no token.
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
        """The fields without the token."""
        return f"Target({self.repo_id!r}, {self.repo_type!r}, revision={self.revision!r}, subfolder={self.subfolder!r})"


def push(target: Target, files: Mapping[str, Path | bytes], revised: Mapping[str, Revise] | None = None) -> str:
    """Commits files to a repository, which is created if needed.

    Weights of an earlier push that the new ones replace under other names (for example a different number of shards)
    are deleted in the same commit. Weights of other variants stay.

    Args:
        target: the destination.
        files: path below the subfolder → file or its content.
        revised: path below the subfolder → function that makes the new text from the text in the repository.

    Returns:
        The hash of the commit; if nothing changed, that of the last commit.

    Raises:
        HubError: the hub refused the push or can't be reached.
        OSError: a file can't be read.
    """
    repo_id = make_repository(target)
    api = HfApi(token=target.token)
    with explained(target.repo_id, target.revision):
        if target.revision is not None:
            api.create_branch(repo_id, branch=target.revision, repo_type=target.repo_type, exist_ok=True)
        for tries_left in reversed(range(TRIES)):
            try:
                return _commit(api, target, repo_id, files, revised or {})
            except HfHubHTTPError as error:
                if status_of(error) != CHANGED_MEANWHILE or not tries_left:
                    raise
    raise AssertionError("the last try returns or raises")


def _commit(
    api: HfApi, target: Target, repo_id: str, files: Mapping[str, Path | bytes], revised: Mapping[str, Revise]
) -> str:
    """Commits onto the present head; refused if another commit comes first, whose texts this one would undo."""
    info = api.repo_info(repo_id, revision=target.revision, repo_type=target.repo_type)
    head, known = str(info.sha), {file.rfilename for file in getattr(info, "siblings", None) or []}
    prefix = f"{target.subfolder.strip('/')}/" if target.subfolder else ""
    placed: dict[str, Path | bytes] = {f"{prefix}{name}": content for name, content in files.items()}
    for name, revise in revised.items():
        path = f"{prefix}{name}"
        existing = _read_text(api, target, repo_id, head, path) if path in known else None
        placed[path] = revise(repo_id, existing).encode()
    commit = api.create_commit(
        repo_id,
        _operations(placed, known),
        commit_message=target.commit_message or f"Upload {prefix.rstrip('/') or repo_id.rpartition('/')[2]}",
        revision=target.revision,
        repo_type=target.repo_type,
        create_pr=target.create_pr,
        parent_commit=head,
    )
    return str(commit.oid)


def make_repository(target: Target) -> str:
    """Creates the repository if needed and returns its full id.

    Raises:
        HubError: the hub refused the request or can't be reached.
    """
    api = HfApi(token=target.token)
    with explained(target.repo_id):
        made = api.create_repo(target.repo_id, private=target.private, repo_type=target.repo_type, exist_ok=True)
    return str(made.repo_id)


def stale_weights(known: Iterable[str], placed: Iterable[str]) -> set[str]:
    """Weight files of the repository that new weights in the same folder, of the same variant, replace."""
    new = set(placed)
    kinds = {kind for name in new if (kind := _kind(name))}
    return {name for name in known if name not in new and _kind(name) in kinds}


def _operations(
    placed: Mapping[str, Path | bytes], known: Iterable[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    added = [CommitOperationAdd(name, content) for name, content in sorted(placed.items())]
    return [*added, *(CommitOperationDelete(name) for name in sorted(stale_weights(known, placed)))]


def _read_text(api: HfApi, target: Target, repo_id: str, commit: str, path: str) -> str:
    local = api.hf_hub_download(repo_id, path, repo_type=target.repo_type, revision=commit)
    return Path(local).read_text(encoding="utf-8", errors="replace")


def _kind(name: str) -> tuple[str, str] | None:
    """Folder and variant of a weight file; None for other files."""
    folder, _, file = name.rpartition("/")
    variant = variant_of(file)
    return None if variant is None else (folder, variant)
