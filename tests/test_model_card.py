"""MODEL_CARD.md quotes the figures in the models' folders and is composed of the cards there.

Whether the weights reach these figures is measured in `tests/test_bundled_model.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import generation_tables
import pytest

from conversion import model_card
from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsPipeline
from ul_tokenizer.evaluation.sweep import weights_sha256
from ul_tokenizer.models.repository import load_prior
from ul_tokenizer.pretrained import bundled_names

ROOT = Path(__file__).parent.parent
PRETRAINED = ROOT / "ul_tokenizer" / "pretrained"
MODEL, FASHION = PRETRAINED / "ul-photo-f8", PRETRAINED / "ul-fashion"


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


def test_bits_and_the_psnr_of_another_images_latent_are_those_of_the_metrics_file(
    card: str, metrics: dict[str, Any]
) -> None:
    assert f"prior's ELBO | {metrics['bits_per_pixel']:.3f} |" in card
    assert f"1 step | {metrics['psnr_with_another_images_latent']:.2f} dB |" in card
    assert f"{metrics['images']} random {metrics['resolution']}×{metrics['resolution']} crops" in card


def test_the_pictures_that_the_card_shows_exist(card: str) -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", card)
    assert len(pictures) == 4
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_the_card_is_composed_of_the_cards_in_the_models_folders(card: str) -> None:
    assert card == model_card.compose(ROOT, model_card.MODELS)
    assert set(model_card.MODELS) == set(bundled_names())
    for name in model_card.MODELS:
        assert f"\n# {name}\n" in card
        assert (PRETRAINED / name / "README.md").read_text(encoding="utf-8").startswith("---\nlicense: apache-2.0\n")


# ---------------------------------------------------------------- ul-video


def test_the_figures_of_clips_are_those_of_the_metrics_file(card: str) -> None:
    metrics = json.loads((PRETRAINED / "ul-video" / "metrics.json").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| (\d) \|" + r" ([\d.]+) \|" * 6 + "$", card, flags=re.MULTILINE)
    assert len(rows) == 3
    for step, *figures in rows:
        expected = [
            f"{metrics[kind][f'{name}_{step}']:.{digits}f}"
            for kind in ("videos", "pans")
            for name, digits in (("psnr_of_mean_mse", 2), ("mean_of_psnr", 2), ("flicker", 4))
        ]
        assert figures == expected
    kinds = [metrics["videos"], metrics["pans"]]
    for words, key, digits in (
        ("by the prior's ELBO", "bits_per_pixel", 3),
        ("noise for each frame", "flicker_4_noise_per_frame", 4),
    ):
        assert f"{words} | {kinds[0][key]:.{digits}f} | {kinds[1][key]:.{digits}f} |" in card
    one, other = (kind["frame_by_frame"] for kind in kinds)
    assert f"1 step: bits per pixel | {one['bits_per_pixel']:.3f} | {other['bits_per_pixel']:.3f} |" in card
    assert f"its PSNR of the mean MSE (dB) | {one['psnr_of_mean_mse']:.2f} | {other['psnr_of_mean_mse']:.2f} |" in card
    assert f"its flicker | {one['flicker']:.4f} | {other['flicker']:.4f} |" in card
    for key in ("overlapping", "overlapping_one_window", "side_by_side", "side_by_side_one_window"):
        assert " and ".join(f"{kind['seams'][key]:.4f}" for kind in kinds) in card


def test_the_metrics_of_clips_name_the_bundled_weights() -> None:
    metrics = json.loads((PRETRAINED / "ul-video" / "metrics.json").read_text(encoding="utf-8"))
    ours = weights_sha256(UnifiedLatentsAutoencoder.from_pretrained("ul-video"), load_prior("ul-video"))
    assert metrics["weights_sha256"] == ours


# ---------------------------------------------------------------- ul-fashion


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return generation_tables.read(FASHION / "evaluation.jsonl")


def test_every_table_on_generation_is_made_from_the_measured_rows(card: str, rows: list[dict[str, Any]]) -> None:
    tables = generation_tables.tables(rows)
    assert set(tables) == {"headline", "solvers", "guidance", "decoder", "decoded", "stages", "reconstruction"}
    for name, table in tables.items():
        assert f"\n{table}\n" in card, name
    assert len(tables["solvers"].splitlines()) == 2 + 5  # 4, 8, 16, 32 and 64 steps


def test_the_measured_rows_name_the_bundled_weights(rows: list[dict[str, Any]]) -> None:
    pipeline = UnifiedLatentsPipeline.from_pretrained("ul-fashion")
    ours = weights_sha256(pipeline.transformer, pipeline.vae)
    mine = [r for r in rows if r["measured"] == "generation" and r["generator"] == "base" and not r["unconditional"]]
    assert mine and {row["weights_sha256"] for row in mine} == {ours}
