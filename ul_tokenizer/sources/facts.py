"""Facts about many files that take long to find out, such as the lengths of videos, stored for the next run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ul_tokenizer.files import append_line, cut_off_partial_line, whole_lines
from ul_tokenizer.progress import progress

THREADS = 8
_AT_ONCE = 1000  # facts are stored after this many, so that a run that is stopped loses few

Facts = Any
"""Whatever JSON can hold."""


class StoredFacts:
    """Facts about the files of a data set, as JSON lines in the cache folder.

    A line has a file's name, its stamp (see `stamp_of_file`) and the facts, which hold as long as the stamp is the
    same. Processes of one machine take turns, so that the others find what the first one has found out. Where files
    can't be locked, several may write at once: a line that two of them have mixed up is ignored.

    Args:
        kind: What the facts are about; part of the file's name.
        origin: The data set, such as the path of a folder.
        folder: Folder of the stored facts.
    """

    def __init__(self, kind: str, origin: str, folder: Path | None = None) -> None:
        place = hashlib.sha256(origin.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self.path = (folder or cache_folder()) / f"{kind}-{place}.jsonl"

    def of(
        self, names: Sequence[str], stamp: Callable[[int], str], find: Callable[[int], Facts], unit: str = "files"
    ) -> list[Facts]:
        """The facts about all files: those stored, and those that have to be found out, which are then stored.

        Args:
            names: Names of the files.
            stamp: The stamp of file number n; called from several threads, like `find`.
            find: Finds out the facts about file number n.
            unit: What the progress bar counts.
        """
        with self._turn():
            return self._find_missing(names, stamp, find, unit)

    def _find_missing(
        self, names: Sequence[str], stamp: Callable[[int], str], find: Callable[[int], Facts], unit: str
    ) -> list[Facts]:
        stored = self._read()
        facts: list[Facts] = [None] * len(names)
        missing: dict[int, str] = {}  # with the new stamps
        with ThreadPoolExecutor(THREADS) as pool:
            for part in _parts(range(len(names))):
                for n, new_stamp in zip(part, pool.map(stamp, part), strict=True):
                    old_stamp, facts[n] = stored.get(names[n], (None, None))
                    if old_stamp != new_stamp:
                        missing[n] = new_stamp
            with progress("reading headers", len(missing), unit) as bar:
                for part in _parts(list(missing)):
                    for n, found in zip(part, pool.map(find, part), strict=True):
                        facts[n] = found
                    self._append([[names[n], missing[n], facts[n]] for n in part])
                    bar.update(len(part))
        return facts

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Waits for other processes that find out facts of the same kind about the same data set."""
        try:
            import fcntl

            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        except (ImportError, OSError):  # Windows, or a cache that can't be written
            yield
            return
        try:
            with suppress(OSError):  # this file system has no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _read(self) -> dict[str, tuple[str, Facts]]:
        stored: dict[str, tuple[str, Facts]] = {}
        with suppress(OSError):  # there is no such file yet
            for line in whole_lines(self.path):
                with suppress(ValueError, TypeError):
                    name, stamp, facts = json.loads(line)
                    stored[name] = (stamp, facts)
        return stored

    def _append(self, rows: Sequence[Any]) -> None:
        with suppress(OSError):  # a cache that can't be written is no reason to fail
            self.path.parent.mkdir(parents=True, exist_ok=True)
            cut_off_partial_line(self.path)
            append_line(self.path, "\n".join(map(json.dumps, rows)))


def _parts(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    """Short parts of a sequence, so that threads never have a long queue."""
    return (numbers[first : first + _AT_ONCE] for first in range(0, len(numbers), _AT_ONCE))


def cache_folder() -> Path:
    """Folder of stored facts: `ul_tokenizer/facts` in $XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "ul_tokenizer" / "facts"
