"""Packs a folder of photographs into one small .tar of WebP, to be taken to a machine that can't fetch packages.

    python examples/data/pack_photos.py [~/.cache/ul_tokenizer/debian-photos] -o photos.tar [--quality 92]

There, `tar -xf photos.tar` gives the folders train and validation again, for --train_data_dir and
--validation_data_dir. Sides are at most 512 and 1,024 pixels, as `debian_photos.py` makes them. Photos for training
are compressed with losses, which crops that are scaled down hardly show; those for validation stay as they are. The
same photos give the same bytes. The photos' licences hold for the pack as well: don't publish it.
"""

from __future__ import annotations

import argparse
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from debian_photos import PICTURES, downscale  # type: ignore[import-not-found, unused-ignore]  # beside this script
from PIL import Image


def packed(path: Path, quality: int | None) -> bytes:
    """A photograph as WebP; without losses if `quality` is None."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        downscale(image).save(buffer, "WEBP", lossless=quality is None, quality=80 if quality is None else quality)
    return buffer.getvalue()


def members(cache: Path, quality: int) -> Iterator[tuple[str, bytes]]:
    """(name, content) of all files of the pack, in order.

    Raises:
        SystemExit: a split has no photographs.
    """
    for split, its_quality in (("train", quality), ("validation", None)):
        paths = sorted(path for path in (cache / split).glob("*") if path.suffix in PICTURES)
        if not paths:
            raise SystemExit(f"{cache / split} must hold photographs, got none: run debian_photos.py first.")
        for path in paths:
            yield f"{split}/{path.stem}.webp", packed(path, its_quality)


def write_pack(cache: Path, target: Path, quality: int) -> None:
    """Writes the .tar under a temporary name and renames it."""
    partial = target.with_name(f"{target.name}.part")
    with tarfile.open(partial, "w") as archive:
        for name, content in members(cache, quality):
            info = tarfile.TarInfo(name)  # without time and owner
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    os.replace(partial, target)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, nargs="?", default=Path("~/.cache/ul_tokenizer/debian-photos"))
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .tar, which is replaced if it exists")
    parser.add_argument("--quality", type=int, default=92, choices=range(1, 101), metavar="1…100", help="(%(default)s)")
    options = parser.parse_args(arguments)
    write_pack(options.cache.expanduser(), options.output, options.quality)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
