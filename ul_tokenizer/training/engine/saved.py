"""A model in a checkpoint: a folder that its `from_pretrained` loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffusers import ModelMixin
from diffusers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor

MAX_SHARD_SIZE = "10GB"  # as diffusers has it; larger models are written in several files


class SavedModel(NamedTuple):
    """Config and weights of a model at one step; training on does not change them."""

    config: str  # JSON
    weights: dict[str, Tensor]  # on the CPU

    @classmethod
    def of(cls, model: ModelMixin, weights: dict[str, Tensor], **extra: Any) -> SavedModel:
        """A model with these weights and additional entries in its config."""
        config: str = model.to_json_string()
        if extra:
            config = json.dumps({**json.loads(config), **extra}, indent=2, sort_keys=True) + "\n"
        return cls(config, weights)

    def write(self, folder: Path) -> None:
        """Writes the folder.

        Raises:
            OSError: the disk is full or can't be written.
            SafetensorError: likewise.
        """
        folder.mkdir(parents=True)
        (folder / CONFIG_NAME).write_text(self.config, encoding="utf-8")
        pattern = SAFETENSORS_WEIGHTS_NAME.replace(".safetensors", "{suffix}.safetensors")
        save_torch_state_dict(self.weights, folder, filename_pattern=pattern, max_shard_size=MAX_SHARD_SIZE)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights in a model's folder, from one file or from several.

    Raises:
        OSError: a file is missing.
        SafetensorError: a file is damaged.
    """
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    names = [SAFETENSORS_WEIGHTS_NAME]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return {key: tensor for name in names for key, tensor in load_file(folder / name).items()}


def read_extra(folder: Path, key: str) -> Any:
    """An entry of the config in a model's folder."""
    return json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))[key]


def check_shapes(name: str, here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> None:
    """Refuses weights that are not those of a model.

    Raises:
        ValueError: one has another shape, or is missing on one side.
    """
    for key in sorted(here.keys() | there.keys()):
        shapes = [tuple(weights[key].shape) if key in weights else None for weights in (here, there)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{key} of the {name} has the shape {shapes[1]}, but this run needs {shapes[0]}")
