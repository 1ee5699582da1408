"""Photographs are packed into a small .tar, the same one every time, and validation is not compressed with losses."""

from __future__ import annotations

import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "examples" / "data"


@pytest.fixture
def packer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import pack_photos  # type: ignore[import-not-found, unused-ignore]

    return pack_photos  # type: ignore[no-any-return, unused-ignore]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, (name, size) in enumerate({"train/a": (96, 64), "train/b": (64, 1500), "validation/c": (80, 60)}.items()):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "photos" / "train" / "notes.txt").write_text("no photo")
    return tmp_path / "photos"


def unpacked(packer: ModuleType, photos: Path, folder: Path, *options: str) -> Path:
    packer.main([str(photos), "-o", str(folder.with_suffix(".tar")), *options])
    with tarfile.open(folder.with_suffix(".tar")) as archive:
        archive.extractall(folder, filter="data")
    return folder


def pixels_of(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.int64)


def test_the_pack_holds_every_photo_in_its_split_and_nothing_else(
    packer: ModuleType, photos: Path, tmp_path: Path
) -> None:
    folder = unpacked(packer, photos, tmp_path / "out")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == ["train/a.webp", "train/b.webp", "validation/c.webp"]
    assert Image.open(folder / "train" / "b.webp").size == (44, 1024)


def test_validation_keeps_every_pixel_and_training_does_not(packer: ModuleType, photos: Path, tmp_path: Path) -> None:
    folder = unpacked(packer, photos, tmp_path / "out")
    assert (pixels_of(folder / "validation" / "c.webp") == pixels_of(photos / "validation" / "c.png")).all()
    assert (pixels_of(folder / "train" / "a.webp") != pixels_of(photos / "train" / "a.png")).any()


def test_a_higher_quality_takes_more_bytes_and_comes_closer(packer: ModuleType, photos: Path, tmp_path: Path) -> None:
    coarse, fine = (unpacked(packer, photos, tmp_path / q, "--quality", q) for q in ("20", "95"))
    original = pixels_of(photos / "train" / "a.png")
    errors = [np.square(pixels_of(folder / "train" / "a.webp") - original).mean() for folder in (coarse, fine)]
    assert errors[1] < errors[0]
    assert (fine / "train" / "a.webp").stat().st_size > (coarse / "train" / "a.webp").stat().st_size


def test_the_same_photos_give_the_same_bytes(packer: ModuleType, photos: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        unpacked(packer, photos, tmp_path / name)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_a_folder_without_photos_is_an_error_that_leaves_no_pack(packer: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(SystemExit, match="train must hold photographs"):
        packer.main([str(tmp_path), "-o", str(tmp_path / "photos.tar")])
    assert not (tmp_path / "photos.tar").exists()
