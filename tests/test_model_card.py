"""MODEL_CARD.md is composed of the cards in the models' folders.

`tests/test_quoted_figures.py` compares the figures in them with the measured files, and `tests/test_bundled_model.py`
measures whether the weights reach them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from conversion import model_card
from ul_tokenizer import UnifiedLatentsPipeline
from ul_tokenizer.evaluation.weights import weights_sha256
from ul_tokenizer.pretrained import bundled_names

ROOT = Path(__file__).parent.parent
PRETRAINED = ROOT / "ul_tokenizer" / "pretrained"
FASHION = PRETRAINED / "ul-fashion"


@pytest.fixture(scope="module")
def card() -> str:
    return (ROOT / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_the_pictures_that_the_card_shows_exist(card: str) -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", card)
    assert len(pictures) == 6
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_the_card_is_composed_of_the_cards_in_the_models_folders(card: str) -> None:
    assert card == model_card.compose(ROOT, model_card.MODELS)
    assert set(model_card.MODELS) == set(bundled_names())
    for name in model_card.MODELS:
        assert f"\n# {name}\n" in card
        assert (PRETRAINED / name / "README.md").read_text(encoding="utf-8").startswith("---\nlicense: apache-2.0\n")


# ---------------------------------------------------------------- ul-fashion


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FASHION / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_measured_rows_name_the_bundled_weights(rows: list[dict[str, Any]]) -> None:
    pipeline = UnifiedLatentsPipeline.from_pretrained("ul-fashion")
    ours = weights_sha256(pipeline.transformer, pipeline.vae)
    mine = [r for r in rows if r["measured"] == "generation" and r["generator"] == "base" and not r["unconditional"]]
    assert mine and {row["weights_sha256"] for row in mine} == {ours}
