"""Fetches emoji of three vendors as 64×64 pictures on white, with captions and classes, out of npm packages.

    python examples/data/emoji.py [--cache ~/.cache/ul_tokenizer/emoji] [--packages DIR]

| vendor | pictures | licence of the pictures | package |
|---|---|---|---|
| noto | Google's Noto Emoji | Apache-2.0 | emoji-datasource-google |
| twemoji | Twitter's Twemoji | CC-BY-4.0 | emoji-datasource-twitter |
| fluent | Microsoft's Fluent Emoji, 3D | MIT | @lobehub/fluent-emoji-3d |

Nothing is installed: `npm pack` downloads the archives, whose sha512 is checked. Skin tones are left out. The result is
CACHE/{train,validation}/VENDOR/CODE.png with a metadata.jsonl in each split, in the format of the library `datasets`:

    file_name  noto/1f353.png
    caption    strawberry, food fruit
    name       strawberry
    label      7, which is 9 · vendor + group
    group, subgroup, vendor, code

All pictures of one emoji are in the same split, and so are an emoji's women, men and persons, and its mirror images:
the split depends on a hash of the code points without those that say so. Of equal pictures the one with the shortest
name stays: Norway's flag is Bouvet Island's as well. Run again, the script does nothing; a run that was killed starts
anew.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from debian_packages import run  # type: ignore[import-not-found, unused-ignore]  # beside this script
from PIL import Image

SIZE = 64
GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)  # in Unicode's order; its tenth group has skin tones and hair only
VALIDATION_SHARE = 16  # one emoji in so many is held out
TABLE = "package/emoji.json"


class Vendor(NamedTuple):
    """Where a vendor's pictures are."""

    name: str
    package: str
    version: str
    pictures: str  # path of one in the archive, with {code} for its code points
    sha512: str  # of the archive, as npm writes it

    @property
    def archive(self) -> str:
        """Its file name, as `npm pack` chooses it."""
        return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


