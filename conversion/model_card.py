"""Writes MODEL_CARD.md: the cards of the bundled models, one after the other, with paths from the repository's root.

python conversion/model_card.py

The cards are the README.md in the models' folders; only those are edited.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRETRAINED = "ul_tokenizer/pretrained"
MODELS = ("ul-photo-f8", "ul-fashion", "ul-video")
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n\n", re.DOTALL)


def compose(root: Path, models: Sequence[str]) -> str:
    """The cards of `models` as one page, with the first one's front matter."""
    cards = [_at_root((root / PRETRAINED / name / "README.md").read_text(encoding="utf-8"), name) for name in models]
    return "\n".join([cards[0], *(_FRONT_MATTER.sub("", card) for card in cards[1:])])


def _at_root(card: str, name: str) -> str:
    """With the folder before the names of pictures."""
    return re.sub(r"\]\((?=[\w-]+\.png\))", f"]({PRETRAINED}/{name}/", card)


if __name__ == "__main__":
    (ROOT / "MODEL_CARD.md").write_text(compose(ROOT, MODELS), encoding="utf-8")
