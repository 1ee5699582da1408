"""`from_pretrained` by bundled name, local folder or hub id; whatever is wrong is one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import huggingface_hub
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub import errors
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined, unused-ignore]
from safetensors import SafetensorError

from ul_tokenizer import __version__
from ul_tokenizer.pretrained import bundled_names, bundled_path

if TYPE_CHECKING:
    from typing_extensions import Self

WEIGHTS = "diffusion_pytorch_model*.safetensors"
PIPELINE_INDEX = "model_index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What diffusers itself writes into a config.json: the state of `EMAModel`, and how weights were quantised.
_FOREIGN_KEYS = {
    "decay",
    "min_decay",
    "optimization_step",
    "update_after_step",
    "use_ema_warmup",
    "inv_gamma",
    "power",
    "quantization_config",
}


class NoModelError(ValueError):
    """The repository or folder exists and holds no model (where a subfolder was asked for: not there)."""


class BundledNamesMixin(ModelMixin, ConfigMixin):  # type: ignore[misc, unused-ignore]
    """Loads from a bundled name, a local folder or a hub id, in this order; safetensors only.

    Of a pipeline's folder, the part that the class is.
    """

    _pipeline_part: ClassVar[str]  # the folder of such a model in a pipeline

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """As diffusers' `from_pretrained`, with weights in fp32 unless `torch_dtype` (or `dtype`) is given.

        Args:
            pretrained_model_name_or_path: a bundled name, a local folder or a hub id.
            **kwargs: diffusers' (`revision`, `subfolder`, `torch_dtype`, `device_map`, `local_files_only`, …).

        Raises:
            NoModelError: a folder or repository without the model.
            ValueError: a damaged file, a config or weights of another class, pickled weights, no connection.
        """
        name = os.fspath(pretrained_model_name_or_path)
        _check_options(kwargs)
        source = _resolve(name, kwargs, cls._pipeline_part)
        wants_info = kwargs.pop("output_loading_info", False)
        with _one_sentence(name, kwargs.get("revision")):
            model, info = super().from_pretrained(source, use_safetensors=True, output_loading_info=True, **kwargs)
        _check_fit(name, info)
        model.register_to_config(_name_or_path=name)
        loaded: Any = (model, info) if wants_info else model
        return loaded

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As diffusers' `load_config`.

        Raises:
            ValueError: the config is of another class or has keys that this version doesn't know.
        """
        loaded = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        _check_config(cls, config, Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "", "config.json"))
        return loaded


# ---------------------------------------------------------------- where


def _check_options(kwargs: dict[str, Any]) -> None:
    if kwargs.pop("use_safetensors", None) is False:
        raise ValueError("use_safetensors must be True or None, got False: pickled weights are not read.")
    for key in ("torch_dtype", "dtype"):
        if not isinstance(kwargs.get(key), torch.dtype | None):
            raise ValueError(f"{key} must be a torch.dtype, got {kwargs[key]!r}.")


def _resolve(name: str, kwargs: dict[str, Any], part: str) -> str:
    """A folder that holds the model, or the hub id; takes what is used up out of `kwargs`."""
    folder = bundled_path(name)
    if folder is not None and kwargs.pop("revision", None) is not None:
        raise ValueError(f"revision must be None for the bundled model {name}, which has only one.")
    if folder is None and os.path.isdir(name):
        folder = Path(name)
    if folder is None:
        _check_hub_id(name)
        return name
    # diffusers would take weights at the root of a local repository before those of the subfolder.
    folder = model_folder(folder, kwargs.pop("subfolder", None), part)
    _check_folder(folder)
    return str(folder)


def model_folder(folder: Path, subfolder: str | None, part: str) -> Path:
    """Where a model lies: in a subfolder, at the root, or, in a pipeline's folder, in the folder of its part."""
    if subfolder:
        return folder / subfolder
    is_pipeline = (folder / PIPELINE_INDEX).is_file() and not (folder / "config.json").exists()
    return folder / part if is_pipeline else folder


def pipeline_source(name: str) -> str:
    """A folder that holds a pipeline, or a hub id.

    Raises:
        NoModelError: a folder without a pipeline.
        ValueError: neither.
    """
    folder = bundled_path(name) or (Path(name) if os.path.isdir(name) else None)
    if folder is None:
        _check_hub_id(name)
        return name
    if not (folder / PIPELINE_INDEX).is_file():
        raise NoModelError(f"Folder {folder} holds no pipeline: there is no {PIPELINE_INDEX} in it.")
    return str(folder)


