"""Whether a latent data set is whole, what to do if it isn't, and several made into one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ul_tokenizer.files import append_line, sha256_of, write_whole
from ul_tokenizer.latents.manifest import (
    HEADER,
    Shard,
    check_header,
    manifest_name,
    manifests,
    read_header,
    read_shards,
    shard_name,
)
from ul_tokenizer.latents.writer import VOLATILE


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a file of a data set."""

    file: str
    reason: str


def verify(folder: str | Path) -> list[Problem]:
    """Reads every byte of a data set and compares it with its manifests; no problems is an empty list.

    Raises:
        ValueError: no data set, or a manifest that can't be read.
    """
    folder = Path(folder)
    read_header(folder)
    shards = [shard for path in manifests(folder) for shard in read_shards(path)]
    problems = [problem for shard in shards if (problem := _check_shard(folder, shard))]
    problems += _duplicates(shards)
    known = {shard.file for shard in shards}
    orphans = sorted(path.name for path in folder.glob("shard-r*") if path.name not in known)
    problems += [Problem(name, "it is in no manifest: a run was stopped within it") for name in orphans]
    problems += [
        Problem(path.name, "its last line is cut short: a run was stopped within it")
        for path in manifests(folder)
        if (content := path.read_bytes()) and not content.endswith(b"\n")
    ]
    return problems


def _check_shard(folder: Path, shard: Shard) -> Problem | None:
    path = folder / shard.file
    if not path.is_file():
        return Problem(shard.file, "it is missing")
    if path.stat().st_size != shard.bytes:
        return Problem(shard.file, f"it has {path.stat().st_size} bytes, not {shard.bytes}")
    return None if sha256_of(path) == shard.sha256 else Problem(shard.file, "its sha256 is another one")


def _duplicates(shards: Sequence[Shard]) -> list[Problem]:
    first: dict[str, str] = {}
    problems = []
    for shard in shards:
        for name in shard.ids:
            if name in first:
                problems.append(Problem(shard.file, f"its id {name!r} is in {first[name]} already"))
            first.setdefault(name, shard.file)
    return problems


def repair(folder: str | Path) -> list[Problem]:
    """Takes what is wrong out of a data set, so that the job which made it makes that part again.

    Returns:
        what was wrong.
    """
    folder = Path(folder)
    problems = verify(folder)
    bad = {problem.file for problem in problems}
    for path in manifests(folder):
        good = [shard for shard in read_shards(path) if shard.file not in bad]
        write_whole(path, "".join(f"{shard.to_line()}\n" for shard in good))
    for name in bad:
        if name.startswith("shard-"):
            (folder / name).unlink(missing_ok=True)
    return problems


def merge(sources: Sequence[str | Path], output: str | Path) -> int:
    """Makes one data set of several with the same header; files are linked where that is possible, else copied.

    Returns:
        the number of samples.

    Raises:
        ValueError: headers that differ, an id that is in two of them, or an output folder that is not empty.
    """
    folders, output = [Path(source) for source in sources], Path(output)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"output must be a new folder, got {output}, which is not empty.")
    header = read_header(folders[0])
    wanted = {key: value for key, value in header.items() if key not in VOLATILE}
    for folder in folders[1:]:
        check_header(read_header(folder), wanted, str(folder / HEADER))
    shards = [(folder, shard) for folder in folders for path in manifests(folder) for shard in read_shards(path)]
    twice = _duplicates([shard for _, shard in shards])
    if twice:
        raise ValueError(f"sources must not share samples: in {twice[0].file}, {twice[0].reason}.")
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folders[0] / HEADER, output / HEADER)
    for number, (folder, shard) in enumerate(shards):
        name = shard_name(0, number)
        _link_or_copy(folder / shard.file, output / name)
        append_line(output / manifest_name(0), replace(shard, file=name).to_line())
    return sum(len(shard.ids) for _, shard in shards)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
