"""The lock of an output folder: one live run at a time."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

NAME = ".run.lock"


class OutputLock:
    """Context manager around a run; the main process takes the lock, and its end releases it, even if it is killed.

    It is a lock of POSIX, which works on NFS and which child processes, such as a data loader's workers, don't inherit.
    Where the system or the file system has no locks, nothing is locked.

    Args:
        folder: the output folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._handle: int | None = None

    def take_if_used(self) -> None:
        """Takes the lock if the folder exists; raises as `take`. It is for before the data are read."""
        if self.path.parent.is_dir():
            self.take()

    def take(self) -> None:
        """Takes the lock, once; the folder is made if needed.

        Raises:
            ValueError: another run has it.
            OSError: the folder can't be written.
        """
        while self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _lock(handle, self.path)
            except BaseException:
                os.close(handle)
                raise
            if _is_the_file(handle, self.path):  # a run that just ended may have removed it
                os.ftruncate(handle, 0)
                os.write(handle, f"{os.getpid()} on {socket.gethostname()}".encode())
                self._handle = handle
            else:
                os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None


def _lock(handle: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return  # this file system has no locks
        holder = os.read(handle, 1000).decode("utf-8", "replace") or "unknown"
        raise ValueError(
            f"--output_dir {path.parent} must be used by one run at a time, but process {holder} is writing to it."
        ) from error


def _is_the_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
