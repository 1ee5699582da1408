"""What the files in a model's folder say: its class, its size, its training and its last measured figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from ul_tokenizer.files import whole_lines

# Arguments of a training that are of no use on another machine.
_LOCAL = {"output_dir", "resume_from_checkpoint", "report_to", "tracker_project_name", "hub_token", "hub_model_id"}


def class_name(folder: Path) -> str:
    """The class in a folder's config; "" if there is none."""
    for file in ("model_index.json", "config.json", "scheduler_config.json"):
        if values := read_config(folder / file):
            return str(values.get("_class_name", ""))
    return ""


def has_text_encoder(folder: Path) -> bool:
    """Whether a folder holds a pipeline with a text encoder."""
    entry = read_config(folder / "model_index.json").get("text_encoder")
    return isinstance(entry, list) and bool(entry) and entry[0] is not None


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if the file is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def parameter_count(folder: Path) -> int:
    """Number of parameters in a folder's weights, from the headers of the files alone."""
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, framework="np") as file:
                total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError):
            continue
    return total


def training_arguments(folder: Path) -> dict[str, Any]:
    """Arguments in a training's config.yaml, without local ones; paths are reduced to their last part."""
    path = folder / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except yaml.YAMLError:
        values = None
    if not isinstance(values, dict):
        return {}
    kept = {key: value for key, value in values.items() if key not in _LOCAL and value is not None}
    return {key: Path(value).name if _is_path(value) else value for key, value in kept.items()}


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith(("/", "~", ".")) or value.count("/") > 1)


def last_figures(folder: Path) -> dict[str, float]:
    """Figures of the last validation in a training's metrics.jsonl, with its `step`; empty if there is none."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return {}
    rows = (row for line in reversed(list(whole_lines(path))) if (row := _parsed(line)))
    last = next((row for row in rows if any(key.startswith("validation/") for key in row)), {})
    numbers = {key: value for key, value in last.items() if isinstance(value, int | float) and math.isfinite(value)}
    return {key.removeprefix("validation/"): float(value) for key, value in numbers.items()}


def _parsed(line: str) -> dict[str, Any]:
    """The object in a JSON line; empty for a damaged line."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
