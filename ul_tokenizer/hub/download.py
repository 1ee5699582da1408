"""Files of a hub repository at one commit: from the cache where it has them, checked against their hashes.

```
revision ─ commit: one request, none for a commit's own hash ─ files ─ in the cache? ─ download ─ sha256 ─ folder
```
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined, unused-ignore]

from ul_tokenizer import _compat
from ul_tokenizer.files import write_whole
from ul_tokenizer.hub.errors import DamagedDownloadError, explain, explained, is_unreachable

RepoType = Literal["model", "dataset"]
Wanted = Callable[[Sequence[str]], Sequence[str]]  # a repository's files → those that are needed; may raise ValueError
RECORDS = "ul_tokenizer"  # folder in a repository's cache
_COMMIT = re.compile(r"[0-9a-f]{40}")
_THREADS = 8


class Snapshot(NamedTuple):
    """A repository's files on this machine."""

    folder: Path
    commit: str


@dataclass(frozen=True)
class Access:
    """How the hub is asked; names and defaults are the client's.

    Args:
        token: None for the stored one, False for none.
        cache_dir: None for the hub's.
        local_files_only: ask nothing of the network.
        force_download: fetch files that are there already.
    """

    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False

    @classmethod
    def taken_from(cls, kwargs: dict[str, Any]) -> Access:
        """Of the arguments of a `from_pretrained`, from which they are removed."""
        kwargs.pop("proxies", None)  # the client takes them from the environment
        taken = {name: kwargs.pop(name) for name in cls.__dataclass_fields__ if name in kwargs}
        return cls(**{name: value for name, value in taken.items() if value is not None})

    @property
    def is_offline(self) -> bool:
        """Whether nothing may be asked."""
        return self.local_files_only or constants.HF_HUB_OFFLINE


def fetch(
    repo_id: str,
    wanted: Wanted,
    revision: str | None = None,
    repo_type: RepoType = "model",
    access: Access | None = None,
) -> Snapshot:
    """Brings the wanted files of one commit onto this machine.

    A cached copy costs one request, which says what commit the revision is today; none if `revision` is the hash of a
    commit. Without a network it is the commit that the revision last was. What is downloaded is compared with the
    repository's hashes, once.

    Args:
        repo_id: owner/name.
        wanted: picks from the repository's files.
        revision: branch, tag or commit; None for `main`.
        repo_type: "model" or "dataset".
        access: token, cache and whether to ask at all.

    Raises:
        HubError: a subclass says what is wrong.
        ValueError: what `wanted` raises.
        OSError: the cache can't be written.
    """
    access = access or Access()
    with explained(repo_id, revision):
        validate_repo_id(repo_id)
        cache = _Cache(repo_id, repo_type, access)
        if not access.force_download and (found := cache.find(revision, wanted)):
            return found
        return cache.fill(cache.listing(revision), wanted)


@dataclass
class _Record:
    """What is known of a commit for good: its files' hashes, and which of them were seen to have theirs."""

    commit: str
    digests: dict[str, str]  # sha256 of large files, git's blob id of others
    verified: list[str] = field(default_factory=list)
    is_whole: bool = True  # the hub's own list; what a cache happens to have must not be taken for it later


