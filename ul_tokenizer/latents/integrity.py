"""Checks latent data sets, repairs damaged ones and merges several into one; needs no torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ul_tokenizer.files import append_line, check_new_folder, new_folder, sha256_of, whole_file
from ul_tokenizer.latents.ids import RepeatedIds
from ul_tokenizer.latents.manifest import (
    HEADER,
    VOLATILE,
    Shard,
    check_header,
    manifest_name,
    manifests,
    read_all_shards,
    read_header,
    read_shards,
    shard_name,
)


@dataclass(frozen=True)
class Problem:
    """A defect of one file of a data set."""

    file: str
    reason: str


def verify(folder: str | Path) -> list[Problem]:
    """Reads every byte of a data set and compares it with the manifests.

    Returns:
        the defects; an empty list if the data set is whole.

    Raises:
        ValueError: the folder holds no data set, or a manifest can't be read.
    """
    folder = Path(folder)
    read_header(folder)
    known: set[str] = set()
    problems: list[Problem] = []
    for shard in read_all_shards(folder):
        known.add(shard.file)
        problems += _shard_problems(folder, shard)
    problems += _repeated(list(manifests(folder)))
    orphans = sorted(path.name for path in folder.glob("shard-r*") if path.name not in known)
    problems += [Problem(name, "no manifest lists it: a run was stopped while it wrote it") for name in orphans]
    problems += [
        Problem(path.name, "its last line is incomplete: a run was stopped while it wrote it")
        for path in manifests(folder)
        if _ends_within_a_line(path)
    ]
    return problems


def _shard_problems(folder: Path, shard: Shard) -> Iterator[Problem]:
    path = folder / shard.file
    if not path.is_file():
        yield Problem(shard.file, "it is missing")
    elif path.stat().st_size != shard.bytes:
        yield Problem(shard.file, f"it has {path.stat().st_size} bytes instead of {shard.bytes}")
    elif sha256_of(path) != shard.sha256:
        yield Problem(shard.file, "its sha256 differs from the manifest's")


def _repeated(paths: Sequence[Path]) -> list[Problem]:
    """Ids that stand twice in manifests; these are read again only if there may be such ids."""
    repeated, files = RepeatedIds(), []
    for shard in _shards_of(paths):
        repeated.add(shard.ids)
        files.append(shard.file)
    found = repeated.find(shard.ids for shard in _shards_of(paths))
    return [Problem(files[n], f"its id {name!r} is in {files[first]} already") for n, name, first in found]


def _shards_of(paths: Sequence[Path]) -> Iterator[Shard]:
    return (shard for path in paths for shard in read_shards(path))


def _ends_within_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def repair(folder: str | Path) -> list[Problem]:
    """Removes damaged shards from a data set, so that the job which made it makes these samples again.

    Returns:
        the defects that were found.
    """
    folder = Path(folder)
    problems = verify(folder)
    bad = {problem.file for problem in problems}
    for path in manifests(folder) if problems else ():
        with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{shard.to_line()}\n" for shard in read_shards(path) if shard.file not in bad)
    for name in bad:
        if name.startswith("shard-"):
            (folder / name).unlink(missing_ok=True)
    return problems


def merge(sources: Sequence[str | Path], output: str | Path) -> int:
    """Merges data sets with equal headers into a new one, completely or not at all.

    Files are hard links where possible, else copies.

    Returns:
        the number of samples.

    Raises:
        ValueError: headers differ, two data sets have the same id, or the output folder is not empty.
    """
    folders, output = [Path(source) for source in sources], Path(output)
    check_new_folder(output)
    header = read_header(folders[0])
    wanted = {key: value for key, value in header.items() if key not in VOLATILE}
    for folder in folders[1:]:
        check_header(read_header(folder), wanted, str(folder / HEADER))
    paths = [path for folder in folders for path in manifests(folder)]
    if twice := _repeated(paths):
        raise ValueError(f"sources must not share samples: in {twice[0].file}, {twice[0].reason}.")
    with new_folder(output) as folder:
        shutil.copyfile(folders[0] / HEADER, folder / HEADER)
        return sum(_add_shards(paths, folder))


def _add_shards(paths: Sequence[Path], output: Path) -> Iterator[int]:
    """Adds the shards of several manifests to a data set; yields their numbers of samples."""
    numbered = enumerate((path.parent, shard) for path in paths for shard in read_shards(path))
    for number, (folder, shard) in numbered:
        name = shard_name(0, number)
        _link_or_copy(folder / shard.file, output / name)
        append_line(output / manifest_name(0), replace(shard, file=name).to_line())
        yield len(shard.ids)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
