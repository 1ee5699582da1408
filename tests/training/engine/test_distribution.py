"""Several processes: they agree before they act, fail together, and never wait for one that has failed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.training.process_group import Run, train_together
from ul_tokenizer.training.engine.accelerator import accumulation_steps, make_accelerator
from ul_tokenizer.training.engine.checkpoints import list_checkpoints
from ul_tokenizer.training.parsing import parse_arguments
from ul_tokenizer.training.stage1_arguments import Stage1Arguments

Train = Callable[..., int]
Flags = Callable[..., list[str]]
Logged = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, Tensor]]

pytestmark = pytest.mark.multiprocess


# ---------------------------------------------------------------- what the launcher asks for


@pytest.mark.parametrize(("flag", "used"), [(None, "bf16"), ("no", "no")])
def test_the_launchers_precision_applies_unless_a_flag_names_another(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    flag: Any,
    used: str,
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert train(tmp_path, max_train_steps=1, **({"mixed_precision": flag} if flag else {})) == 0
    assert f"mixed precision {used}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "no, bf16, fp16, got fp8"),
        ("FSDP_SHARDING_STRATEGY", "HYBRID_SHARD", "FULL_SHARD, SHARD_GRAD_OP, got HYBRID_SHARD"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "TRANSFORMER_BASED_WRAP, NO_WRAP, got SIZE_BASED_WRAP"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "use --gradient_checkpointing"),
    ],
)
def test_what_this_training_cannot_do_is_refused_in_one_sentence(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    words: str,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true" if variable.startswith("FSDP") else "false")
    monkeypatch.setenv(variable, value)
    assert train(tmp_path / "run") == 1
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and words in line
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- the global batch


def test_the_number_of_batches_follows_from_the_global_batch(smallest_flags: Flags, tmp_path: Path) -> None:
    args = parse_arguments(Stage1Arguments, smallest_flags(tmp_path, global_batch_size=24, train_batch_size=2))
    assert [accumulation_steps(args, processes) for processes in (1, 2, 3, 4, 6, 12)] == [12, 6, 4, 3, 2, 1]
    for processes in (5, 8, 24):
        with pytest.raises(
            ValueError, match=rf"^--global_batch_size must be a multiple of {2 * processes} .* got 24\.$"
        ):
            accumulation_steps(args, processes)
    accelerator = make_accelerator(args)
    assert args.gradient_accumulation_steps == accelerator.gradient_accumulation_steps == 12


def test_a_global_batch_that_cannot_be_made_is_refused_before_anything_exists(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", train_batch_size=4, global_batch_size=6) == 1
    assert "--global_batch_size must be a multiple of 4" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_global_batch_than_the_checkpoints_is_refused_before_the_networks_exist(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tmp_path, max_train_steps=1) == 0
    monkeypatch.setattr("ul_tokenizer.training.stage1._make_models", None)  # making them would be a TypeError
    assert train(tmp_path, resume_from_checkpoint="latest", global_batch_size=8) == 1
    assert "global batch size of 2, got 8" in capfd.readouterr().err.strip().splitlines()[-1]


# ---------------------------------------------------------------- agreement and shared failures


@pytest.fixture(scope="module")
def stopped(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process with a global batch of 4 that ended at step 2 of 4."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert train(folder, **LONGER, max_train_steps=2, train_batch_size=4) == 0
    return folder


LONGER: dict[str, Any] = {"lr_scheduler": "constant", "adam_epsilon": 1e-2, "learning_rate": 1e-2}
BROKEN_VALIDATION = """
from ul_tokenizer.training.stage1 import Stage1
def validate(*arguments):
    raise KeyError("no such net")
Stage1.validate = validate
"""
BROKEN_SAVE = """
from ul_tokenizer.training.stage1 import Stage1
Stage1.kept = Stage1.save
def save(*arguments):
    raise OSError("the quota is used up")
Stage1.save = save
from ul_tokenizer.training.engine.checkpoints import Snapshot
Snapshot.kept = Snapshot.write
def write(snapshot, folder):
    if "checkpoint-1" in str(folder):
        raise OSError("the disk is full")
    Snapshot.kept(snapshot, folder)
Snapshot.write = write
"""
MENDED = """
from ul_tokenizer.training.stage1 import Stage1
from ul_tokenizer.training.engine.checkpoints import Snapshot
Stage1.save, Snapshot.write = Stage1.kept, Snapshot.kept
"""
STAGE_ON_ONE = """
from ul_tokenizer.training import stage1
kept = stage1._make_models
def make(args):
    stage1._make_models = kept
    if rank == 1:
        raise OSError("process 1 cannot read the model")
    return kept(args)
stage1._make_models = make
"""
SLOW_VALIDATION = """
import time
from ul_tokenizer.training.stage1 import Stage1
kept = Stage1.validate
def validate(*arguments):
    time.sleep(4)
    return kept(*arguments)
