"""Labelled folders: what they hold, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.conftest import COLOURS, SIDE, squares
from ul_tokenizer.evaluation.nets.labelled_images import LabelledImages, check_alike, grey_of


def test_grey_is_that_of_pillow() -> None:
    rgb = torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pillow = [np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in rgb]
    assert torch.equal(grey_of(rgb)[:, 0], torch.from_numpy(np.stack(pillow)))
    grey = rgb[:, :1]
    assert torch.equal(grey_of(grey.expand(-1, 3, -1, -1)), grey)


def test_labels_follow_the_sorted_names_of_the_folders(train: Path) -> None:
    images = LabelledImages(train)
    assert images.class_names == tuple(sorted(COLOURS))
    assert images.images.shape == (120, 3, SIDE, SIDE)
    brightest = images.images.float().mean((2, 3)).argmax(1)  # blue is channel 2, green 1, red 0
    assert torch.equal(2 - brightest, images.labels)


def test_grey_data_sets_have_one_channel(tmp_path: Path) -> None:
    squares(tmp_path, 2, seed=0, classes={"dark": (50, 50, 50), "light": (200, 200, 200)})
    for path in tmp_path.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    assert LabelledImages(tmp_path).images.shape == (4, 1, SIDE, SIDE)


def test_the_digest_tells_listings_apart_and_not_their_place(tmp_path: Path) -> None:
    first, second = squares(tmp_path / "a", 2, seed=0), squares(tmp_path / "b", 2, seed=0)
    assert LabelledImages(first).digest == LabelledImages(second).digest
    (second / "red" / "0.png").rename(second / "red" / "7.png")
    assert LabelledImages(first).digest != LabelledImages(second).digest


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    squares(tmp_path, 2, seed=0, classes={"red": COLOURS["red"]})
    with pytest.raises(ValueError, match=r"at least two classes.*got .* with 1 classes"):
        LabelledImages(tmp_path)
    with pytest.raises(ValueError, match="with 0 classes"):
        LabelledImages(tmp_path / "red")


def test_sets_of_different_classes_are_refused(train: Path, tmp_path: Path) -> None:
    other = squares(tmp_path, 2, seed=0, classes={"red": COLOURS["red"], "violet": (200, 40, 200)})
    with pytest.raises(ValueError, match=r"\['violet'\] only in .* and \['blue', 'green'\] only in "):
        check_alike(LabelledImages(train), LabelledImages(other))


def test_images_of_another_size_are_named(tmp_path: Path) -> None:
    squares(tmp_path, 2, seed=0)
    Image.new("RGB", (24, 24)).save(tmp_path / "green" / "1.png")
    with pytest.raises(ValueError, match=r"one size, got blue/0.png with 16×16 .* green/1.png with 24×24"):
        _ = LabelledImages(tmp_path).images


@pytest.mark.parametrize("size", [(16, 24), (4, 4), (256, 256)])
def test_images_that_are_no_small_squares_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    squares(tmp_path, 1, seed=0)
    Image.new("RGB", size).save(tmp_path / "blue" / "0.png")
    with pytest.raises(ValueError, match=rf"squares of 8 to 128 .* blue/0.png with {size[0]}×{size[1]}"):
        _ = LabelledImages(tmp_path).images


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    squares(tmp_path, 1, seed=0)
    (tmp_path / "green" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"green/0.png can't be read"):
        _ = LabelledImages(tmp_path).images