def _check_hub_id(name: str) -> None:
    """Refuses, before anything is asked of the network, what can't be the id of a trained model."""
    try:
        validate_repo_id(name)
        legal = name.count("/") == 1 and not os.path.exists(name)
    except errors.HFValidationError:
        legal = False
    if not legal:
        known = ", ".join(bundled_names()) or "of which there are none"
        raise ValueError(
            f"Model {name} is no bundled name ({known}), no folder that exists and no hub id (owner/name)."
        )


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise NoModelError(f"Folder {folder} holds no model: there is no config.json in it.")
    if any(folder.glob(WEIGHTS)):
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if pickled:
        raise ValueError(_pickled_only(str(folder), pickled[0]))
    raise ValueError(f"Folder {folder} holds no weights: there is no diffusion_pytorch_model.safetensors in it.")


def _pickled_only(where: str, file: str) -> str:
    return f"Model {where} has pickled weights ({file}), which can run code when read; only safetensors are read."


# ---------------------------------------------------------------- what


def _check_config(cls: type[Any], config: Any, path: Path) -> None:
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(config).__name__}.")
    made_for = config.get("_class_name", cls.__name__)
    if made_for not in {base.__name__ for base in cls.__mro__}:
        raise ValueError(f"{path} must be the config of a {cls.__name__}, got one of {made_for!r}.")
    legal = cls._get_init_keys(cls) | _FOREIGN_KEYS
    unknown = sorted(key for key in config if key not in legal and not key.startswith("_"))
    if unknown:
        raise ValueError(
            f"{path} has the key {unknown[0]!r}, which {cls.__name__} of ul_tokenizer {__version__} doesn't know; "
            "was it written by a newer version?"
        )


def _check_fit(name: str, info: dict[str, list[str]]) -> None:
    """Every weight of the network came from the file, and every one of the file went into the network."""
    for kind in ("missing", "unexpected", "mismatched"):
        keys = sorted(map(str, info[f"{kind}_keys"]))
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ValueError(f"The weights of {name} don't fit its config.json: {keys[0]}{more} {kind}.")


# ---------------------------------------------------------------- what went wrong


@contextmanager
def _one_sentence(name: str, revision: str | None) -> Iterator[None]:
    """Turns the errors of diffusers, the hub's client and safetensors into a ValueError; ours pass."""
    default_dtype = torch.get_default_dtype()
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        chain = list(_chain(error))
        reason = _explain(name, revision, chain)
        if reason is None and isinstance(error, ValueError):
            raise
        reason = reason or f"Model {name} can't be loaded: {_first_line(error)}."
        no_model = any(isinstance(e, errors.EntryNotFoundError) for e in chain) and "config.json" in str(error)
        raise (NoModelError if no_model else ValueError)(reason) from error
    finally:
        torch.set_default_dtype(default_dtype)  # diffusers leaves torch_dtype behind if the network can't be built


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain(name: str, revision: str | None, chain: list[BaseException]) -> str | None:
    """What is known to go wrong; None for anything else."""
    texts = " ".join(map(str, chain))
    if "git-lfs" in texts:
        return f"The weights of {name} are a git-lfs pointer; run `git lfs pull` in its folder."
    for error in chain:
        if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
            return f"Model {name} is not bundled, not a folder, not in the hub's cache, and the hub can't be reached."
        if isinstance(error, errors.GatedRepoError):
            return f"Hub repository {name} is gated: accept its terms on the hub and log in with `hf auth login`."
        if isinstance(error, errors.RepositoryNotFoundError):
            return f"Model {name} is no folder, and no repository of the hub either unless it needs `hf auth login`."
        if isinstance(error, errors.RevisionNotFoundError):
            return f"Hub repository {name} has no revision {revision!r}."
        if isinstance(error, errors.EntryNotFoundError):
            return _explain_missing_file(name, revision, texts)
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) and "config file" in texts:
            return f"The config.json of {name} is damaged: it is no JSON."
        if isinstance(error, SafetensorError):
            return f"The weights of {name} are damaged or cut short: {_first_line(error)}."
    if "expected shape" in texts:
        return (
            f"The weights of {name} don't fit its config.json: {texts.partition('because ')[2].partition('. If')[0]}."
        )
    return None


def _explain_missing_file(name: str, revision: str | None, texts: str) -> str:
    if "config.json" in texts:
        return f"Hub repository {name} holds no such model: there is no config.json for it."
    try:
        files = huggingface_hub.list_repo_files(name, revision=revision)
    except (OSError, errors.HfHubHTTPError):
        files = []
    pickled = [file for file in files if file.endswith(_PICKLED)]
    if pickled:
        return _pickled_only(name, pickled[0])
    return f"Hub repository {name} holds no weights: there is no diffusion_pytorch_model.safetensors in it."


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ")
