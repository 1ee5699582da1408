"""Tar archives as sources: what is a sample, and what damage costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sources.samples import everything, png, tar
from ul_tokenizer.media.images import read_image
from ul_tokenizer.sources.open import open_source
from ul_tokenizer.sources.tar import TarSource


def test_files_that_share_a_key_are_a_sample(tmp_path: Path) -> None:
    files = [
        ("s/1.png", png(1)),
        ("s/1.txt", b"a dog\n"),
        ("s/1.cls", b"7"),
        ("s/2.PNG", png(2)),
        ("s/2.json", b'{"n": 1, "id": 2}'),
    ]
    source = open_source(str(tar(tmp_path / "a.tar", files)))
    assert everything(source) == [("a.tar/s/1", {"caption": "a dog", "label": 7}), ("a.tar/s/2", {"n": 1})]
    assert source.open(1) == png(2)


def test_a_folder_of_archives_is_read_in_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        tar(tmp_path / f"{name}.tar", [("1.png", png())])
    source = open_source(str(tmp_path))
    assert [source.id(i) for i in range(len(source))] == ["a.tar/1", "b.tar/1"]


def test_an_archive_that_ends_early_gives_what_is_whole_and_says_so(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [(f"{n}.png", png(n, (40, 40))) for n in range(3)])
    path.write_bytes(path.read_bytes()[: 2 * 5632 + 1000])
    source = TarSource([path])
    readable = [i for i in range(len(source)) if read_image(source.open(i)).size == (40, 40)]
    assert len(readable) == len(source) == 2
    assert any(skip.id.startswith("a.tar") and "end" in skip.reason for skip in source.skipped)


def test_a_path_out_of_the_archive_is_left_out(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("../evil.png", png(0)), ("/abs.png", png(1)), ("good.png", png(2))])
    source = TarSource([path])
    assert everything(source) == [("a.tar/good", {})]
    assert [skip.reason for skip in source.skipped] == ["its path leads out of the archive"] * 2
    assert not (tmp_path.parent / "evil.png").exists()


def test_second_images_lonely_columns_and_strangers_are_named(tmp_path: Path) -> None:
    files = [("1.png", png(0)), ("1.jpg", png(1)), ("2.txt", b"x"), ("3.xyz", b"x")]
    source = TarSource([tar(tmp_path / "a.tar", files)])
    assert len(source) == 1
    assert sorted(skip.id for skip in source.skipped) == ["a.tar/1.jpg", "a.tar/2", "a.tar/3.xyz"]


def test_no_archive_at_all_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match="archives must hold at least one image, got 1 without any"):
        TarSource([path])


@pytest.mark.parametrize(
    ("labels", "names"), [((b"0", b"2\n"), ("0", "1", "2")), ((b"0", b"dog"), ()), ((b"0", b"9" * 9), ())]
)
def test_integers_in_cls_files_are_classes(tmp_path: Path, labels: tuple[bytes, ...], names: tuple[str, ...]) -> None:
    for n, label in enumerate(labels):  # the classes are those of all archives
        tar(tmp_path / f"{n}.tar", [("a.png", png(n)), ("a.cls", label)])
    assert open_source(tmp_path).class_names == names


def test_what_is_left_out_has_the_same_order_in_every_process(tmp_path: Path) -> None:
    files = [("good.png", png()), *((f"{n}.txt", b"x") for n in (3, 1, 2))]
    source = TarSource([tar(tmp_path / "a.tar", files)])
    assert [skip.id for skip in source.skipped] == ["a.tar/1", "a.tar/2", "a.tar/3"]
