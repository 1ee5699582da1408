"""The recipe of Fashion-MNIST, run on a small package of the same layout."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "data"
pytestmark = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb on this machine")
COUNTS = {"train": 20, "test": 10}


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, with a package of 30 images in `tmp_path/debs` as the one that it knows."""
    monkeypatch.syspath_prepend(str(RECIPES))
    sys.modules.pop("fashion_mnist", None)
    module = importlib.import_module("fashion_mnist")
    prefixes = {split: prefix for split, (prefix, _) in module.SPLITS.items()}
    monkeypatch.setattr(module, "SPLITS", {split: (prefix, COUNTS[split]) for split, prefix in prefixes.items()})
    monkeypatch.setattr(module, "SHA256", build_package(tmp_path, prefixes))
    return module


def build_package(folder: Path, prefixes: dict[str, str]) -> dict[str, str]:
    """Builds the package; returns the checksums of its files."""
    tree = folder / "tree"
    data = tree / "usr/share/datasets/fashion-mnist"
    data.mkdir(parents=True)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: dataset-fashion-mnist\nVersion: 1\nArchitecture: all\nMaintainer: t <t@t>\nDescription: t\n"
    )
    checksums = {}
    for split, prefix in prefixes.items():
        labels = np.arange(COUNTS[split], dtype=np.uint8) % 10
        images = np.zeros((len(labels), 28, 28), np.uint8) + labels[:, None, None] * 20 + 1
        for name, values in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            content = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()
            (data / f"{name}.gz").write_bytes(gzip.compress(content))
            checksums[name] = hashlib.sha256(content).hexdigest()
    (folder / "debs").mkdir()
    deb = folder / "debs" / "dataset-fashion-mnist_1_all.deb"
    subprocess.run(["dpkg-deb", "-b", str(tree), str(deb)], check=True, capture_output=True)
    return checksums


def run(recipe: ModuleType, tmp_path: Path) -> Path:
    recipe.main(["--cache", str(tmp_path / "cache"), "--debs", str(tmp_path / "debs")])
    return tmp_path / "cache"


def test_every_image_lands_in_its_class_with_a_black_border(recipe: ModuleType, tmp_path: Path) -> None:
    cache = run(recipe, tmp_path)
    for split, count in COUNTS.items():
        files = sorted((cache / split).rglob("*.png"))
        assert len(files) == count
        for path in files:
            pixels = np.asarray(Image.open(path))
            label = int(path.parent.name.split("-")[0])
            assert pixels.shape == (32, 32)
            assert (pixels[2:-2, 2:-2] == 20 * label + 1).all()
            assert pixels.sum() == 28 * 28 * (20 * label + 1)


def test_sorted_class_folders_give_the_data_sets_labels(recipe: ModuleType, tmp_path: Path) -> None:
    names = sorted(path.name for path in (run(recipe, tmp_path) / "train").iterdir())
    assert names == [recipe.folder_of(label) for label in range(10)]


def test_a_complete_cache_is_left_alone(recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = run(recipe, tmp_path)
    mark = cache / "train" / "0-t-shirt" / "mine.txt"
    mark.write_text("x")
    run(recipe, tmp_path)
    assert mark.exists()
    assert "is complete" in capsys.readouterr().out


def test_what_a_killed_run_left_is_made_anew(recipe: ModuleType, tmp_path: Path) -> None:
    stale = tmp_path / "cache" / "train.part" / "0-t-shirt" / "99999.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half")
    assert len(list((run(recipe, tmp_path) / "train").rglob("*.png"))) == COUNTS["train"]


def test_other_bytes_are_an_error_that_names_the_file(recipe: ModuleType, tmp_path: Path) -> None:
    recipe.SHA256["train-labels-idx1-ubyte"] = "0" * 64
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.gz must be Fashion-MNIST's"):
        run(recipe, tmp_path)
    assert not (tmp_path / "cache" / "train").exists()
