"""Which files of a model's folder are pushed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ul_tokenizer.publish.repository_files import belongs_in_repository, repository_files


def test_checkpoints_samples_logs_and_hidden_files_of_a_training_stay(tmp_path: Path) -> None:
    wanted = ["config.json", "model.safetensors", "prior/config.json", "vae/prior/model.safetensors"]
    left = ["checkpoint-5/config.json", "samples/1.png", "metrics.jsonl", "skipped-r0.jsonl", ".git/config.json"]
    left += ["tmp-checkpoint-5/config.json", "__pycache__/x.py", "notes.pkl", ".secret.json", "model.bin"]
    for name in (*wanted, *left):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert repository_files(tmp_path) == {name: tmp_path / name for name in wanted}


def test_a_folder_without_weights_and_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()
    with pytest.raises(ValueError, match="holds nothing to push"):
        repository_files(tmp_path)


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.ckpt", "x.pkl", "x"])
def test_pickled_weights_never_belong_in_a_repository(name: str) -> None:
    assert not belongs_in_repository(name)
