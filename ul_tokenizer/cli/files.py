"""Which files a command reads and writes, and the walk over them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ul_tokenizer.media.images import FoundImages, Skipped, find_images
from ul_tokenizer.media.videos import VIDEO_SUFFIXES

LATENT_SUFFIX = ".safetensors"

# ---------------------------------------------------------------- which files


class FileTask(NamedTuple):
    """One input and its result."""

    source: Path
    name: str  # what messages call it
    target: Path


class Plan(NamedTuple):
    """What a command will do."""

    jobs: list[FileTask]
    skipped: list[Skipped]
    output: Path
    single: bool  # a file was named, rather than a folder


def find_images_or_file(source: Path) -> FoundImages:
    """Images below a folder; or the file that was named, whatever its suffix."""
    return FoundImages([source], []) if source.is_file() else find_images(source)


def has_videos(source: Path) -> bool:
    """Whether it is a video or an animation, or a folder with videos and no images."""
    if source.is_file():
        return source.suffix.lower() in {*VIDEO_SUFFIXES, ".gif", ".apng"}
    return bool(find_videos(source).images) and not find_images(source).images


def find_videos(source: Path) -> FoundImages:
    """Videos below a folder; or the file that was named, whatever its suffix."""
    if source.is_file():
        return FoundImages([source], [])
    files = [p for p in sorted(source.rglob("*")) if p.is_file() and not _is_hidden(p.relative_to(source))]
    return FoundImages(
        [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES],
        [Skipped(path, "it is no video") for path in files if path.suffix.lower() not in VIDEO_SUFFIXES],
    )


def find_latents_or_file(source: Path) -> FoundImages:
    """Latent files below a folder; or the file that was named."""
    if source.is_file():
        return FoundImages([source], [])
    files = [p for p in sorted(source.rglob("*")) if p.is_file() and not _is_hidden(p.relative_to(source))]
    latents = [path for path in files if path.suffix == LATENT_SUFFIX]
    others = [Skipped(path, f"it is no {LATENT_SUFFIX} file") for path in files if path.suffix != LATENT_SUFFIX]
    return FoundImages(latents, others)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def plan(source: Path, output: Path, find: Callable[[Path], FoundImages], suffix: str, force: bool) -> Plan:
    """Which inputs become which results; checks all results before any work.

    Raises:
        ValueError: no inputs, or a result that exists, is an input or can't be one.
    """
    single = source.is_file()
    paths, skipped = find(source)
    if not single and output.resolve() != source.resolve():  # results of an earlier call are no inputs
        paths = [path for path in paths if output.resolve() not in path.resolve().parents]
        skipped = [skip for skip in skipped if output.resolve() not in skip.path.resolve().parents]
    if single and output.suffix == suffix and not output.is_dir():
        jobs = [FileTask(source, source.name, output)]
    else:
        root = source.parent if single else source
        jobs = [
            FileTask(p, p.relative_to(root).as_posix(), _target(output / p.relative_to(root), suffix)) for p in paths
        ]
    made = Plan(jobs, skipped, output, single)
    _check(made, source, force)
    return made


def _target(path: Path, suffix: str) -> Path:
    """The whole name stays, so that a.jpg and a.png don't meet; only that of latents goes."""
    name = path.name.removesuffix(LATENT_SUFFIX) if suffix != LATENT_SUFFIX else path.name
    return path.with_name(name + suffix)


def _check(plan: Plan, source: Path, force: bool) -> None:
    if not plan.jobs:
        raise ValueError(f"IN must hold at least one file to work on, got {source} with {len(plan.skipped)} others.")
    sources = {job.source.resolve() for job in plan.jobs}
    taken = [job.target for job in plan.jobs if job.target.exists()]
    for target in taken:
        if target.is_dir() or target.resolve() in sources:
            raise ValueError(f"The result {target} would replace {'a folder' if target.is_dir() else 'an input'}.")
    if taken and not force:
        more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
        raise ValueError(f"{taken[0]}{more} exists already; --force overwrites.")
    for target in {job.target for job in plan.jobs}:
        blocking = next((parent for parent in target.parents if parent.exists() and not parent.is_dir()), None)
        if blocking is not None:
            raise ValueError(f"--output needs {blocking} to be a folder, which is a file.")


# ---------------------------------------------------------------- walking over them


def run(plan: Plan, done: str, work: Callable[[FileTask], object]) -> list[Skipped]:
    """Works on every job; what can't be read is named, counted and skipped.

    Returns:
        what was skipped.

    Raises:
        ValueError: a single input that can't be read, or a folder of which nothing can.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    skipped = list(plan.skipped)
    for skip in skipped:
        console.print(f"skipped {skip.path}: {skip.reason}")
    with _progress(console, plan) as progress:
        for job in progress.track(plan.jobs, description=done):
            try:
                work(job)
            except ValueError as error:
                if plan.single:
                    raise
                skipped.append(Skipped(job.source, str(getattr(error, "reason", error)).rstrip(".")))
                console.print(f"skipped {skipped[-1].path}: {skipped[-1].reason}")
    total = len(plan.jobs) + len(plan.skipped)
    if len(skipped) == total:
        raise ValueError(f"none of {total} files could be {done}.")
    note = f", {len(skipped)} skipped" if skipped else ""
    console.print(f"{done} {total - len(skipped)} of {total} files into {plan.output}{note}")
    return skipped


def _progress(console: Console, plan: Plan) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=plan.single or not sys.stderr.isatty())
