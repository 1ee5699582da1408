"""Logs: JSON lines, in addition to any tracker of accelerate, and what such a tracker gets beside numbers."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process
from PIL import Image
from torch import Tensor

from ul_tokenizer.files import append_json_line

_TAKE_ONE = {"aim", "clearml"}  # these trackers of accelerate take one picture where others take a list


class JsonLinesTracker(GeneralTracker):
    """Writes one line for each log entry, `{"step": …, name: value, …}`.

    Args:
        path: the file; it is appended to.
        start_step: the step at which the run starts or resumes; lines of later steps are removed.
    """

    name = "jsonl"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, path: Path, start_step: int = 0) -> None:
        super().__init__()
        self.path = path
        self._keep_until(start_step)

    @on_main_process
    def _keep_until(self, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            file.seek(0)
            kept = sum(map(len, itertools.takewhile(lambda line: _is_kept(line, step), file)))
            file.truncate(kept)  # steps only rise within the file, and this works on a full disk

    @property
    def tracker(self) -> Path:
        """The file of the log."""
        return self.path

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Does nothing: the configuration is in a file of its own."""

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Appends a line; non-finite values become null, because JSON has none."""
        finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in values.items()}
        append_json_line(self.path, {"step": step, **finite})


def _is_kept(line: bytes, last_step: int) -> bool:
    return line.startswith(b"{") and line.endswith(b"}\n") and json.loads(line)["step"] <= last_step


def hyperparameters(values: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Arguments as every tracker takes them: entries of a mapping as "name.entry", None and lists as JSON text."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{entry}": inner for entry, inner in hyperparameters(value).items()}
        else:
            flat[name] = value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str)
    return flat


def log_picture(trackers: Iterable[GeneralTracker], name: str, picture: Image.Image, step: int) -> None:
    """Gives a picture to every tracker that takes pictures; the others, such as the JSON lines, are left out."""
    for tracker in trackers:
        if not hasattr(tracker, "log_images"):
            continue
        if tracker.name == "tensorboard":
            tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
        else:
            tracker.log_images({name: picture if tracker.name in _TAKE_ONE else [picture]}, step=step)


class RunningMeans:
    """Means of values over steps; sums and counts stay on their device until they are read."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sums = self._counts = torch.empty(0)  # one entry per name

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds one value per name (0-dimensional tensors); NaN, which stands for a skipped step, is not counted.

        The names must be the same in each call.
        """
        if not values:
            return
        new = torch.stack([value.detach().float() for value in values.values()])
        counted = ~new.isnan()
        if not self._names:
            self._names, self._sums, self._counts = tuple(values), torch.zeros_like(new), torch.zeros_like(new)
        assert self._names == tuple(values)  # a stage logs the same values in all steps
        self._sums = self._sums + new.where(counted, 0.0)
        self._counts = self._counts + counted

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Returns the means over steps and processes, and starts again at zero; names without a value are left out."""
        if not self._names:
            return {}
        means = self._sums / self._counts.clamp(min=1)
        means, counts = accelerator.reduce(torch.stack([means, self._counts]), reduction="mean").tolist()
        values = {name: mean for name, mean, n in zip(self._names, means, counts, strict=True) if n}
        self._names = ()
        return values

    def state_dict(self, accelerator: Accelerator) -> dict[str, tuple[float, float]]:
        """Returns sums and counts since the last `take`, as means over processes; every process must call it."""
        if not self._names:
            return {}
        sums, counts = accelerator.reduce(torch.stack([self._sums, self._counts]), reduction="mean").tolist()
        return dict(zip(self._names, zip(sums, counts, strict=True), strict=True))

    def load_state_dict(self, state: Mapping[str, tuple[float, float]], device: torch.device) -> None:
        """Restores what `state_dict` returned."""
        self._names = tuple(state)
        self._sums, self._counts = torch.tensor(list(state.values()), device=device).reshape(-1, 2).unbind(1)
