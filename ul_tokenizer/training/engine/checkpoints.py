"""Checkpoints, which are written completely or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import ModelMixin
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ul_tokenizer.files import sync_file
from ul_tokenizer.training.engine.averages import Averages

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


class Checkpoints:
    """Saves and loads what accelerate prepared, with the models as `save_pretrained` folders.

    Args:
        accelerator: the accelerator with the prepared module, optimiser and learning-rate schedule.
        models: name → model, the parts of the prepared module.
        averages: averages of the models' weights.
        output_dir: folder of the run.
        total_limit: number of newest checkpoints to keep; None keeps all.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        models: Mapping[str, ModelMixin],
        averages: Averages,
        output_dir: Path,
        total_limit: int | None,
    ) -> None:
        self.accelerator, self.models, self.averages = accelerator, models, averages
        self.output_dir, self.total_limit = output_dir, total_limit
        accelerator.register_save_state_pre_hook(self._save_models)
        accelerator.register_load_state_pre_hook(self._load_models)

    # ------------------------------------------------------------------------------------------------------------
    # Writing
    # ------------------------------------------------------------------------------------------------------------

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Writes `checkpoint-<step>`, unless it exists, and removes the oldest checkpoints beyond the limit.

        Raises:
            OSError: the disk is full or read-only; earlier checkpoints are untouched, and no incomplete one remains.
        """
        final = self.output_dir / f"checkpoint-{step}"
        if not final.exists():
            self._write_whole(
                final.name, lambda folder: self._write(folder, state), lambda folder: folder.rename(final)
            )
        if self.accelerator.is_main_process and self.total_limit is not None:
            for old in list_checkpoints(self.output_dir)[: -self.total_limit]:
                shutil.rmtree(old, ignore_errors=True)

    def save_models(self, save: Callable[[Path], None]) -> None:
        """Writes the trained models to `output_dir` itself; `save` writes them to any folder.

        Raises:
            OSError: the disk is full or read-only; models that existed before are untouched.
        """

        def write(folder: Path) -> None:
            if self.accelerator.is_main_process:
                self.averages.save_models(folder, save)

        self._write_whole("model", write, lambda folder: _move_files(folder, self.output_dir))

    def _write_whole(self, name: str, write: Callable[[Path], None], publish: Callable[[Path], Any]) -> None:
        """Every process writes to a temporary folder; the main one publishes it once it is on the disk."""
        temporary = self.output_dir / f"tmp-{name}"
        self._remove_unfinished()
        self.accelerator.wait_for_everyone()

        def publish_once() -> None:
            if self.accelerator.is_main_process:
                _flush(temporary)
                publish(temporary)

        try:
            _together(self.accelerator, lambda: write(temporary))
            _together(self.accelerator, publish_once)
        except OSError as error:
            free = shutil.disk_usage(self.output_dir).free / 1e6  # torch's message does not mention a full disk
            raise OSError(f"{name} could not be written to {self.output_dir} ({free:.0f} MB free): {error}") from error
        finally:
            self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        """Removes incomplete folders that a killed run left."""
        if self.accelerator.is_main_process:
            for path in self.output_dir.glob("tmp-*"):
                if UNFINISHED.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)

    def _write(self, folder: Path, state: Mapping[str, Any]) -> None:
        self.accelerator.save_state(str(folder))
        if self.accelerator.is_main_process:
            (folder / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")

    def _save_models(self, modules: list[nn.Module], weights: list[Any], folder: str) -> None:
        weights.clear()  # accelerate must not write them, too: the folders below contain the weights
        if self.accelerator.is_main_process:
            for name, model in self.models.items():
                model.save_pretrained(Path(folder, name))
            self.averages.save(Path(folder))

    # ------------------------------------------------------------------------------------------------------------
    # Reading
    # ------------------------------------------------------------------------------------------------------------

    def load(self, folder: Path) -> None:
        """Loads a checkpoint into the prepared module, optimiser and schedule.

        Raises:
            ValueError: the checkpoint is damaged, or other networks or other parts of them were trained.
        """
        try:
            self.accelerator.load_state(str(folder))
        except Exception as error:  # a damaged file can raise nearly anything
            raise ValueError(f"{folder} doesn't fit this run or is damaged: {_one_line(error)}") from error
        self.accelerator.step = 0  # it counts micro-batches, and a step may now have another number of them

    def _load_models(self, modules: list[nn.Module], folder: str) -> None:
        modules.clear()
        for name, model in self.models.items():
            weights = load_file(Path(folder, name, SAFETENSORS_WEIGHTS_NAME))
            _check_shapes(name, model.state_dict(), weights)
            model.load_state_dict(weights)
        self.averages.load(Path(folder))


def _check_shapes(name: str, here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> None:
    for key in sorted(here.keys() | there.keys()):
        shapes = [tuple(weights[key].shape) if key in weights else None for weights in (here, there)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{key} of the {name} has the shape {shapes[1]}, but this run needs {shapes[0]}")


def _together(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Runs `action` on every process; fails on all of them if it fails on any, so that none waits for another.

    Raises:
        OSError: a file could not be written, which safetensors and torch report as errors of their own.
    """
    failure, cause = "", None
    try:
        action()
    except (OSError, RuntimeError, SafetensorError) as error:
        failure, cause = _one_line(error), error
    failures = [text for text in gather_object([failure]) if text]
    if failures:
        raise OSError(failures[0]) from cause


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