class _Cache:
    """A repository's part of the hub's cache."""

    def __init__(self, repo_id: str, repo_type: RepoType, access: Access) -> None:
        self.repo_id, self.repo_type, self.access = repo_id, repo_type, access
        root = Path(access.cache_dir or constants.HF_HUB_CACHE).expanduser()
        self.folder = _compat.cached_repository(root, repo_id, repo_type)

    # ------------------------------------------------------------------------------------------------ without asking

    def find(self, revision: str | None, wanted: Wanted) -> Snapshot | None:
        """What the cache has, where nothing may be asked; None where it may."""
        if not self.access.is_offline:
            return None
        commit = _as_commit(revision) or self._read_ref(revision)
        record = self._read_record(commit) or self._as_found(commit)
        if record is None:
            raise self._not_here()
        names = wanted(list(record.digests))
        if not all((self.snapshot(record.commit) / name).is_file() for name in names):
            raise self._not_here()
        return self._checked(record, names)

    def _as_found(self, commit: str | None) -> _Record | None:
        """What a snapshot that something else filled has, which may be a part of the commit."""
        if commit is None or not (folder := self.snapshot(commit)).is_dir():
            return None
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        return _Record(commit, {name: _compat.cached_digest(folder / name) for name in names}, is_whole=False)

    def _not_here(self) -> Exception:
        return explain(huggingface_hub.errors.OfflineModeIsEnabled(""), self.repo_id, None)

    def snapshot(self, commit: str) -> Path:
        """Where a commit's files lie."""
        return _compat.cached_snapshot(self.folder, commit)

    # ------------------------------------------------------------------------------------------------ asking

    def listing(self, revision: str | None) -> _Record:
        """The commit that a revision is today, with its files; the one it last was if the hub doesn't answer."""
        if known := self._read_record(_as_commit(revision)):
            return known
        api = huggingface_hub.HfApi(token=self.access.token)
        try:
            info = api.repo_info(
                self.repo_id,
                revision=revision,
                repo_type=self.repo_type,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
                files_metadata=True,
            )
        except Exception as error:
            if not is_unreachable(error):
                raise
            return self._last_known(revision, error)
        known = self._read_record(info.sha)
        digests = {file.rfilename: _digest_of(file) for file in getattr(info, "siblings", None) or []}
        record = _Record(str(info.sha), digests, known.verified if known else [])
        self._write_ref(revision, record.commit)
        return record

    def _last_known(self, revision: str | None, error: BaseException) -> _Record:
        commit = _as_commit(revision) or self._read_ref(revision)
        record = self._read_record(commit) or self._as_found(commit)
        if record is None:
            raise explain(error, self.repo_id, revision)
        return record

    def fill(self, record: _Record, wanted: Wanted) -> Snapshot:
        """Downloads what is lacking, and checks it."""
        names = wanted(list(record.digests))
        self._download(record.commit, names, self.access.force_download)
        return self._checked(record, names)

    def _download(self, commit: str, names: Sequence[str], force: bool) -> None:
        def get(name: str) -> None:
            huggingface_hub.hf_hub_download(
                self.repo_id,
                name,
                repo_type=self.repo_type,
                revision=commit,
                token=self.access.token,
                cache_dir=self.access.cache_dir,
                force_download=force,
                local_files_only=self.access.local_files_only,
                library_name="ul_tokenizer",
            )

        folder = self.snapshot(commit)
        lacking = [name for name in names if force or not (folder / name).is_file()]
        with ThreadPoolExecutor(_THREADS, "download") as pool:
            list(pool.map(get, lacking))

    # ------------------------------------------------------------------------------------------------ checking

    def _checked(self, record: _Record, names: Sequence[str]) -> Snapshot:
        """The snapshot, if its files have the hashes that they should have; what has not is fetched once more."""
        folder = self.snapshot(record.commit)
        new = [name for name in names if name not in record.verified or self.access.force_download]
        damaged = self._damaged(record, new)
        if damaged:
            for name in damaged:
                _remove(folder / name)
            if not self.access.is_offline:
                self._download(record.commit, damaged, True)
                damaged = self._damaged(record, damaged)
        if damaged:
            for name in damaged:
                _remove(folder / name)
            raise DamagedDownloadError(
                f"File {damaged[0]} of hub repository {self.repo_id} arrived with another hash than the repository "
                "says, twice; it was removed."
            )
        if new:
            record.verified = sorted({*record.verified, *new})
            if record.is_whole:
                self._write_record(record)
        return Snapshot(folder, record.commit)

    def _damaged(self, record: _Record, names: Iterable[str]) -> list[str]:
        folder = self.snapshot(record.commit)
        return [name for name in names if not _has_digest(folder / name, record.digests[name])]

    # ------------------------------------------------------------------------------------------------ small files

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


# ---------------------------------------------------------------- hashes


def _as_commit(revision: str | None) -> str | None:
    """The revision, if it is the hash of a commit."""
    return revision if _COMMIT.fullmatch(revision or "") else None


def _digest_of(file: Any) -> str:
    """What the hub says of a file: 64 hex digits for large ones, 40 for those in git itself, "" if nothing."""
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
    """A file of a snapshot, with the blob that it may be a link to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    """Whole or not at all; a cache that can't be written is used as it is."""
    with suppress(OSError):
        write_whole(path, text)
