"""Fetches Fashion-MNIST, which trains `ul-fashion`, as class folders of 32×32 PNG.

    python examples/data/fashion_mnist.py [--cache ~/.cache/ul_tokenizer/fashion-mnist] [--debs DIR | --hub]

60,000 training and 10,000 test images of ten kinds of clothing (Zalando, MIT licence), out of the Debian package
`dataset-fashion-mnist` (nothing is installed) or, with --hub, from `zalando-datasets/fashion_mnist`. The 28×28 images
get a black border of two pixels, so that the autoencoder's ratio divides them. CACHE/{train,test}/CLASS/NUMBER.png;
run again, it does nothing, and a run that was killed starts anew.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from debian_packages import extract_package, fetch_package  # type: ignore[import-not-found, unused-ignore]
from PIL import Image, ImageOps

PACKAGE = "dataset-fashion-mnist"
HUB_NAME = "zalando-datasets/fashion_mnist"
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
BORDER = 2
SPLITS = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
SHA256 = {  # of the uncompressed files, so that a package compressed anew still passes
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
Rows = Iterator[tuple[Image.Image, int]]


def folder_of(label: int) -> str:
    """A class's folder; sorted, the folders give the labels 0 … 9."""
    return f"{label}-{CLASSES[label]}"


def read_idx(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The bytes of a gzipped IDX file, in its shape.

    Raises:
        ValueError: it differs from the known data set.
    """
    content = gzip.decompress(path.read_bytes())
    if hashlib.sha256(content).hexdigest() != SHA256[path.stem]:
        raise ValueError(f"{path.name} must be Fashion-MNIST's, got a file with another checksum.")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def from_package(deb: Path, split: str) -> Rows:
    """(image, label) of a split, out of the Debian package."""
    with tempfile.TemporaryDirectory(prefix="fashion-mnist-") as unpacked:
        extract_package(deb, unpacked)
        prefix = Path(unpacked, "usr/share/datasets/fashion-mnist", SPLITS[split][0])
        images = read_idx(Path(f"{prefix}-images-idx3-ubyte.gz"))
        labels = read_idx(Path(f"{prefix}-labels-idx1-ubyte.gz"))
        for image, label in zip(images, labels, strict=True):
            yield Image.fromarray(image), int(label)


def from_hub(split: str) -> Rows:
    """(image, label) of a split, from the Hugging Face Hub."""
    import datasets  # an extra: pip install ul_tokenizer[data]

    for row in datasets.load_dataset(HUB_NAME, split=split):
        yield row["image"], row["label"]


def write_split(rows: Rows, folder: Path) -> int:
    """Writes class folders under a temporary name and renames them; returns the number of images."""
    partial = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    for label in range(len(CLASSES)):
        (partial / folder_of(label)).mkdir(parents=True)
    number = 0
    for number, (image, label) in enumerate(rows, 1):
        bordered = ImageOps.expand(image.convert("L"), BORDER, fill=0)
        bordered.save(partial / folder_of(label) / f"{number - 1:05d}.png")
    os.replace(partial, folder)
    return number


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/ul_tokenizer/fashion-mnist"), help="where to")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--debs", type=Path, help="a folder with the .deb file, instead of downloading it")
    source.add_argument("--hub", action="store_true", help=f"from {HUB_NAME} (needs the extra `data`)")
    options = parser.parse_args(arguments)
    cache = options.cache.expanduser()
    for split, (_, expected) in SPLITS.items():
        if (cache / split).exists():
            print(f"{cache / split} is complete")
            continue
        rows = from_hub(split) if options.hub else from_package(fetch_package(PACKAGE, options.debs or cache), split)
        count = write_split(rows, cache / split)
        if count != expected:
            raise SystemExit(f"{split} must have {expected} images, got {count}.")
        print(f"{cache / split}: {count} images")


if __name__ == "__main__":
    main()
