"""Logs: JSON lines always, beside any tracker that accelerate knows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process
from torch import Tensor


class JsonLinesTracker(GeneralTracker):
    """One line per log: `{"step": …, name: value, …}`; lines past the step that a run resumes at are dropped."""

    name = "jsonl"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, path: Path, start_step: int = 0) -> None:
        super().__init__()
        self.path = path
        self._keep_until(start_step)

    @on_main_process
    def _keep_until(self, step: int) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [
            line for line in lines if line.startswith("{") and line.endswith("}") and json.loads(line)["step"] <= step
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    @property
    def tracker(self) -> Path:
        """Where the lines go."""
        return self.path

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """The configuration has a file of its own."""

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Appends a line; non-finite values become null, which JSON can hold."""
        finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")


class RunningMeans:
    """Means of per-step values, kept on their device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds one value per name (0-dimensional tensors)."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over steps and processes, and starts anew."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        if not means:
            return {}
        values = accelerator.reduce(torch.stack(list(means.values())), reduction="mean")
        return dict(zip(means, values.tolist(), strict=True))
