"""Image folders as sources: classes, metadata, duplicates, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.samples import encoded, everything, png, write
from ul_tokenizer.media.images import read_image
from ul_tokenizer.processes import Processes
from ul_tokenizer.sources.base import label_of
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.sources.open import open_source


def test_class_folders_become_labels(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path, b__x_png=png(0), a__y_png=png(1), b__z__w_png=png(2))))
    assert source.class_names == ("a", "b")
    assert everything(source) == [("a/y.png", {"label": 0}), ("b/x.png", {"label": 1}), ("b/z/w.png", {"label": 1})]
    assert read_image(encoded(source, 1)).tobytes() == Image.open(tmp_path / "b/x.png").tobytes()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_becomes_columns(tmp_path: Path, kind: str) -> None:
    write(tmp_path, x_png=png(0), y_png=png(1))
    if kind == "csv":
        text = "file_name,caption,label\nx.png,a dog,3\n"
    else:
        text = json.dumps({"file_name": "x.png", "caption": "a dog", "label": 3}) + "\n"
    (tmp_path / f"metadata.{kind}").write_text(text)
    source = FolderSource(tmp_path)
    assert everything(source) == [("x.png", {"caption": "a dog", "label": 3}), ("y.png", {})]
    assert source.class_names == ("0", "1", "2", "3")
    assert source.skipped == []


def test_labels_in_the_metadata_beat_the_subfolders(tmp_path: Path) -> None:
    write(tmp_path, a__x_png=png(0), b__y_png=png(1))
    (tmp_path / "metadata.csv").write_text("file_name,label\na/x.png,1\n")
    source = FolderSource(tmp_path)
    assert source.class_names == ("0", "1")
    assert [label_of(source, index) for index in range(2)] == [1, None]


def test_a_single_image_is_a_folder_of_one(tmp_path: Path) -> None:
    path = write(tmp_path, a_png=png()) / "a.png"
    source = open_source(path)
    assert (len(source), source.id(0), source.open(0)) == (1, "a.png", path)


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"at least one image.*1 other"):
        FolderSource(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metadata.csv", "name,caption\nx.png,a\n", "must have a file_name in every row, got none in row 1"),
        ("metadata.jsonl", '{"file_name": "x.png"}\nnonsense\n', "a JSON object in every line, got another in line 2"),
        ("metadata.csv", "file_name,id\nx.png,1\n", "must not have a column 'id'"),
    ],
)
def test_bad_metadata_is_one_sentence(tmp_path: Path, name: str, text: str, words: str) -> None:
    (write(tmp_path, x_png=png()) / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        FolderSource(tmp_path)


def test_of_equal_files_the_first_stays_and_the_others_are_named(tmp_path: Path) -> None:
    write(tmp_path, a_png=png(0), b_png=png(1), c_png=png(0), d_png=png(0))
    source = FolderSource(tmp_path)
    assert [source.id(i) for i in range(len(source))] == ["a.png", "b.png"]
    assert source.skipped == [("c.png", "same content as a.png"), ("d.png", "same content as a.png")]
    assert len(FolderSource(tmp_path, keep_duplicates=True)) == 4


class Group(Processes):
    """A process of a group whose members answer `gather` with values that the test gives."""

    def __init__(self, rank: int, answers: list[Any]) -> None:
        super().__init__(rank, len(answers), True)
        self.answers = answers

    def gather(self, value: Any) -> list[Any]:
        return [*self.answers[: self.rank], value, *self.answers[self.rank + 1 :]]


def test_one_process_of_a_group_reads_the_files_and_the_others_believe_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, a_png=png(0), b_png=png(1), c_png=png(0))
    main, other = (FolderSource(tmp_path, keep_duplicates=True) for _ in range(2))
    main.drop_duplicates(Group(0, [None, (3, {})]))
    monkeypatch.setattr(Path, "open", None)  # the other process must not read
    other.drop_duplicates(Group(1, [(3, {2: 0}), None]))
    for source in (main, other):
        assert [source.id(i) for i in range(len(source))] == ["a.png", "b.png"]
        assert source.skipped == [("c.png", "same content as a.png")]


def test_every_job_of_an_array_searches_itself(tmp_path: Path) -> None:
    source = FolderSource(write(tmp_path, a_png=png(0), b_png=png(0)), keep_duplicates=True)
    source.drop_duplicates(Processes(1, 2))
    assert len(source) == 1


def test_processes_that_see_different_files_are_refused(tmp_path: Path) -> None:
    source = FolderSource(write(tmp_path, a_png=png(0)), keep_duplicates=True)
    with pytest.raises(ValueError, match=r"the same files for all processes, got \[2, 1\] images"):
        source.drop_duplicates(Group(1, [(2, {}), None]))


def test_a_class_of_nothing_but_duplicates_goes_with_them(tmp_path: Path) -> None:
    source = FolderSource(write(tmp_path, a__x_png=png(0), b__y_png=png(0)))
    assert source.class_names == ("a",)
    assert everything(source) == [("a/x.png", {"label": 0})]


def test_long_files_that_only_begin_alike_are_both_kept(tmp_path: Path) -> None:
    head = b"\x00" * 20_000
    write(tmp_path, a_png=head + b"1", b_png=head + b"2")
    assert len(FolderSource(tmp_path)) == 2


def test_other_files_are_named(tmp_path: Path) -> None:
    source = FolderSource(write(tmp_path, a_png=png(), notes=b"x"))
    assert source.skipped == [("notes", "no suffix is not the suffix of an image")]
