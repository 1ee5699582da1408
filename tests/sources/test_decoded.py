"""What training and evaluation need on top of a source: decoded images, labels, subsets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.samples import png, tar, write
from ul_tokenizer.media.clips import ClipPart
from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.sources.base import MAX_CLASSES, SkippedSample, label_of, numbered_classes
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.sources.subset import Subset
from ul_tokenizer.sources.tar import TarSource


class OneSample:
    """A source of one sample; an exception is raised when it is opened."""

    def __init__(self, content: Any, columns: dict[str, Any] | None = None, classes: int = 2) -> None:
        self.content, self.row = content, columns or {}
        self.class_names = tuple("abcdefgh"[:classes])
        self.skipped: list[SkippedSample] = []

    def __len__(self) -> int:
        return 1

    def id(self, index: int) -> str:
        return "only"

    def open(self, index: int) -> Any:
        if isinstance(self.content, Exception):
            raise self.content
        return self.content

    def columns(self, index: int) -> dict[str, Any]:
        return self.row


def test_the_cache_returns_the_same_images_and_stays_below_its_size(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (10, 10), (number, 0, 0)).save(tmp_path / f"{number}.png")
    images = DecodedImages(FolderSource(tmp_path), cache_bytes=2 * 4 * 100 + 1)
    for _ in range(2):
        assert [images.read(index).getpixel((0, 0)) for index in range(4)] == [(n, 0, 0) for n in range(4)]
    assert [images.read(index) is images.read(index) for index in range(4)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"junk", "not an image of a known format"),
        (Path("/no/such/file"), "No such file"),
        (OSError("Corrupt page."), "Corrupt page"),
        (ValueError(), "ValueError"),
        (ClipPart(Path("a.mp4"), 0, 4, 25.0, False), "a clip of a video"),
        (UnreadableImageError("elsewhere", "the row holds no image"), "the row holds no image"),
    ],
)
def test_whatever_is_wrong_with_a_sample_is_one_error_with_its_id(content: Any, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        DecodedImages(OneSample(content)).read(0)
    assert caught.value.path == "only" and not caught.value.reason.endswith(".")


def test_an_image_above_the_limit_is_refused() -> None:
    with pytest.raises(UnreadableImageError, match="more than the 47 pixels"):
        DecodedImages(OneSample(png()), max_pixels=47).read(0)


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("columns", "classes", "label"),
    [
        ({"label": 1}, 2, 1),
        ({"label": 1}, 0, None),  # a number that stands for nothing
        ({}, 2, None),
        ({"label": None}, 2, None),
        ({"label": -1}, 2, None),
        ({"label": "b"}, 2, None),
    ],
)
def test_labels_are_classes_or_none(columns: dict[str, Any], classes: int, label: int | None) -> None:
    assert label_of(OneSample(b"", columns, classes), 0) == label


def test_a_label_beyond_the_classes_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="labels must be below 2, got 2 for only"):
        label_of(OneSample(b"", {"label": 2}), 0)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([2, 0], ("0", "1", "2")),
        ([1, None, "", -1], ("0", "1")),
        ([], ()),
        ([None], ()),
        ([1, "dog"], ()),
        ([1, True], ()),
        ([MAX_CLASSES], ()),
    ],
)
def test_classes_without_names_are_called_by_their_numbers(labels: list[Any], names: tuple[str, ...]) -> None:
    assert numbered_classes(labels) == names


# ---------------------------------------------------------------- subsets


def test_a_subset_has_the_chosen_samples_in_its_order_and_all_classes(tmp_path: Path) -> None:
    folder = FolderSource(write(tmp_path, a__x_png=png(0), b__y_png=png(1), c__z_png=png(2), notes=b""))
    subset = Subset(folder, [2, 0])
    assert [subset.id(i) for i in range(len(subset))] == ["c/z.png", "a/x.png"]
    assert subset.open(0) == folder.open(2)
    assert (subset.columns(0), subset.class_names) == ({"label": 2}, ("a", "b", "c"))
    assert subset.skipped == folder.skipped != []


def test_subsets_and_decoded_images_wrap_any_source(tmp_path: Path) -> None:
    files = [(f"{n}.{kind}", content) for n in range(3) for kind, content in (("png", png(n)), ("cls", b"%d" % n))]
    images = DecodedImages(Subset(TarSource([tar(tmp_path / "a.tar", files)]), [1]))
    assert (len(images), images.id(0), images.label(0), images.class_names) == (1, "a.tar/1", 1, ("0", "1", "2"))
    assert images.read(0).size == (8, 6)
