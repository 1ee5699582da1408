"""`from_pretrained` by bundled name, local folder or hub id; every fault is reported in one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub import errors
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined, unused-ignore]
from safetensors import SafetensorError

from ul_tokenizer.hub.download import Access, fetch
from ul_tokenizer.models.checkpoint import (
    NoModelError,
    check_checkpoint,
    check_config,
    first_line,
    no_weights,
    weight_files,
)
from ul_tokenizer.models.single_file import load_single_file
from ul_tokenizer.pretrained import bundled_names, bundled_path
from ul_tokenizer.publish.mixin import PushToHubMixin

if TYPE_CHECKING:
    from typing_extensions import Self

PIPELINE_INDEX = "model_index.json"
DESCRIPTIONS = ("README.md", "class_names.json", "training_curve.json")  # small, and of use without a network


class BundledNamesMixin(PushToHubMixin, ModelMixin, ConfigMixin):  # type: ignore[misc, unused-ignore]
    """Loads from a bundled name, a local folder or a hub id, in this order; safetensors only.

    From the folder of a pipeline it loads the part that is of this class.

    Attributes:
        commit_hash: commit of the hub repository that the weights came from; None for bundled and local models.
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
            NoModelError: a folder or repository without the model; an OSError, too.
            NoWeightsError: one without weights, or without those of the variant; an OSError, too.
            HubError: what the hub answers; a subclass for each of missing, gated, no access, no such revision, offline.
            ValueError: a damaged file, a config or weights of another class, pickled weights.
        """
        name = os.fspath(pretrained_model_name_or_path)
        _check_options(kwargs)
        source, commit = _resolve(name, kwargs, cls._pipeline_part)
        wants_info = kwargs.pop("output_loading_info", False)
        check_checkpoint(cls, name, source, kwargs.get("variant"))
        with _one_sentence(name):
            model, info = super().from_pretrained(source, use_safetensors=True, output_loading_info=True, **kwargs)
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
        check_config(cls, config, Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "", "config.json"))
        return loaded


# ---------------------------------------------------------------- where


def _check_options(kwargs: dict[str, Any]) -> None:
    if kwargs.pop("use_safetensors", None) is False:
        raise ValueError("use_safetensors must be True or None, got False: pickled weights are not read.")
    for key in ("torch_dtype", "dtype"):
        if not isinstance(kwargs.get(key), torch.dtype | None):
            raise ValueError(f"{key} must be a torch.dtype, got {kwargs[key]!r}.")


def _resolve(name: str, kwargs: dict[str, Any], part: str) -> tuple[Path, str | None]:
    """The folder that holds the model, and its commit on the hub or None; removes from `kwargs` what it uses."""
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
    return model_folder(folder, subfolder, part), commit


def local_folder(name: str) -> Path | None:
    """The folder of a bundled name or a local one; None for a hub id."""
    bundled = bundled_path(name)
    return Path(name) if bundled is None and os.path.isdir(name) else bundled


class _ModelFiles:
    """Chooses the files of a repository that belong to one model."""

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
            raise no_weights(f"Hub repository {self.name}", here, self.variant)
        # By its index the part of a pipeline is found again.
        beside = [file for file in (*DESCRIPTIONS, PIPELINE_INDEX) if file in files]
        return [*beside, here["config.json"], *(here[file] for file in weights)]


def model_folder(folder: Path, subfolder: str | None, part: str) -> Path:
    """The folder of a model: the subfolder, or the root, or in a pipeline's folder the one of this part."""
    if subfolder:
        return folder / subfolder
    is_pipeline = (folder / PIPELINE_INDEX).is_file() and not (folder / "config.json").exists()
    return folder / part if is_pipeline else folder


def check_hub_id(name: str) -> None:
    """Refuses names that can't be hub ids, before any request is sent.

    Raises:
        ValueError: lists the kinds of names that are legal.
    """
    try:
        validate_repo_id(name)
        legal = name.count("/") == 1 and not os.path.exists(name)
    except errors.HFValidationError:
        legal = False
    if not legal:
        known = ", ".join(bundled_names()) or "there are none"
        raise ValueError(
            f"Model {name} is neither a bundled name ({known}) nor an existing folder nor a hub id (owner/name)."
        )


@contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """Turns what the checks did not foresee into one ValueError, and puts torch's default dtype back."""
    default_dtype = torch.get_default_dtype()
    try:
        yield
    except (TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        raise ValueError(f"Model {name} can't be loaded: {first_line(error)}.") from error
    finally:
        torch.set_default_dtype(default_dtype)  # diffusers leaves torch_dtype behind after an error
