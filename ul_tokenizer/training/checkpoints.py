"""Checkpoints: written whole or not at all, and found again."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from torch import nn

STATE_FILE = "trainer_state.json"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def find_checkpoint(output_dir: Path, wanted: str) -> Path | None:
    """The folder that `--resume_from_checkpoint` names; None for 'latest' where there is none.

    Raises:
        ValueError: a named folder that is no checkpoint.
    """
    if wanted == "latest":
        checkpoints = list_checkpoints(output_dir)
        return checkpoints[-1] if checkpoints else None
    path = Path(wanted)
    if not (path / STATE_FILE).is_file():
        raise ValueError(f"--resume_from_checkpoint must be 'latest' or a checkpoint folder, got {wanted}.")
    return path


class Checkpoints:
    """Saves and loads what accelerate prepared, with the models as `save_pretrained` folders.

    Args:
        accelerator: holds the prepared module, optimiser and learning-rate schedule.
        models: name → model; the parts of the prepared module.
        averages: name → moving average of that model's weights; empty without.
        output_dir: where.
        total_limit: checkpoints to keep; None for all.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        models: Mapping[str, ModelMixin],
        averages: Mapping[str, EMAModel],
        output_dir: Path,
        total_limit: int | None,
    ) -> None:
        self.accelerator, self.models, self.averages = accelerator, models, averages
        self.output_dir, self.total_limit = output_dir, total_limit
        accelerator.register_save_state_pre_hook(self._save_models)
        accelerator.register_load_state_pre_hook(self._load_models)

    def _save_models(self, modules: list[nn.Module], weights: list[Any], folder: str) -> None:
        weights.clear()  # nothing is left for accelerate to write: the folders below hold the weights
        if not self.accelerator.is_main_process:
            return
        for name, model in self.models.items():
            model.save_pretrained(Path(folder, name))
        for name, average in self.averages.items():
            average.save_pretrained(Path(folder, f"{name}_ema"))

    def _load_models(self, modules: list[nn.Module], folder: str) -> None:
        modules.clear()
        for name, model in self.models.items():
            loaded = type(model).from_pretrained(Path(folder, name), low_cpu_mem_usage=False)
            model.load_state_dict(loaded.state_dict())
        for name, average in self.averages.items():
            loaded_average = EMAModel.from_pretrained(Path(folder, f"{name}_ema"), type(self.models[name]))
            average.load_state_dict(loaded_average.state_dict())
            average.to(self.accelerator.device)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Writes `checkpoint-<step>` under a temporary name, renames it, then removes the oldest beyond the limit.

        Raises:
            OSError: a full or read-only disk; earlier checkpoints are untouched and no half-written one is left.
        """
        final = self.output_dir / f"checkpoint-{step}"
        temporary = self.output_dir / f"tmp-checkpoint-{step}"
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self.accelerator.save_state(str(temporary))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                (temporary / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
                self._publish(temporary, final)
        except Exception as error:  # safetensors reports a full disk as an error of its own
            shutil.rmtree(temporary, ignore_errors=True)
            raise OSError(f"checkpoint-{step} could not be written to {self.output_dir}: {error}") from error
        self.accelerator.wait_for_everyone()
        return final

    def _publish(self, temporary: Path, final: Path) -> None:
        for path in temporary.rglob("*"):
            if path.is_file():
                _flush(path)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        if self.total_limit is not None:
            for old in list_checkpoints(self.output_dir)[: -max(self.total_limit, 1)]:
                shutil.rmtree(old, ignore_errors=True)

    def load(self, folder: Path) -> dict[str, Any]:
        """Loads a checkpoint into what was prepared; returns the trainer's state."""
        self.accelerator.load_state(str(folder))
        state: dict[str, Any] = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        return state


def _flush(path: Path) -> None:
    """To the disk itself, so that a rename never outlives its content at a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
