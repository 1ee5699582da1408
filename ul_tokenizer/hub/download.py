"""Files of a hub repository at one commit: taken from the cache or downloaded, and compared with their hashes.

```
revision ─ commit: one request, none for a commit's own hash ─ files ─ in the cache? ─ download ─ sha256 ─ folder
```
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined, unused-ignore]

from ul_tokenizer import _compat
from ul_tokenizer.files import write_whole
from ul_tokenizer.hub.errors import DamagedDownloadError, explained, is_unreachable, offline_error

RepoType = Literal["model", "dataset"]
Wanted = Callable[[Sequence[str]], Sequence[str]]  # a repository's files → those that are needed; may raise ValueError
RECORDS = "ul_tokenizer"  # our own folder in a repository's cache
_COMMIT = re.compile(r"[0-9a-f]{40}")
_THREADS = 8


class Snapshot(NamedTuple):
    """Files of a repository on this machine."""

    folder: Path
    commit: str


@dataclass(frozen=True)
class Access:
    """How to access the hub; names and defaults are those of huggingface_hub.

    Args:
        token: None for the stored token, False for no token.
        cache_dir: folder of the cache; None for the hub's default.
        local_files_only: use the cache alone and send no request.
        force_download: download files even if they are cached.
    """

    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False

    @classmethod
    def taken_from(cls, kwargs: dict[str, Any]) -> Access:
        """Removes its arguments from the keyword arguments of a `from_pretrained` and returns them as one object."""
        kwargs.pop("proxies", None)  # the client takes them from the environment
        taken = {name: kwargs.pop(name) for name in cls.__dataclass_fields__ if name in kwargs}
        return cls(**{name: value for name, value in taken.items() if value is not None})

    @property
    def is_offline(self) -> bool:
        """Whether no request may be sent."""
        return self.local_files_only or constants.HF_HUB_OFFLINE


def fetch(
    repo_id: str,
    wanted: Wanted,
    revision: str | None = None,
    repo_type: RepoType = "model",
    access: Access | None = None,
) -> Snapshot:
    """Downloads the wanted files of one commit, unless they are cached.

    If all files are cached, one request asks for the current commit of the revision; a commit's own hash needs no
    request. If the hub can't be reached, the last known commit of the revision is used. Each file is compared with its
    hash in the repository once.

    Args:
        repo_id: owner/name.
        wanted: selects from the names of the repository's files.
        revision: branch, tag or commit; None for `main`.
        repo_type: "model" or "dataset".
        access: token, cache and whether to send requests.

    Raises:
        HubError: the request failed; the subclass names the cause.
        ValueError: raised by `wanted`.
        OSError: the cache can't be written.
    """
    access = access or Access()
    with explained(repo_id, revision):
        validate_repo_id(repo_id)
        cache = _Cache(repo_id, repo_type, access)
        if access.is_offline:
            return cache.find(revision, wanted)
        return cache.fill(cache.listing(revision), wanted)


@dataclass
class _Record:
    """What is known about a commit and never changes: hashes of its files, and which files were compared with them."""

    commit: str
    digests: dict[str, str]  # sha256 of large files, git's blob id of others
    verified: list[str] = field(default_factory=list)
    is_whole: bool = True  # False: made from cached files, which can be a part of the commit; never written to disk


class _Cache:
    """The part of the hub's cache that belongs to one repository."""

    def __init__(self, repo_id: str, repo_type: RepoType, access: Access) -> None:
        self.repo_id, self.repo_type, self.access = repo_id, repo_type, access
        root = Path(access.cache_dir or constants.HF_HUB_CACHE).expanduser()
        self.folder = _compat.cached_repository(root, repo_id, repo_type)

    # ------------------------------------------------------------------------------------------- without requests

    def find(self, revision: str | None, wanted: Wanted) -> Snapshot:
        """Returns cached files; raises `OfflineError` if one is missing."""
        record = self._last_known(revision)
        if record is None:
            raise offline_error(self.repo_id)
        names = wanted(list(record.digests))
        if self._lacking(record.commit, names):
            raise offline_error(self.repo_id)
        return self._checked(record, names)

    def _last_known(self, revision: str | None) -> _Record | None:
        """The commit that a revision was when the hub was last asked."""
        commit = _as_commit(revision) or self._read_ref(revision)
        return self._read_record(commit) or self._as_found(commit)

    def _as_found(self, commit: str | None) -> _Record | None:
        """The record of a snapshot that another program filled, perhaps with a part of the commit only."""
        if commit is None or not (folder := self.snapshot(commit)).is_dir():
            return None
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        return _Record(commit, {name: _compat.cached_digest(folder / name) for name in names}, is_whole=False)

    def snapshot(self, commit: str) -> Path:
        """The folder of a commit's files."""
        return _compat.cached_snapshot(self.folder, commit)

    def _lacking(self, commit: str, names: Iterable[str]) -> list[str]:
        return [name for name in names if not (self.snapshot(commit) / name).is_file()]

    # ------------------------------------------------------------------------------------------- with requests

    def listing(self, revision: str | None) -> _Record:
        """The current commit of a revision with its files, or the last known commit if the hub can't be reached."""
        if known := self._read_record(_as_commit(revision)):
            return known
        try:
            info = huggingface_hub.HfApi(token=self.access.token).repo_info(
                self.repo_id,
                revision=revision,
                repo_type=self.repo_type,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
                files_metadata=True,
            )
        except Exception as error:
            if is_unreachable(error) and (record := self._last_known(revision)):
                return record
            raise
        known = self._read_record(info.sha)
        digests = {file.rfilename: _digest_of(file) for file in getattr(info, "siblings", None) or []}
        record = _Record(str(info.sha), digests, known.verified if known else [])
        self._write_ref(revision, record.commit)
        return record

    def fill(self, record: _Record, wanted: Wanted) -> Snapshot:
        """Downloads the wanted files that are not cached, and checks them."""
        names = wanted(list(record.digests))
        lacking = list(names) if self.access.force_download else self._lacking(record.commit, names)
        self._download(record.commit, lacking)
        return self._checked(record, names)

    def _download(self, commit: str, names: Sequence[str], force: bool = False) -> None:
        if not names:
            return
        huggingface_hub.snapshot_download(
            self.repo_id,
            repo_type=self.repo_type,
            revision=commit,
            token=self.access.token,
            cache_dir=self.access.cache_dir,
            force_download=force or self.access.force_download,
            allow_patterns=[glob.escape(name) for name in names],
            max_workers=_THREADS,
            library_name="ul_tokenizer",
        )
        # The client returns an incomplete folder if the hub fails before it lists the commit.
        if self._lacking(commit, names):
            raise offline_error(self.repo_id)

    # ------------------------------------------------------------------------------------------- hashes

    # Not `HfApi.verify_repo_checksums`: it needs requests, and reads the whole snapshot again for each new shard.
    def _checked(self, record: _Record, names: Sequence[str]) -> Snapshot:
        """Returns the snapshot if its files have the right hashes; a damaged file is downloaded once more."""
        new = [name for name in names if name not in record.verified or self.access.force_download]
        damaged = self._remove_damaged(record, new)
        if damaged and not self.access.is_offline:
            self._download(record.commit, damaged, force=True)
            damaged = self._remove_damaged(record, damaged)
        if damaged:
            raise DamagedDownloadError(
                f"File {damaged[0]} of hub repository {self.repo_id} differs from its hash in the repository; the copy "
                "in the cache was removed."
            )
        if new:
            record.verified = sorted({*record.verified, *new})
            if record.is_whole:
                self._write_record(record)
        return Snapshot(self.snapshot(record.commit), record.commit)

    def _remove_damaged(self, record: _Record, names: Iterable[str]) -> list[str]:
        """Removes the files that differ from their hashes, and returns their names."""
        folder = self.snapshot(record.commit)
        damaged = [name for name in names if not _has_digest(folder / name, record.digests[name])]
        for name in damaged:
            _remove(folder / name)
        return damaged

    # ------------------------------------------------------------------------------------------- small files

    def _read_ref(self, revision: str | None) -> str | None:
        path = _compat.cached_ref(self.folder, revision or constants.DEFAULT_REVISION)
        text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        return text if _COMMIT.fullmatch(text) else None

    def _write_ref(self, revision: str | None, commit: str) -> None:
        if revision != commit:
            _write(_compat.cached_ref(self.folder, revision or constants.DEFAULT_REVISION), commit)

    def _read_record(self, commit: str | None) -> _Record | None:
        if commit is None:
            return None
        try:
            values = json.loads((self.folder / RECORDS / f"{commit}.json").read_text(encoding="utf-8"))
            return _Record(**values)
        except (OSError, ValueError, TypeError):
            return None

    def _write_record(self, record: _Record) -> None:
        _write(self.folder / RECORDS / f"{record.commit}.json", json.dumps(asdict(record)))


def _as_commit(revision: str | None) -> str | None:
    """The revision if it is the hash of a commit, else None."""
    return revision if _COMMIT.fullmatch(revision or "") else None


def _digest_of(file: Any) -> str:
    """The hub's hash of a file: 64 hex digits for large files, 40 for those in git itself, "" if it has none."""
    lfs = file.lfs
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    return str(sha256 or file.blob_id or "")


def _has_digest(path: Path, digest: str) -> bool:
    if not digest:
        return path.is_file()
    # git puts this before a file's bytes
    made = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            made.update(block)
    return made.hexdigest() == digest


def _remove(path: Path) -> None:
    """Removes a file of a snapshot and the blob that it links to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    """Writes a file, or does nothing if the cache is read-only."""
    with suppress(OSError):
        write_whole(path, text)