VENDORS = (
    Vendor(
        "noto",
        "emoji-datasource-google",
        "16.0.0",
        "package/img/google/64/{code}.png",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    ),
    Vendor(
        "twemoji",
        "emoji-datasource-twitter",
        "16.0.0",
        "package/img/twitter/64/{code}.png",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
    ),
    Vendor(
        "fluent",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "package/assets/{code}.webp",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
)


class Emoji(NamedTuple):
    """What the table says of one emoji."""

    code: str  # code points in hexadecimal, joined by hyphens
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str

    @property
    def caption(self) -> str:
        """Its name and keywords."""
        return ", ".join((self.name, *self.keywords))

    @property
    def split(self) -> str:
        """`validation` or `train`."""
        digest = hashlib.sha256(kind_of(self.code).encode()).digest()
        return "validation" if digest[0] % VALIDATION_SHARE == 0 else "train"


# ---------------------------------------------------------------- the table


def read_table(content: bytes) -> list[Emoji]:
    """All emoji of one of the nine groups, in Unicode's order."""
    rows = sorted(json.loads(content), key=lambda row: int(row["sort_order"]))
    return [emoji_of(row) for row in rows if row["category"] in GROUPS]


def emoji_of(row: Mapping[str, Any]) -> Emoji:
    """One row of the table."""
    short_names = list(map(plain, row["short_names"]))
    name = without_print_terms(plain(row["name"]), short_names)
    if row["subcategory"] == "country-flag":
        short_names = []  # they are country codes
    keywords: list[str] = []
    for keyword in (*short_names, plain(row["subcategory"])):
        known = set(re.findall(r"\w+", " ".join((name, *keywords))))
        if not known.issuperset(re.findall(r"\w+", keyword)):
            keywords.append(keyword)
    return Emoji(row["unified"].lower(), name, tuple(keywords), row["category"], row["subcategory"])


def plain(text: str) -> str:
    """Lower case, with spaces between words: RED APPLE, flag-eg and raising_hand have one form."""
    return " ".join(re.sub(r"[-_]+", " ", text).lower().split())


def without_print_terms(name: str, short_names: list[str]) -> str:
    """The name without "black", "white" and "heavy" where they speak of print: the heavy black heart is red.

    Where they describe the picture, as in "black cat", a short name has them as well.
    """
    descriptive = set(" ".join(short_names).split())
    return " ".join(word for word in name.split() if word not in {"black", "white", "heavy"} - descriptive)


def kind_of(code: str) -> str:
    """The code points that tell one kind of emoji from another, without gender, direction and style.

    A woman running to the right is a person running.
    """
    meant = re.sub("-200d-(2640|2642|27a1)", "", code.replace("-fe0f", ""))
    return re.sub(r"\b(1f468|1f469)\b", "1f9d1", meant)


# ---------------------------------------------------------------- pictures


def fetch_archive(vendor: Vendor, folder: Path) -> Path:
    """Downloads a vendor's archive into `folder` unless it is there.

    Raises:
        SystemExit: npm is missing or fails.
        ValueError: the archive is another one than the known one.
    """
    archive = folder / vendor.archive
    if not archive.exists():
        if shutil.which("npm") is None:
            raise SystemExit(f"{vendor.archive} must be in --packages if npm is not installed.")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            run("npm", "pack", f"{vendor.package}@{vendor.version}", "--silent", "--pack-destination", partial)
            os.replace(Path(partial, vendor.archive), archive)
    if base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() != vendor.sha512:
        raise ValueError(f"{archive} must be npm's {vendor.package} {vendor.version}, got another file.")
    return archive


def read_archive(archive: Path, wanted: set[str]) -> dict[str, bytes]:
    """Contents of those of the wanted paths that the archive has."""
    with tarfile.open(archive) as opened:
        members = (member for member in opened if member.name in wanted and member.isfile())
        return {member.name: file.read() for member in members if (file := opened.extractfile(member))}


def on_white(content: bytes) -> Image.Image:
    """A picture as RGB of SIZE × SIZE, in the middle of a white square if it is not square itself."""
    with Image.open(io.BytesIO(content)) as opened:
        picture = opened.convert("RGBA")
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def pictures_of(vendor: Vendor, archive: Path, table: list[Emoji]) -> list[tuple[Emoji, Image.Image]]:
    """Every emoji that the vendor has drawn, each picture once."""
    paths = {emoji: vendor.pictures.format(code=emoji.code) for emoji in table}
    contents = read_archive(archive, set(paths.values()))
    drawn = [(emoji, on_white(contents[path])) for emoji, path in paths.items() if path in contents]
    shortest: dict[bytes, Emoji] = {}
    for emoji, picture in drawn:
        pixels = picture.tobytes()
        shortest[pixels] = min(shortest.get(pixels, emoji), emoji, key=lambda one: len(one.name))
    kept = set(shortest.values())
    return [(emoji, picture) for emoji, picture in drawn if emoji in kept]


# ---------------------------------------------------------------- the cache


def metadata_of(emoji: Emoji, vendor: Vendor) -> dict[str, Any]:
    """The picture's line in metadata.jsonl."""
    return {
        "file_name": f"{vendor.name}/{emoji.code}.png",
        "caption": emoji.caption,
        "name": emoji.name,
        "label": len(GROUPS) * VENDORS.index(vendor) + GROUPS.index(emoji.group),
        "group": emoji.group,
        "subgroup": emoji.subgroup,
        "vendor": vendor.name,
        "code": emoji.code,
    }


def write_cache(cache: Path, archives: Mapping[Vendor, Path]) -> Counter[str]:
    """Writes both splits under temporary names and renames them; returns the number of pictures of each."""
    table = read_table(read_archive(archives[VENDORS[0]], {TABLE})[TABLE])
    lines: dict[str, list[str]] = {"train": [], "validation": []}
    for split in lines:
        shutil.rmtree(cache / f"{split}.part", ignore_errors=True)
    for vendor in VENDORS:
        for split in lines:
            (cache / f"{split}.part" / vendor.name).mkdir(parents=True)
        for emoji, picture in pictures_of(vendor, archives[vendor], table):
            metadata = metadata_of(emoji, vendor)
            picture.save(cache / f"{emoji.split}.part" / metadata["file_name"], optimize=True)
            lines[emoji.split].append(json.dumps(metadata, ensure_ascii=False) + "\n")
    for split, its_lines in lines.items():
        (cache / f"{split}.part" / "metadata.jsonl").write_text("".join(its_lines), encoding="utf-8")
    for split in lines:
        shutil.rmtree(cache / split, ignore_errors=True)
        os.replace(cache / f"{split}.part", cache / split)
    return Counter({split: len(its_lines) for split, its_lines in lines.items()})


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/ul_tokenizer/emoji"), help="where to")
    parser.add_argument("--packages", type=Path, help="folder with the archives (.tgz); missing ones are fetched")
    options = parser.parse_args(arguments)
    cache = options.cache.expanduser()
    if all((cache / split / "metadata.jsonl").exists() for split in ("train", "validation")):
        print(f"{cache} is complete")
        return
    folder = options.packages or cache / "packages"
    counts = write_cache(cache, {vendor: fetch_archive(vendor, folder) for vendor in VENDORS})
    shutil.rmtree(cache / "packages", ignore_errors=True)
    print(f"{cache}: {counts['train']} pictures for training, {counts['validation']} for validation")


if __name__ == "__main__":
    main()
