"""Reconstructions that somebody else made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ul_tokenizer.evaluation.job import evaluate_reconstruction
from ul_tokenizer.evaluation.samples import Crops


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Twelve noisy images, and the same ones as JPEGs of quality 50."""
    originals, again = tmp_path / "originals", tmp_path / "again"
    originals.mkdir()
    again.mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        smooth = random.integers(0, 256, (4, 5, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        image = Image.fromarray(smooth)
        image.save(originals / f"{number:02d}.png")
        image.save(again / f"{number:02d}.jpg", quality=50, optimize=True)
    return originals, again


def measure(data: Path, *models: str, crops: Crops | None = None) -> list[dict[str, object]]:
    return evaluate_reconstruction(data, models, crops=crops, features=[], lpips=None, device="cpu")


@pytest.mark.parametrize("crops", [None, Crops(crop="random", crop_size=16, num_samples=30)])
def test_a_folder_of_jpegs_has_the_figures_of_the_codec(folders: tuple[Path, Path], crops: Crops | None) -> None:
    originals, again = folders
    (folder,) = measure(originals, f"folder:{again}", crops=crops)
    assert "bits_per_pixel" not in folder["metrics"]  # type: ignore[operator]
    if crops is None:
        (codec,) = measure(originals, "jpeg:50")
        assert folder["metrics"]["mean_psnr"] == codec["metrics"]["mean_psnr"]  # type: ignore[index]
    else:
        assert folder["metrics"]["mean_psnr"]["value"] > 20  # type: ignore[index]  # the same places of both


def test_folders_that_are_no_pairs_are_refused_in_one_sentence(folders: tuple[Path, Path]) -> None:
    originals, again = folders
    Image.open(again / "03.jpg").resize((20, 32)).save(again / "03.jpg")
    with pytest.raises(ValueError, match=r"must hold images of the originals' sizes, got 32×20 for 32×40 in 03.jpg\.$"):
        measure(originals, f"folder:{again}")
    (again / "03.jpg").rename(again / "03b.jpg")
    with pytest.raises(ValueError, match=r"must hold images of the originals' names, got 03b in place of 03\.$"):
        measure(originals, f"folder:{again}")
    (again / "03b.jpg").unlink()
    with pytest.raises(ValueError, match=r"again must hold as many images as \S+originals, 12, got 11\.$"):
        measure(originals, f"folder:{again}")
