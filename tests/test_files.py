"""Whole files: what several writers of one file leave behind."""

from __future__ import annotations

from pathlib import Path

from ul_tokenizer.files import whole_file


def test_two_writers_of_one_file_never_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole_file(path) as first, whole_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer one is renamed last
    assert list(tmp_path.iterdir()) == [path]
