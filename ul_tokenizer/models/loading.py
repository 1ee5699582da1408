"""`from_pretrained` by bundled name, local folder or hub id; whatever is wrong is one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub import errors
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined, unused-ignore]
from safetensors import SafetensorError

from ul_tokenizer import __version__, _compat
from ul_tokenizer.hub.download import Access, fetch
from ul_tokenizer.hub.weights import is_weights, variant_of
from ul_tokenizer.models.single_file import load_single_file
from ul_tokenizer.pretrained import bundled_names, bundled_path
from ul_tokenizer.publish.mixin import PushToHubMixin

if TYPE_CHECKING:
    from typing_extensions import Self

PIPELINE_INDEX = "model_index.json"
DESCRIPTIONS = ("README.md", "class_names.json", "training_curve.json")  # small, and of use without a network
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class NoModelError(ValueError):
    """The repository or folder exists and holds no model (where a subfolder was asked for: not there)."""


class BundledNamesMixin(PushToHubMixin, ModelMixin, ConfigMixin):  # type: ignore[misc, unused-ignore]
    """Loads from a bundled name, a local folder or a hub id, in this order; safetensors only.

    Of a pipeline's folder, the part that the class is.

    Attributes:
        commit_hash: of the hub repository that the weights came from; None for others.
    """

    _pipeline_part: ClassVar[str]  # the folder of such a model in a pipeline
    commit_hash: str | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """As diffusers' `from_pretrained`, with weights in fp32 unless `torch_dtype` (or `dtype`) is given.

        Args:
            pretrained_model_name_or_path: a bundled name, a local folder or a hub id.
            **kwargs: diffusers' (`revision`, `subfolder`, `torch_dtype`, `device_map`, `local_files_only`, …).

        Raises:
            NoModelError: a folder or repository without the model.
            HubError: what the hub says; a subclass for each of missing, gated, no access, no such revision, offline.
            ValueError: a damaged file, a config or weights of another class, pickled weights.
        """
        name = os.fspath(pretrained_model_name_or_path)
        _check_options(kwargs)
        source, commit = _resolve(name, kwargs, cls._pipeline_part)
        wants_info = kwargs.pop("output_loading_info", False)
        with _one_sentence(name):
            model, info = super().from_pretrained(source, use_safetensors=True, output_loading_info=True, **kwargs)
        _check_fit(name, info)
        model.register_to_config(_name_or_path=name)
        model.commit_hash = commit
        loaded: Any = (model, info) if wants_info else model
        return loaded

    @classmethod
    def from_single_file(cls, path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Loads one safetensors file that holds its config, as `conversion/to_safetensors_single_file.py` writes it.

        Args:
            path: the file.
            **kwargs: as for `from_pretrained`.

        Raises:
            ValueError: another file, or a damaged one.
        """
        model: Self = load_single_file(cls, Path(path), **kwargs)
        return model

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


def _resolve(name: str, kwargs: dict[str, Any], part: str) -> tuple[Path, str | None]:
    """The folder that holds the model, and its commit if it is the hub's; takes what is used up out of `kwargs`."""
    revision, subfolder, commit = kwargs.pop("revision", None), kwargs.pop("subfolder", None), None
    access = Access.taken_from(kwargs)
    folder = local_folder(name)
    if bundled_path(name) is not None and revision is not None:
        raise ValueError(f"revision must be None for the bundled model {name}, which has only one.")
    if folder is None:
        check_hub_id(name)
        wanted = _ModelFiles(name, subfolder, part, kwargs.get("variant"))
        folder, commit = fetch(name, wanted, revision, access=access)
    # diffusers would take weights at the root of a local repository before those of the subfolder.
    folder = model_folder(folder, subfolder, part)
    _check_folder(folder, kwargs.get("variant"))
    return folder, commit


def local_folder(name: str) -> Path | None:
    """The folder of a bundled name or a local one; None for a hub id."""
    bundled = bundled_path(name)
    return Path(name) if bundled is None and os.path.isdir(name) else bundled


