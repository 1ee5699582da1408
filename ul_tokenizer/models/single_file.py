"""A model in one safetensors file, with its config in the file's metadata."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ul_tokenizer.files import whole_file

CONFIG = "ul_tokenizer.config"
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def save_single_file(model: ModelMixin, path: str | Path) -> None:
    """Writes weights and config, completely or not at all.

    Raises:
        OSError: a full or read-only disk.
    """
    path = Path(path)
    config = {key: value for key, value in dict(model.config).items() if key != "_name_or_path"}
    text = json.dumps({**config, "_class_name": type(model).__name__})
    weights = {key: weight.contiguous() for key, weight in model.state_dict().items()}
    try:
        with whole_file(path) as temporary:
            save_file(weights, temporary, metadata={"format": "pt", CONFIG: text})
            temporary.chmod(0o644)  # safetensors writes files for their owner only
    except SafetensorError as error:
        raise OSError(f"{path} can't be written: {error}") from error


def load_single_file(cls: type[Any], path: str | Path, **kwargs: Any) -> Any:
    """Loads a file of `save_single_file`; arguments and checks are those of `from_pretrained`.

    Raises:
        ValueError: another file, or a damaged one.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(CONFIG)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} can't be read: {str(error).splitlines()[0].rstrip('.')}.") from error
    if text is None:
        raise ValueError(f"{path} must have its model's config in its metadata, under {CONFIG!r}, which it has not.")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(text, encoding="utf-8")
        Path(folder, _WEIGHTS).symlink_to(path.resolve())
        model = cls.from_pretrained(folder, **kwargs)
    model.register_to_config(_name_or_path=str(path))
    return model
