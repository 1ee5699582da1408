"""Checks of the files in a model's folder, before diffusers loads them.

diffusers reports such faults in long messages that differ between versions. Here each has one sentence of ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open

from ul_tokenizer import __version__, _compat
from ul_tokenizer.hub.weights import is_weights, variant_of

CONFIG = "config.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LFS_POINTER = b"version https://git-lfs"
Shapes = dict[str, tuple[int, ...]]


class NoModelError(ValueError, OSError):
    """The folder or repository exists but holds no model of the kind asked for."""


class WrongClassError(ValueError):
    """The folder or repository holds a model of another class."""


class NoWeightsError(ValueError, OSError):
    """A model's folder or repository has a config, but no weights that can be read, or none of the variant."""


def check_checkpoint(cls: type[Any], name: str, folder: Path, variant: str | None) -> None:
    """Checks that a folder holds a config and weights of a class, and that they belong together.

    Only the headers of the weights are read, and the network is built without memory for its weights.

    Args:
        cls: the model class.
        name: what the user asked for, for the messages.
        folder: holds `config.json` and the safetensors files.
        variant: of the weights, e.g. "fp16".

    Raises:
        NoModelError: there is no config.
        NoWeightsError: there are no weights (of the variant), or pickled ones only.
        ValueError: one sentence about what is damaged, or does not fit.
    """
    if not (folder / CONFIG).is_file():
        raise NoModelError(f"Folder {folder} holds no model: there is no {CONFIG} in it.")
    files = _checked_files(folder, variant)
    config = read_config(name, folder / CONFIG)
    check_config(cls, config, folder / CONFIG)
    expected = _expected_shapes(cls, name, config)
    if "quantization_config" not in config:  # whose weights have other names and shapes
        _check_fit(name, expected, _stored_shapes(name, files))


# ---------------------------------------------------------------- files


def weight_files(names: Iterable[str], variant: str | None) -> list[str]:
    """Of a folder's files, the weights of a variant and their index, sorted; empty if there are no weights."""
    chosen = sorted(name for name in names if variant_of(name) == (variant or ""))
    return chosen if any(name.endswith(".safetensors") for name in chosen) else []


def no_weights(where: str, names: Iterable[str], variant: str | None) -> NoWeightsError:
    """The error for a place without weights that can be read."""
    pickled = sorted(name for name in names if name.endswith(_PICKLED))
    if pickled:
        return NoWeightsError(
            f"{where} has pickled weights ({pickled[0]}), which can run code when read; only safetensors are read."
        )
    of_variant, infix = (f" of the variant {variant!r}", f".{variant}") if variant else ("", "")
    others = sorted({other for name in names if (other := variant_of(name)) and other != variant})
    hint = f" Its weights are of the variant {others[0]!r}: pass variant={others[0]!r}." if others else ""
    return NoWeightsError(
        f"{where} holds no weights{of_variant}: there is no diffusion_pytorch_model{infix}.safetensors in it.{hint}"
    )


def _checked_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors files of a variant: the shards that an index lists, or the single file."""
    names = [path.name for path in folder.iterdir()]
    weights = weight_files(names, variant)
    if not weights:
        error = no_weights(f"Folder {folder}", names, variant)
        # Programs written for diffusers look for this sentence of its own, and so do its test mixins.
        host_words = f"Error no file named diffusion_pytorch_model.bin found in directory {folder}."
        raise NoWeightsError(f"{error} In diffusers' words: {host_words}")
    indices = [name for name in weights if name.endswith(".json")]
    shards = _indexed_shards(folder / indices[0]) if indices else weights
    return [folder / shard for shard in shards]


def _indexed_shards(path: Path) -> list[str]:
    try:
        shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        is_plain = all(map(is_weights, shards))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: it is not an index of weights.") from error
    if not is_plain:
        raise ValueError(f"{path} names a file that is none of this folder's weights.")
    lacking = [shard for shard in shards if not (path.parent / shard).is_file()]
    if lacking:
        raise ValueError(f"The weights in {path.parent} are not complete: {lacking[0]} is missing.")
    return shards


# ---------------------------------------------------------------- config


def read_config(name: str, path: Path) -> Any:
    """The JSON value of a config file.

    Raises:
        ValueError: the file is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"The config.json of {name} is damaged: it is not JSON.") from error


def check_config(cls: type[Any], config: Any, path: Path) -> None:
    """Checks that a config is of a class and has only keys that this version knows.

    Raises:
        WrongClassError: the config is of another class.
        ValueError: names the file and what is wrong.
    """
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(config).__name__}.")
    made_for = config.get("_class_name", cls.__name__)
    if made_for not in {base.__name__ for base in cls.__mro__}:
        raise WrongClassError(f"{path} must be the config of a {cls.__name__}, got one of {made_for!r}.")
    legal = _compat.init_keys(cls) | _compat.FOREIGN_CONFIG_KEYS
    unknown = sorted(key for key in config if key not in legal and not key.startswith("_"))
    if unknown:
        raise ValueError(
            f"{path} has the key {unknown[0]!r}, which {cls.__name__} of ul_tokenizer {__version__} doesn't know; "
            "was it written by a newer version?"
        )


# ---------------------------------------------------------------- weights


def _expected_shapes(cls: type[Any], name: str, config: dict[str, Any]) -> Shapes:
    """The weights of the network that the config describes; no memory is allocated for them."""
    arguments = {key: config[key] for key in _compat.init_keys(cls) if key in config}
    try:
        # Initialisations may draw from torch's generator; what a seed gives must not depend on this check.
        with init_empty_weights(), torch.random.fork_rng(devices=[]):
            network = cls(**arguments)
    except (TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"The config.json of {name} is not that of a {cls.__name__}: {first_line(error)}.") from error
    return {key: tuple(weight.shape) for key, weight in network.state_dict().items()}


def _stored_shapes(name: str, files: Iterable[Path]) -> Shapes:
    shapes: Shapes = {}
    for path in files:
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ValueError(f"The weights of {name} are a git-lfs pointer; run `git lfs pull` in its folder.")
        try:
            with safe_open(path, framework="pt") as weights:
                shapes |= {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"The weights of {name} are damaged or cut short: {first_line(error)}.") from error
    return shapes


def _check_fit(name: str, expected: Shapes, stored: Shapes) -> None:
    """Every weight of the network is in the files, with its shape, and the files hold no others."""
    misfit = f"The weights of {name} don't fit its config.json"
    for keys, kind in ((expected.keys() - stored, "missing"), (stored.keys() - expected, "unexpected")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"{misfit}: {min(keys)}{more} {kind}.")
    for key, shape in expected.items():
        if stored[key] != shape:
            raise ValueError(f"{misfit}: {key} must have the shape {shape}, got {stored[key]}.")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop; the error's class if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ")
