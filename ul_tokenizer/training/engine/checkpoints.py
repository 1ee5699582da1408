"""Checkpoints, which are written completely or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.checkpointing import load_accelerator_state
from accelerate.utils import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME
from safetensors import SafetensorError

from ul_tokenizer.files import sync_file, sync_folder
from ul_tokenizer.processes import Processes
from ul_tokenizer.training.engine.saved import SavedModel, check_shapes, read_weights
from ul_tokenizer.training.engine.sharding import cpu_copy, fitted_state, is_sharding, load_weights
from ul_tokenizer.training.engine.steps import Stepper

STATE_FILE = "trainer_state.json"
UNFINISHED = re.compile(r"tmp-(checkpoint-\d+|model)")  # names of folders that are being written


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Lists complete checkpoints, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.split("-")[1])


def find_checkpoint(output_dir: Path, wanted: str) -> Path | None:
    """Finds the checkpoint that `--resume_from_checkpoint` names; None for 'latest' if there is none.

    Raises:
        ValueError: the named folder is no checkpoint.
    """
    if wanted == "latest":
        checkpoints = list_checkpoints(output_dir)
        return checkpoints[-1] if checkpoints else None
    path = Path(wanted)
    if not (path / STATE_FILE).is_file():
        raise ValueError(f"--resume_from_checkpoint must be 'latest' or a checkpoint folder, got {wanted}.")
    return path


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Reads the trainer's state from a checkpoint."""
    state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    return state


@dataclass
class Snapshot:
    """All of a checkpoint, on the CPU of the main process; training on does not change it."""

    state: str  # JSON, of the trainer
    models: dict[str, SavedModel] = field(default_factory=dict)  # by folder
    files: dict[str, Any] = field(default_factory=dict)  # optimiser, learning rate and scaler, as accelerate names them

    def write(self, folder: Path) -> None:
        """Writes the folder and waits until it is on the disk."""
        folder.mkdir(parents=True)
        for name, model in self.models.items():
            model.write(folder / name)
        for name, value in self.files.items():
            torch.save(value, folder / name)
        (folder / STATE_FILE).write_text(self.state, encoding="utf-8")
        _flush(folder)


