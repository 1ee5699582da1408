"""Where the files of a latent data set are: in a folder, or in a repository of the hub; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from ul_tokenizer.hub.download import Access, fetch
from ul_tokenizer.latents.manifest import HEADER, MANIFESTS


class Files(Protocol):
    """The files of a latent data set."""

    @property
    def folder(self) -> Path:
        """Folder of the header and the manifests."""
        ...

    def path(self, name: str) -> Path:
        """Path of a file on this machine; the file is downloaded if necessary."""
        ...


class LocalFiles:
    """The files of a data set in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Path of a file in the folder."""
        return self.folder / name


class HubFiles:
    """The files of a data set repository on the hub.

    Header and manifests are downloaded at once, each shard when it is first used. All files are of one commit.

    Raises:
        HubError: no such repository or revision, no access, or no network.
        ValueError: the repository holds no latent data set.
    """

    def __init__(self, repo_id: str, revision: str | None, access: Access) -> None:
        self.repo_id, self.access = repo_id, access
        self.folder, self.revision = fetch(repo_id, described, revision, "dataset", access)

    def path(self, name: str) -> Path:
        """Path of a file in the hub's cache; a download is compared with the repository's hash."""
        if (self.folder / name).is_file():
            return self.folder / name
        return fetch(self.repo_id, lambda files: [name], self.revision, "dataset", self.access).folder / name


def described(files: Sequence[str]) -> list[str]:
    """Picks header and manifests from the files of a repository.

    Raises:
        ValueError: there is no header.
    """
    if HEADER not in files:
        raise ValueError(f"This hub repository holds no latent data set: there is no {HEADER} in it.")
    return [HEADER, *(name for name in files if fnmatch(name, MANIFESTS))]


def find_files(path_or_repo: str | Path, revision: str | None = None, access: Access | None = None) -> Files:
    """Finds a data set: a folder if there is one, else a repository of the hub.

    Raises:
        ValueError: neither a folder nor a hub id, or a folder with a revision.
        HubError: the repository can't be read.
    """
    folder = Path(path_or_repo).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision must be None for a folder, got {revision!r} for {folder}.")
        return LocalFiles(folder)
    if str(path_or_repo).count("/") != 1 or str(path_or_repo).startswith((".", "/", "~")):
        raise ValueError(f"Latent data set {path_or_repo} is neither an existing folder nor a hub id (owner/name).")
    return HubFiles(str(path_or_repo), revision, access or Access())
