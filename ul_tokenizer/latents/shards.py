"""Where a latent data set's files come from, and a shard's latents without reading the shard."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ul_tokenizer.hub.download import fetch
from ul_tokenizer.latents.manifest import HEADER, MANIFESTS, Shard


class Files(Protocol):
    """The files of a data set."""

    folder: Path  # where header and manifests lie

    def path(self, name: str) -> Path:
        """A file's place on this machine, fetched if need be."""
        ...


class LocalFiles:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """In the folder."""
        return self.folder / name


class HubFiles:
    """A data set repository of the hub: header and manifests at once, each shard when it is first touched.

    Raises:
        HubError: no such repository or revision, no access, no network.
        ValueError: no latent data set in it.
    """

    def __init__(self, repo_id: str, revision: str | None) -> None:
        self.repo_id = repo_id
        # All is of one commit, whatever is pushed meanwhile.
        self.folder, self.revision = fetch(repo_id, described, revision, "dataset")

    def path(self, name: str) -> Path:
        """In the hub's cache, its hash compared when it came; no request if it is there."""
        if (self.folder / name).is_file():
            return self.folder / name
        return fetch(self.repo_id, lambda files: [name], self.revision, "dataset").folder / name


def described(files: Sequence[str]) -> list[str]:
    """Of a repository's files, header and manifests; raises ValueError if it holds no latent data set."""
    if HEADER not in files:
        raise ValueError(f"This hub repository holds no latent data set: there is no {HEADER} in it.")
    return [HEADER, *(name for name in files if fnmatch(name, MANIFESTS))]


def find_files(path_or_repo: str | Path, revision: str | None) -> Files:
    """A folder where there is one, else a repository of the hub.

    Raises:
        ValueError: neither, or a folder with a revision.
    """
    folder = Path(path_or_repo).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision must be None for a folder, got {revision!r} for {folder}.")
        return LocalFiles(folder)
    if str(path_or_repo).count("/") != 1 or str(path_or_repo).startswith((".", "/", "~")):
        raise ValueError(f"Latent data set {path_or_repo} is no folder that exists and no hub id (owner/name).")
    return HubFiles(str(path_or_repo), revision)


class ShardReader:
    """The latents of one shard, mapped into memory: a sample is read when it is asked for.

    Raises:
        ValueError: a file that is missing, cut short or not what its line in the manifest says.
    """

    def __init__(self, path: Path, shard: Shard) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                self._latents: Tensor = file.get_tensor("latents")
                self._scale: Tensor | None = file.get_tensor("scale") if shard.dtype == "int8" else None
        except (OSError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise ValueError(f"Shard {path} is missing or damaged: {reason}; run `latents verify`.") from error
        if tuple(self._latents.shape) != shard.shape or str(self._latents.dtype) != f"torch.{shard.dtype}":
            raise ValueError(f"Shard {path} must hold latents {shard.shape} {shard.dtype}, got others.")

    def read(self, rows: list[int]) -> Tensor:
        """Samples (B, c, [t,] h, w), fp32, in a memory of their own."""
        latents = torch.stack([self._latents[row] for row in rows]).float()
        if self._scale is None:
            return latents
        return latents * self._scale.reshape(1, -1, *[1] * (latents.ndim - 2))