Stage1.validate = validate
"""


def test_processes_agree_on_the_start_share_errors_and_leave_decisions_to_the_first(
    smallest_flags: Flags, stopped: Path, logged: Logged, tmp_path: Path
) -> None:
    resume = {**LONGER, "resume_from_checkpoint": "latest", "max_train_steps": 4, "train_batch_size": 2}

    # Each process has a working directory of its own, as nodes have disks of their own.
    def on_own_disks(name: str, *ranks_with_checkpoint: int, **changes: Any) -> Run:
        for rank in range(2):
            (tmp_path / f"{name}-{rank}").mkdir()
        for rank in ranks_with_checkpoint:
            shutil.copytree(stopped, tmp_path / f"{name}-{rank}" / "run")
        code = f"import os; os.chdir({str(tmp_path / name)!r} + f'-{{rank}}')"
        return Run(smallest_flags(Path("run"), **(changes or resume)), code)

    runs = {
        "only-first": on_own_disks("only-first", 0),
        "only-second": on_own_disks("only-second", 1),
        "different": on_own_disks("different", 0, 1),
        "own-disk": on_own_disks("own-disk", checkpointing_steps=1),
        "stage": Run(smallest_flags(tmp_path / "stage"), STAGE_ON_ONE),
        "saving": Run(smallest_flags(tmp_path / "saving", max_train_steps=3, checkpointing_steps=1), BROKEN_SAVE),
        "validation": Run(smallest_flags(tmp_path / "validation", validation_steps=1), MENDED + BROKEN_VALIDATION),
    }
    state = tmp_path / "different-1" / "run" / "checkpoint-2" / "trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "stage": {"prior_ramp_start": 17}}))
    (tmp_path / "own-disk-1" / "run" / "checkpoint-1").mkdir(parents=True)  # of an earlier job on this node
    outcomes = dict(zip(runs, train_together(tmp_path / "group", 2, *runs.values()), strict=True))

    for name, words in {
        "only-first": "the main process has",
        "only-second": "the main process has no checkpoint, process 1 has checkpoint-2",
        "different": "process 1 has another checkpoint-2",
        "stage": "process 1 cannot read the model",
        "saving": "model could not be written",
    }.items():
        assert [outcome.status for outcome in outcomes[name]] == [1, 1], outcomes[name]
        lines = [outcome.last_line for outcome in outcomes[name]]
        assert lines[0] == lines[1] and lines[0].startswith("error: ") and words in lines[0]
    assert not list((tmp_path / "only-second-0" / "run").glob("checkpoint-*"))  # nobody began

    assert [outcome.status for outcome in outcomes["own-disk"]] == [0, 0], outcomes["own-disk"]
    assert [path.name for path in list_checkpoints(tmp_path / "own-disk-0" / "run")] == ["checkpoint-1", "checkpoint-2"]
    assert outcomes["saving"][0].error.count("the disk is full; training goes on with the earlier checkpoints.") == 1
    assert [path.name for path in list_checkpoints(tmp_path / "saving")] == ["checkpoint-2", "checkpoint-3"]
    assert len(logged(tmp_path / "saving")) == 4  # three steps and the last validation

    # An error that nobody expects keeps its traceback, but ends all processes as well.
    kinds = [outcome.status.partition(":")[0] for outcome in outcomes["validation"]]
    assert kinds == ["KeyError", "RuntimeError"] and "no such net" in outcomes["validation"][1].status


@pytest.mark.slow
def test_the_timeout_of_the_group_is_a_flag(smallest_flags: Flags, tmp_path: Path) -> None:
    flags = [smallest_flags(tmp_path / str(n), max_train_steps=1, process_group_timeout_minutes=n) for n in (2, 0.05)]
    long, short = train_together(tmp_path / "group", 2, *(Run(each, SLOW_VALIDATION) for each in flags))
    assert [outcome.status for outcome in long] == [0, 0], long
    assert "imed out" in short[1].status or "imeout" in short[1].status


def test_four_processes_go_on_where_one_stopped_and_lose_the_same(
    train: Train, smallest_flags: Flags, stopped: Path, logged: Logged, tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "four")
    shutil.copytree(stopped, tmp_path / "one")
    resume = {**LONGER, "resume_from_checkpoint": "latest", "max_train_steps": 4, "global_batch_size": 4}
    flags = smallest_flags(tmp_path / "four", **resume, train_batch_size=1)
    (outcomes,) = train_together(tmp_path / "group", 4, Run(flags))
    assert [outcome.status for outcome in outcomes] == [0] * 4, outcomes
    assert "4 processes on cpu" in outcomes[0].error and "4 samples per step" in outcomes[0].error
    assert train(tmp_path / "one", **resume, train_batch_size=1) == 0  # four batches per step
    for mine, theirs in zip(logged(tmp_path / "four"), logged(tmp_path / "one"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    checkpoint = tmp_path / "four" / "checkpoint-4"
    assert {path.name for path in checkpoint.iterdir()} == {path.name for path in (stopped / "checkpoint-2").iterdir()}
