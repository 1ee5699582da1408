"""Writes MODEL_CARD.md: the cards of all bundled models on one page, with paths from the repository's root.

python conversion/model_card.py

Each card is the README.md in a model's folder. Edit that file, then run this script.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ul_tokenizer.pretrained import bundled_names
from ul_tokenizer.publish.card_merge import Card

ROOT = Path(__file__).resolve().parent.parent
PRETRAINED = "ul_tokenizer/pretrained"
FIRST = ("ul-photo-f8", "ul-fashion", "ul-emoji", "ul-video")  # in this order; others follow
MODELS = tuple(sorted(bundled_names(), key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)))


def compose(root: Path, models: Sequence[str]) -> str:
    """Joins the cards of `models` to one page with the metadata of the first."""
    cards = [_at_root((root / PRETRAINED / name / "README.md").read_text(encoding="utf-8"), name) for name in models]
    return "\n".join([cards[0], *(Card.parsed(card).body for card in cards[1:])])


def _at_root(card: str, name: str) -> str:
    """Puts the model's folder before the names of pictures."""
    return re.sub(r"\]\((?=[\w-]+\.png\))", f"]({PRETRAINED}/{name}/", card)


if __name__ == "__main__":
    (ROOT / "MODEL_CARD.md").write_text(compose(ROOT, MODELS), encoding="utf-8")
