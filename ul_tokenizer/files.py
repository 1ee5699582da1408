"""Writes files completely or not at all; also JSON lines that survive a kill, and hashes.

Every room that writes a file uses these functions. A reader never sees half a file, and a process that is killed at
any moment leaves at most a hidden temporary file or an incomplete last line, which the next run removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20


# ---------------------------------------------------------------- whole files


def temporary_path(path: Path, suffix: str = ".tmp") -> Path:
    """A hidden path beside another one; no other process has it, not even on another machine with a shared disk."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{suffix}")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder; on success the file is flushed and renamed to `path`.

    The folder is made if needed. After an exception `path` is as it was before.

    Raises:
        OSError: the disk is full or can't be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8, completely or not at all; errors as `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, value: Any, **options: Any) -> None:
    """Writes an indented JSON file, completely or not at all; `options` are those of `json.dumps`."""
    write_whole(path, json.dumps(value, **{"indent": 2, "ensure_ascii": False, **options}) + "\n")


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        OSError: the file can't be read.
        ValueError: it holds something else.
    """
    try:
        value = json.loads(Path(path).read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, which it doesn't.")
    return value


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yields a hidden folder beside a path that doesn't exist or is an empty folder; on success it is renamed to it.

    Raises:
        ValueError: there is something at the path.
        OSError: the disk is full or can't be written.
    """
    path = Path(path)
    check_new_folder(path)
    temporary = temporary_path(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new_folder(path: Path) -> None:
    """Refuses a path at which there is something other than an empty folder.

    Raises:
        ValueError: there is something.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"output must be a new folder, got {path}, which exists.")


def sync_file(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, so that a rename survives a power loss."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---------------------------------------------------------------- JSON lines


def append_json_line(path: str | Path, row: Mapping[str, Any]) -> None:
    """Appends one JSON object as a line, which is on the disk when this returns.

    If the write fails, the file is cut back to its former length.

    Raises:
        OSError: the disk is full or can't be written.
        ValueError: a value that JSON can't hold, such as NaN.
    """
    append_line(path, json.dumps(row, ensure_ascii=False, allow_nan=False))


def append_line(path: str | Path, line: str) -> None:
    """Appends a line of text; it is on the disk when this returns. Errors as `append_json_line`."""
    with Path(path).open("ab") as file:
        start = file.tell()
        try:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, start)
            raise


def whole_lines(path: str | Path) -> Iterator[str]:
    """Yields the lines of a file; an incomplete last line, left by a killed process, is ignored."""
    # In binary mode only "\n" ends a line; text mode also splits at characters that JSON strings may hold.
    with Path(path).open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line[:-1].decode("utf-8", "replace")


def cut_off_partial_line(path: str | Path) -> None:
    """Removes an incomplete last line, which a killed process left."""
    path = Path(path)
    if not path.is_file():
        return
    size = end = path.stat().st_size
    with path.open("rb") as file:
        while end:  # block by block from the end, since logs can be large
            start = max(0, end - _BLOCK)
            file.seek(start)
            if (newline := file.read(end - start).rfind(b"\n")) >= 0:
                end = start + newline + 1
                break
            end = start
    if end != size:
        os.truncate(path, end)


# ---------------------------------------------------------------- hashes


def sha256_of(*paths: str | Path) -> str:
    """Hex sha256 of the bytes of one or several files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
