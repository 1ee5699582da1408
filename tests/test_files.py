"""Whole files and folders: what several writers of one file, and failures, leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from ul_tokenizer.files import new_folder, whole_file


def test_two_writers_of_one_file_never_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with whole_file(path) as first, whole_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer one is renamed last
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_folder_is_whole_or_not_there(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "new"
    if exists:
        path.mkdir()
    with pytest.raises(RuntimeError), new_folder(path) as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert list(tmp_path.rglob("*")) == ([path] if exists else [])
    with new_folder(path) as folder:
        (folder / "file").write_text("whole")
    assert list(tmp_path.rglob("*")) == [path, path / "file"]
    with pytest.raises(ValueError, match=r"got .*new, which exists\."), new_folder(path):
        pass
