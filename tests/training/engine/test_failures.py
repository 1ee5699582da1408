"""What goes wrong in a long run: numbers, disks and pictures. Each is said in a sentence, none costs the run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ul_tokenizer.training.draws.crops import CropSample, RandomCropDataset
from ul_tokenizer.training.engine.accelerator import make_accelerator
from ul_tokenizer.training.engine.checkpoints import list_checkpoints
from ul_tokenizer.training.engine.errors import TrainingError
from ul_tokenizer.training.engine.loop import Trainer
from ul_tokenizer.training.engine.start import Start
from ul_tokenizer.training.engine.tracking import JsonLinesTracker
from ul_tokenizer.training.parsing import parse_arguments
from ul_tokenizer.training.stage1 import Stage1
from ul_tokenizer.training.stage1_arguments import Stage1Arguments

Train = Callable[..., int]
Logged = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, Tensor]]


class PoisonedDataset(RandomCropDataset):
    """Not-a-number pixels in some draws."""

    poisoned: range

    def __getitem__(self, n: int) -> CropSample:
        crop = super().__getitem__(n)
        if n in self.poisoned:
            crop["pixel_values"] = crop["pixel_values"] * torch.nan
        return crop


def train_poisoned(arguments: list[str], poisoned: range) -> None:
    args = parse_arguments(Stage1Arguments, arguments)
    accelerator = make_accelerator(args)
    stage = Stage1(args)
    stage.dataset.__class__ = PoisonedDataset
    stage.dataset.poisoned = poisoned
    Trainer(args, stage, accelerator, Start(None, {"step": 0})).run()


def last_error(capfd: pytest.CaptureFixture[str]) -> str:
    return capfd.readouterr().err.strip().splitlines()[-1]


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_non_finite_step_is_counted_and_leaves_the_weights_as_they_were(
    smallest_flags: Callable[..., list[str]],
    train: Train,
    logged: Logged,
    weights: Weights,
    tmp_path: Path,
    optimizer: str,
) -> None:
    changes = {"logging_steps": 3, "optimizer": optimizer, "ema_std": "0.1"}
    assert train(tmp_path / "clean", max_train_steps=2, **changes) == 0
    train_poisoned(smallest_flags(tmp_path / "poisoned", max_train_steps=3, **changes), range(4, 5))
    clean, poisoned = weights(tmp_path / "clean" / "checkpoint-2"), weights(tmp_path / "poisoned" / "checkpoint-3")
    assert [name for name in clean if not torch.equal(clean[name], poisoned[name])] == []
    lines = {name: [line for line in logged(tmp_path / name) if "loss" in line] for name in ("clean", "poisoned")}
    assert lines["poisoned"][0]["nonfinite_steps"] == 1
    assert lines["poisoned"][0]["loss"] == lines["clean"][0]["loss"]  # means are over the steps that were made


def test_training_goes_on_after_a_non_finite_step(
    smallest_flags: Callable[..., list[str]], logged: Logged, tmp_path: Path
) -> None:
    flags = smallest_flags(tmp_path, max_train_steps=4, max_nonfinite_steps=2)
    train_poisoned(flags, range(2, 4))
    assert [line["nonfinite_steps"] for line in logged(tmp_path) if "nonfinite_steps" in line] == [0, 1, 1, 1]
    assert "loss" not in logged(tmp_path)[1] and logged(tmp_path)[3]["loss"] > 0


def test_non_finite_steps_in_a_row_stop_the_run_and_keep_the_checkpoints(
    smallest_flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    flags = smallest_flags(tmp_path, max_train_steps=9, max_nonfinite_steps=3, checkpointing_steps=1)
    with pytest.raises(TrainingError, match=r"3 steps in a row at step 5"):
        train_poisoned(flags, range(4, 100))
    assert list_checkpoints(tmp_path)[-1].name == "checkpoint-4"


def test_a_run_that_blows_up_ends_with_status_1_and_one_sentence(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {"learning_rate": 1e30, "lr_warmup_steps": 0, "max_train_steps": 20, "max_nonfinite_steps": 2}
    assert train(tmp_path, **changes) == 1
    assert last_error(capfd).startswith("error: gradients were non-finite in 2 steps in a row")


# ---------------------------------------------------------------- memory


def test_too_little_memory_is_one_sentence_and_status_1(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Stage1, "loss", lambda *_: torch.empty(1 << 50))  # torch refuses: no machine has 4 PiB
    assert train(tmp_path) == 1
    assert last_error(capfd).startswith("error: Not enough memory; use a smaller --train_batch_size")


def test_other_errors_of_torch_keep_their_traceback(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Stage1, "loss", lambda *_: torch.ones(2) + torch.ones(3))
    with pytest.raises(RuntimeError, match="must match the size"):
        train(tmp_path)


# ---------------------------------------------------------------- disks

SMALL_FILES_ONLY = """
import resource, sys
from ul_tokenizer.training.command import run_command
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(run_command("autoencoder"))
"""


def test_a_full_disk_costs_neither_the_run_nor_the_checkpoints_from_before(
    train: Train, start: Callable[..., subprocess.Popen[str]], weights: Weights, tmp_path: Path
) -> None:
    assert train(tmp_path, max_train_steps=2) == 0
    before = weights(tmp_path)
    changes = {"max_train_steps": 5, "checkpointing_steps": 1, "checkpoints_total_limit": 1}
    process = start(tmp_path, code=SMALL_FILES_ONLY, resume_from_checkpoint="latest", **changes)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert output.count("; training goes on with the earlier checkpoints.") == 2  # the last one is an error
    assert output.splitlines()[-1].startswith(f"error: checkpoint-5 could not be written to {tmp_path} (")
    assert "Traceback" not in output
    after = weights(tmp_path)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert not list(tmp_path.glob("tmp-*"))
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 5


def test_a_log_line_that_could_not_be_written_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = JsonLinesTracker(tmp_path / "metrics.jsonl")
    tracker.log({"loss": 1.0}, step=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_that_fills_up)
        with pytest.raises(OSError, match="No space left"):
            tracker.log({"loss": 2.0}, step=2)
    tracker.log({"loss": float("nan")}, step=3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 1.0}, {"step": 3, "loss": None}]


def open_that_fills_up(path: Path, *args: Any, **options: Any) -> Any:
    import io

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(data[:5])
            raise OSError(28, "No space left on device")

    return Full(path, "ab")


@pytest.mark.parametrize("place", ["file/run", "file"])
def test_a_folder_that_cannot_be_written_is_one_sentence(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert train(tmp_path / place) == 1
    assert last_error(capfd).startswith("error: [Errno ")


# ---------------------------------------------------------------- pictures


def test_bad_files_are_named_once_counted_and_skipped(
    make_images: Callable[..., Path],
    train: Train,
    logged: Logged,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = make_images(tmp_path / "images", 4)
    good = (folder / "0.png").read_bytes()
    (folder / "truncated.png").write_bytes(good[: len(good) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    assert train(tmp_path / "run", train_data_dir=folder, max_train_steps=12) == 0  # four epochs
    error = capfd.readouterr().err
    for name in ("truncated.png", "empty.jpg", "notes.txt"):
        assert error.count(f"{name}: ") >= 1
    assert error.count("skipped truncated.png: ") <= 1 and error.count("skipped empty.jpg: ") <= 1
    counts = [line["skipped_images"] for line in logged(tmp_path / "run") if "skipped_images" in line]
    assert counts == sorted(counts) and counts[-1] >= 3


@pytest.mark.parametrize("content", [{}, {"a.png": b""}, {"a.png": b"", "b.txt": b"x", "c.jpg": b"x", "d.jpg": b"x"}])
def test_a_folder_without_a_usable_image_is_one_sentence(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], content: dict[str, bytes]
) -> None:
    (tmp_path / "images").mkdir()
    for name, data in content.items():
        (tmp_path / "images" / name).write_bytes(data)
    assert train(tmp_path / "run", train_data_dir=tmp_path / "images") == 1
    assert last_error(capfd).startswith("error: --train_data_dir")
    assert not (tmp_path / "run").exists()


def test_a_missing_folder_is_one_sentence(train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", train_data_dir=tmp_path / "nowhere") == 1
    assert "nowhere" in last_error(capfd)
    assert train(tmp_path / "run", validation_data_dir=tmp_path / "nowhere") == 1
    assert last_error(capfd).startswith("error: --validation_data_dir")