class _ModelFiles:
    """Which files of a repository a model is made of."""

    def __init__(self, name: str, subfolder: str | None, part: str, variant: str | None) -> None:
        self.name, self.subfolder, self.part, self.variant = name, subfolder, part, variant

    def __call__(self, files: Sequence[str]) -> list[str]:
        is_pipeline = PIPELINE_INDEX in files and "config.json" not in files
        where = self.subfolder or (self.part if is_pipeline else "")
        prefix = f"{where}/" if where else ""
        here = {file.removeprefix(prefix): file for file in files if file.startswith(prefix)}
        if "config.json" not in here:
            raise NoModelError(f"Hub repository {self.name} holds no such model: there is no config.json for it.")
        weights = weight_files(here, self.variant)
        if not weights:
            raise _no_weights(f"Hub repository {self.name}", here, self.variant)
        # By its index the part of a pipeline is found again.
        beside = [file for file in (*DESCRIPTIONS, PIPELINE_INDEX) if file in files]
        return [*beside, here["config.json"], *(here[file] for file in weights)]


def weight_files(names: Iterable[str], variant: str | None) -> list[str]:
    """Of a folder's files, the weights of a variant and their index, sorted."""
    chosen = sorted(name for name in names if variant_of(name) == (variant or ""))
    return chosen if any(name.endswith(".safetensors") for name in chosen) else []


def model_folder(folder: Path, subfolder: str | None, part: str) -> Path:
    """Where a model lies: in a subfolder, at the root, or, in a pipeline's folder, in the folder of its part."""
    if subfolder:
        return folder / subfolder
    is_pipeline = (folder / PIPELINE_INDEX).is_file() and not (folder / "config.json").exists()
    return folder / part if is_pipeline else folder


def check_hub_id(name: str) -> None:
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


def _check_folder(folder: Path, variant: str | None) -> None:
    if not (folder / "config.json").is_file():
        raise NoModelError(f"Folder {folder} holds no model: there is no config.json in it.")
    names = [path.name for path in folder.iterdir()]
    weights = weight_files(names, variant)
    if not weights:
        raise _no_weights(f"Folder {folder}", names, variant)
    for name in weights:
        if name.endswith(".json"):
            _check_index(folder / name)


def _no_weights(where: str, names: Iterable[str], variant: str | None) -> ValueError:
    pickled = sorted(name for name in names if name.endswith(_PICKLED))
    if pickled:
        return ValueError(
            f"{where} has pickled weights ({pickled[0]}), which can run code when read; only safetensors are read."
        )
    of_variant = f" of the variant {variant!r}" if variant else ""
    return ValueError(f"{where} holds no weights{of_variant}: there is no diffusion_pytorch_model.safetensors in it.")


def _check_index(path: Path) -> None:
    """Shards lie beside their index, whatever it says, and are all there."""
    try:
        shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        is_plain = all(map(is_weights, shards))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged: it is no index of weights.") from None
    if not is_plain:
        raise ValueError(f"{path} names a file that is none of this folder's weights.")
    lacking = sorted(shard for shard in shards if not (path.parent / shard).is_file())
    if lacking:
        raise ValueError(f"The weights in {path.parent} are not all there: {lacking[0]} is missing.")


# ---------------------------------------------------------------- what


def _check_config(cls: type[Any], config: Any, path: Path) -> None:
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(config).__name__}.")
    made_for = config.get("_class_name", cls.__name__)
    if made_for not in {base.__name__ for base in cls.__mro__}:
        raise ValueError(f"{path} must be the config of a {cls.__name__}, got one of {made_for!r}.")
    legal = _compat.init_keys(cls) | _compat.FOREIGN_CONFIG_KEYS
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
def _one_sentence(name: str) -> Iterator[None]:
    """Turns the errors of diffusers and safetensors into a ValueError; ours pass."""
    default_dtype = torch.get_default_dtype()
    try:
        yield
    except (OSError, ValueError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        reason = _explain(name, list(_chain(error)))
        if reason is None and isinstance(error, ValueError):
            raise
        raise ValueError(reason or f"Model {name} can't be loaded: {_first_line(error)}.") from error
    finally:
        torch.set_default_dtype(default_dtype)  # diffusers leaves torch_dtype behind if the network can't be built


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain(name: str, chain: list[BaseException]) -> str | None:
    """What is known to go wrong; None for anything else."""
    texts = " ".join(map(str, chain))
    if "git-lfs" in texts:
        return f"The weights of {name} are a git-lfs pointer; run `git lfs pull` in its folder."
    for error in chain:
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) and "config file" in texts:
            return f"The config.json of {name} is damaged: it is no JSON."
        if isinstance(error, SafetensorError):
            return f"The weights of {name} are damaged or cut short: {_first_line(error)}."
    if "expected shape" in texts:
        return (
            f"The weights of {name} don't fit its config.json: {texts.partition('because ')[2].partition('. If')[0]}."
        )
    return None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(". ")