class Checkpoints:
    """Saves and loads the state of a run, with the models as folders that `from_pretrained` loads.

    ```
    every process ─ copy to the CPU (whole) ─ main process ─ thread: temporary folder, fsync ─ rename ─ old ones removed
    ```

    Args:
        steps: has the models, their averages, the optimiser and the schedule, and knows the processes.
        output_dir: folder of the run.
        total_limit: number of newest checkpoints to keep; None keeps all.
        in_background: write in a thread; errors then show at the next checkpoint or at the end.
        say: prints a message for the user.
    """

    def __init__(
        self,
        steps: Stepper,
        output_dir: Path,
        total_limit: int | None,
        in_background: bool,
        say: Callable[[str], None],
    ) -> None:
        self.steps, self.output_dir, self.total_limit = steps, output_dir, total_limit
        self.in_background, self.say = in_background, say
        self.processes = Processes.of_accelerator(steps.accelerator)
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future[None] | None = None

    # ------------------------------------------------------------------------------------------------------------
    # Writing
    # ------------------------------------------------------------------------------------------------------------

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Writes `checkpoint-<step>`, unless it exists, and removes the oldest checkpoints beyond the limit.

        Every process must call it. Only the main process writes, and in the background it only starts to.

        Raises:
            OSError: the disk is full or read-only; earlier checkpoints are untouched, and no incomplete one remains.
        """
        final = self.output_dir / f"checkpoint-{step}"
        if not self.processes.from_main(lambda: self._is_due(final)):
            return
        with self.processes.together():
            snapshot = self._snapshot(state)
        if self.processes.is_main:
            self._last = self._pool.submit(self._write, snapshot, final)
        if not self.in_background:
            self.finish()

    def _is_due(self, final: Path) -> bool:
        self.report()
        self._remove_old()
        return not final.exists()

    def _snapshot(self, state: Mapping[str, Any]) -> Snapshot:
        steps, accelerator = self.steps, self.steps.accelerator
        snapshot = Snapshot(json.dumps(state))
        if not (self.processes.is_main or is_sharding(accelerator)):
            return snapshot  # only divided weights need the other processes

        def taken(values: Any) -> Any:
            return cpu_copy(values, accelerator, keep=not self.in_background)

        models = steps.stage.models
        snapshot.models = {name: SavedModel.of(model, taken(model.state_dict())) for name, model in models.items()}
        for folder, (name, number, extra) in steps.averages.saved().items():
            snapshot.models[folder] = SavedModel.of(models[name], taken(steps.averages.weights(name, number)), **extra)
        snapshot.files = {
            f"{OPTIMIZER_NAME}.bin": taken(steps.optimizer.state_dict()),
            f"{SCHEDULER_NAME}.bin": taken(steps.lr_scheduler.state_dict()),
        }
        if accelerator.scaler is not None:
            snapshot.files[SCALER_NAME] = taken(accelerator.scaler.state_dict())
        return snapshot

    def _write(self, snapshot: Snapshot, final: Path) -> None:
        self._write_whole(final.name, snapshot.write, lambda folder: folder.rename(final))
        self._remove_old()

    def _remove_old(self) -> None:
        if self.total_limit is not None:
            for old in list_checkpoints(self.output_dir)[: -self.total_limit]:
                shutil.rmtree(old, ignore_errors=True)

    def save_models(self, save: Callable[[Path], None], subfolder: str = "") -> None:
        """Writes the trained models to `output_dir` itself, or to a subfolder; `save` writes them to any folder.

        Raises:
            OSError: the disk is full or read-only; models that existed before are untouched.
        """

        def write(folder: Path) -> None:
            save(folder)
            _flush(folder)

        self.processes.from_main(
            lambda: self._write_whole("model", write, lambda folder: _move_files(folder, self.output_dir / subfolder))
        )

    def _write_whole(self, name: str, write: Callable[[Path], None], publish: Callable[[Path], Any]) -> None:
        """Writes to a temporary folder and publishes it once it is on the disk."""
        temporary = self.output_dir / f"tmp-{name}"
        self._remove_unfinished()
        try:
            write(temporary)
            publish(temporary)
            sync_folder(self.output_dir)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
            free = shutil.disk_usage(self.output_dir).free / 1e6  # torch's message does not mention a full disk
            raise OSError(
                f"{name} could not be written to {self.output_dir} ({free:.0f} MB free): {_one_line(error)}"
            ) from error
        finally:
            self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        """Removes incomplete folders that a killed run left."""
        for path in self.output_dir.glob("tmp-*"):
            if UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def report(self) -> None:
        """Waits for a checkpoint that is being written, and prints an error if that failed; the training may go on."""
        try:
            self._result()
        except OSError as error:
            self.say(f"{error}; training goes on with the earlier checkpoints.")

    def finish(self) -> None:
        """Waits for the last checkpoint; every process must call it.

        Raises:
            OSError: it could not be written.
        """
        self.processes.from_main(self._result)

    def _result(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    # ------------------------------------------------------------------------------------------------------------
    # Reading
    # ------------------------------------------------------------------------------------------------------------

    def load(self, folder: Path) -> None:
        """Loads a checkpoint into the prepared module, optimiser and schedule.

        Raises:
            ValueError: the checkpoint is damaged, or other networks or other parts of them were trained.
        """
        try:
            self._load(folder)
        except Exception as error:  # a damaged file can raise nearly anything
            raise ValueError(f"{folder} doesn't fit this run or is damaged: {_one_line(error)}") from error

    def _load(self, folder: Path) -> None:
        steps, accelerator = self.steps, self.steps.accelerator
        for name, model in steps.stage.models.items():
            weights = read_weights(folder / name)
            check_shapes(name, model.state_dict(), weights)
            load_weights(model, weights)
        steps.averages.load(folder)
        optimizers, schedulers, rank = [_Fitting(steps.optimizer)], [steps.lr_scheduler], accelerator.process_index
        load_accelerator_state(str(folder), [], optimizers, schedulers, [], rank, accelerator.scaler)


class _Fitting:
    """Takes the state that accelerate reads to an optimiser, with its moments as the weights are."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(fitted_state(state, self.optimizer))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _move_files(source: Path, target: Path) -> None:
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)


def _flush(folder: Path) -> None:
    """Waits until all files are on the disk, so that no rename survives a power cut without its content."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync_file(path)
