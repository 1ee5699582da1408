"""A page for each bundled model: the card in its folder, with its pictures."""

from __future__ import annotations

import re
from pathlib import Path

from ul_tokenizer.pretrained import bundled_names
from ul_tokenizer.publish.card_merge import Card

PRETRAINED = "ul_tokenizer/pretrained"
TABLE_MARK = "<!-- bundled models -->"
PICTURES = (".png", ".svg", ".webp")


def page_uris(root: Path) -> dict[str, str]:
    """Model → the page with its card."""
    return {name: f"models/{name}/index.md" for name in bundled_names()}


def pages(root: Path) -> dict[str, str | bytes]:
    """The pages, and the pictures in the models' folders.

    Raises:
        OSError: a card is missing.
    """
    made: dict[str, str | bytes] = {}
    for name, uri in page_uris(root).items():
        folder = root / PRETRAINED / name
        body = Card.parsed((folder / "README.md").read_text(encoding="utf-8")).body
        made[uri] = body
        for picture in sorted(path for path in folder.iterdir() if path.suffix in PICTURES):
            made[f"models/{name}/{picture.name}"] = picture.read_bytes()
    return made


def table(root: Path) -> str:
    """All bundled models with the first sentence of their cards and their size."""
    lines = ["| model | what it is | MB |", "|---|---|--:|"]
    for name in page_uris(root):
        folder = root / PRETRAINED / name
        body = Card.parsed((folder / "README.md").read_text(encoding="utf-8")).body
        size = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e6
        lines.append(f"| [{name}]({name}/index.md) | {_first_sentence(body)} | {size:.1f} |")
    return "\n".join(lines)


def _first_sentence(body: str) -> str:
    """The first sentence below the heading, on one line and without links."""
    paragraph = body.split("\n\n")[1]
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0]
