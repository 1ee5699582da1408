"""MODEL_CARD.md quotes the figures that were measured, and the model's own folder carries the same card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "ul_tokenizer" / "pretrained" / "ul-photo-f8"


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MODEL / "metrics.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def card() -> str:
    return (ROOT / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_the_table_of_psnrs_is_that_of_the_metrics_file(card: str, metrics: dict[str, Any]) -> None:
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", card, flags=re.MULTILINE)
    assert {step: (float(a), float(b)) for step, a, b in rows} == {
        step: (round(metrics["psnr_of_mean_mse"][step], 2), round(metrics["mean_of_psnr"][step], 2))
        for step in metrics["psnr_of_mean_mse"]
    }


def test_bits_and_the_cost_of_another_images_latent_are_those_of_the_metrics_file(
    card: str, metrics: dict[str, Any]
) -> None:
    assert f"prior's ELBO | {metrics['bits_per_pixel']:.3f} |" in card
    assert f"1 step | {metrics['psnr_with_another_images_latent']:.2f} dB |" in card
    assert f"{metrics['images']} random {metrics['resolution']}×{metrics['resolution']} crops" in card


def test_the_pictures_that_the_card_shows_exist(card: str) -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", card)
    assert len(pictures) == 2
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_the_models_folder_carries_the_same_card_with_its_pictures_beside_it(card: str) -> None:
    own = (MODEL / "README.md").read_text(encoding="utf-8")
    assert own == card.replace("ul_tokenizer/pretrained/ul-photo-f8/", "")
