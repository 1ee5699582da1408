"""The tasks of a command: which file becomes which result, and the work on all of them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ul_tokenizer.cli.reporting import require
from ul_tokenizer.media.images import Skipped, find_images
from ul_tokenizer.media.videos import ANIMATION_SUFFIXES, VIDEO_SUFFIXES
from ul_tokenizer.progress import progress

LATENT_SUFFIX = ".safetensors"


class Kind(str, enum.Enum):
    """What a file shows."""

    image = "image"
    video = "video"


DECODED_SUFFIXES: Mapping[Kind, str] = {Kind.image: ".png", Kind.video: ".mp4"}
LATENT_SUFFIXES: Mapping[Kind, str] = dict.fromkeys(Kind, LATENT_SUFFIX)

# ---------------------------------------------------------------- which files


class FileTask(NamedTuple):
    """One input and its result."""

    source: Path
    name: str  # in messages: the path below the input folder
    target: Path
    kind: Kind


class Plan(NamedTuple):
    """What a command will do."""

    jobs: list[FileTask]
    skipped: list[Skipped]
    output: Path
    single: bool  # a file was named, rather than a folder

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of files among the jobs."""
        return frozenset(job.kind for job in self.jobs)


class FoundFiles(NamedTuple):
    """Files of the wanted kinds, and the others with the reason why they are left out."""

    wanted: dict[Path, Kind]
    skipped: list[Skipped]


def find_media(source: Path) -> FoundFiles:
    """Images and videos below a folder; or the file that was named, whatever its suffix."""
    if source.is_file():
        return FoundFiles({source: kind_of(source)}, [])
    images, others = find_images(source)
    videos = [skip.path for skip in others if skip.path.suffix.lower() in VIDEO_SUFFIXES]
    left_out = [
        skip if skip.path.is_dir() else Skipped(skip.path, "its suffix is not that of an image or a video")
        for skip in others
        if skip.path not in set(videos)
    ]
    return FoundFiles({path: kind_of(path) for path in sorted(images + videos)}, left_out)


def find_latents(source: Path) -> FoundFiles:
    """Latent files below a folder; or the file that was named."""
    from ul_tokenizer.cli.latent_file import is_video_latent

    if source.is_file():
        files, others = [source], []
    else:
        images, skipped = find_images(source)
        found = sorted([*images, *(skip.path for skip in skipped)])
        files = [path for path in found if path.suffix == LATENT_SUFFIX]
        others = [Skipped(path, f"it is not a {LATENT_SUFFIX} file") for path in found if path.suffix != LATENT_SUFFIX]
    return FoundFiles({path: Kind.video if is_video_latent(path) else Kind.image for path in files}, others)


def kind_of(path: Path) -> Kind:
    """Video for a video's suffix and for animated GIF, WebP and APNG files; otherwise image."""
    suffix = path.suffix.lower()
    is_video = suffix in VIDEO_SUFFIXES or (suffix in ANIMATION_SUFFIXES and _is_animated(path))
    return Kind.video if is_video else Kind.image


def _is_animated(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # damaged; whoever reads the image says so
        return False


# ---------------------------------------------------------------- planning


def plan_media(
    source: Path, output: Path, suffixes: Mapping[Kind, str], force: bool, of_videos: Mapping[str, object]
) -> Plan:
    """As `plan`, for images and videos.

    Args:
        source: a file or a folder.
        output: as for `plan`.
        suffixes: as for `plan`.
        force: as for `plan`.
        of_videos: options that only videos have, by flag; those that are not None or False are given.

    Raises:
        UsageError: such an option is given, but there is no video.
        ValueError: as `plan`.
    """
    made = plan(source, output, find_media, suffixes, force)
    for flag, value in of_videos.items():
        given = value is not None and value is not False
        require(not given or Kind.video in made.kinds, f"{flag} is for videos, and {source} holds none.")
    return made


def plan(
    source: Path, output: Path, find: Callable[[Path], FoundFiles], suffixes: Mapping[Kind, str], force: bool
) -> Plan:
    """Which inputs become which results; checks all results before any work.

    Args:
        source: a file or a folder.
        output: a folder; for a single file also the result itself, by its suffix.
        find: lists the inputs in `source`.
        suffixes: the results' suffix for each kind of input.
        force: whether results that exist are overwritten.

    Raises:
        ValueError: no inputs, or a result that exists, is an input or can't be one.
    """
    single = source.is_file()
    found, skipped = find(source)
    if not single and output.resolve() != source.resolve():  # results of an earlier call are no inputs
        found = {path: kind for path, kind in found.items() if output.resolve() not in path.resolve().parents}
        skipped = [skip for skip in skipped if output.resolve() not in skip.path.resolve().parents]
    if single and output.suffix == suffixes[found[source]] and not output.is_dir():
        jobs = [FileTask(source, source.name, output, found[source])]
    else:
        _check_folder(output, single, [suffixes[kind] for kind in found.values()])
        root = source.parent if single else source
        names = {path: path.relative_to(root) for path in found}
        jobs = [
            FileTask(path, names[path].as_posix(), _target(output / names[path], suffixes[kind]), kind)
            for path, kind in found.items()
        ]
    made = Plan(jobs, skipped, output, single)
    _check(made, source, force)
    return made


def _check_folder(output: Path, single: bool, suffixes: list[str]) -> None:
    """Refuses a file's name as the output folder."""
    if output.suffix in (LATENT_SUFFIX, *DECODED_SUFFIXES.values()) and not output.is_dir():
        wanted = f"a folder or a {suffixes[0]} file" if single else "a folder, as IN is one"
        raise ValueError(f"--output must be {wanted}, got {output}.")


def _target(path: Path, suffix: str) -> Path:
    """The whole name stays, so that a.jpg and a.png have different results; only a latent file's suffix goes."""
    name = path.name.removesuffix(LATENT_SUFFIX) if suffix != LATENT_SUFFIX else path.name
    return path.with_name(name + suffix)


def _check(plan: Plan, source: Path, force: bool) -> None:
    if not plan.jobs:
        raise ValueError(
            f"IN must hold at least one file of a known kind, got {source} with {len(plan.skipped)} others."
        )
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
            raise ValueError(f"--output must lie in a folder, but {blocking} is a file.")


# ---------------------------------------------------------------- walking over them


def run(plan: Plan, done: str, work: Callable[[FileTask], object]) -> list[Skipped]:
    """Works on every job; a file that can't be read is named, counted and skipped.

    Args:
        plan: the jobs.
        done: what was done to a file, e.g. "encoded".
        work: reads a job's source and writes its target.

    Returns:
        the files that were skipped.

    Raises:
        ValueError: a single input can't be read, or no file of a folder can be.
    """
    skipped = list(plan.skipped)
    with progress(done, len(plan.jobs), "files", shown=not plan.single) as bar:
        for skip in skipped:
            bar.write(f"skipped {skip.path}: {skip.reason}")
        for job in plan.jobs:
            try:
                work(job)
            except ValueError as error:
                if plan.single:
                    raise
                skipped.append(Skipped(job.source, str(getattr(error, "reason", error)).rstrip(".")))
                bar.write(f"skipped {job.source}: {skipped[-1].reason}")
            bar.update()
        total = len(plan.jobs) + len(plan.skipped)
        if len(skipped) == total:
            raise ValueError(f"none of {total} files could be {done}.")
        note = f", {len(skipped)} skipped" if skipped else ""
        bar.write(f"{done} {total - len(skipped)} of {total} files into {plan.output}{note}")
    return skipped
