"""Repositories of trained models: loading, and what they say of it.

The autoencoder lies at the root with its prior in `prior/`, or, in a pipeline's folder, in `vae/` with `vae/prior/`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import huggingface_hub
import torch

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.loading import WEIGHTS, NoModelError, model_folder
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.pretrained import bundled_path, sha256_of

AUTOENCODER, PRIOR = "vae", "prior"
CLASS_NAMES = "class_names.json"


class MissingPriorError(NoModelError):
    """The repository has no prior."""


def load_autoencoder(
    name: str, *, revision: str | None = None, torch_dtype: torch.dtype | None = None, **kwargs: Any
) -> UnifiedLatentsAutoencoder:
    """The autoencoder of a repository.

    Args:
        name: a bundled name, a local folder or a hub id, tried in this order.
        revision: branch, tag or commit on the hub.
        torch_dtype: of the weights; fp32 where None.
        **kwargs: as for `from_pretrained`.

    Raises:
        ValueError: nothing there, or nothing that can be read; one sentence says what.
    """
    model: UnifiedLatentsAutoencoder = UnifiedLatentsAutoencoder.from_pretrained(
        name, revision=revision, torch_dtype=torch_dtype, **kwargs
    )
    return model


def load_prior(
    name: str, *, revision: str | None = None, torch_dtype: torch.dtype | None = None, **kwargs: Any
) -> UnifiedLatentsTransformer:
    """The stage-1 prior of a repository; arguments as `load_autoencoder`.

    Raises:
        MissingPriorError: the repository has none.
        ValueError: as `load_autoencoder`.
    """
    subfolder = PRIOR if (folder := local_folder(name)) is None else autoencoder_subfolder(folder) + PRIOR
    try:
        model: UnifiedLatentsTransformer = UnifiedLatentsTransformer.from_pretrained(
            name, revision=revision, subfolder=subfolder, torch_dtype=torch_dtype, **kwargs
        )
    except NoModelError as error:
        raise MissingPriorError(f"Model {name} has no prior: there is no {PRIOR}/config.json in it.") from error
    return model


def local_folder(name: str) -> Path | None:
    """The folder of a bundled name or a local one; None for a hub id."""
    bundled = bundled_path(name)
    return Path(name) if bundled is None and Path(name).is_dir() else bundled


def autoencoder_subfolder(folder: Path) -> str:
    """Where the autoencoder lies below a repository's folder: "" or, in a pipeline, "vae/"."""
    return "" if model_folder(folder, None, AUTOENCODER) == folder else f"{AUTOENCODER}/"


class ModelFiles(NamedTuple):
    """Where a model's files are, once it was loaded."""

    origin: Literal["bundled", "folder", "hub"]
    folder: Path
    revision: str | None  # commit, of models from the hub

    def weights(self, subfolder: str = "") -> list[Path]:
        """The safetensors files of the autoencoder, or of what lies in a subfolder of it."""
        return sorted((self.folder / autoencoder_subfolder(self.folder) / subfolder).glob(WEIGHTS))

    def sha256(self) -> str:
        """Of the autoencoder's weights; with several shards, of all in a row."""
        return sha256_of(*self.weights())


def locate(name: str, *, revision: str | None = None) -> ModelFiles:
    """Finds the files of a model that was loaded; arguments as `load_autoencoder`.

    Raises:
        ValueError: they aren't on this machine.
    """
    if (bundled := bundled_path(name)) is not None:
        return ModelFiles("bundled", bundled, None)
    if Path(name).is_dir():
        return ModelFiles("folder", Path(name).resolve(), None)
    cached = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(cached, str):
        raise ValueError(f"name must be that of a model which was loaded before, got {name}.")
    folder = Path(cached).parent
    return ModelFiles("hub", folder, folder.name)


def licence_and_metrics(name: str, files: ModelFiles) -> tuple[str | None, dict[str, Any]]:
    """What the model's card says; where it has no metrics, the last ones of the training curve."""
    path = _card_path(name, files)
    data = huggingface_hub.ModelCard.load(path, ignore_metadata_errors=True).data if path else None
    metrics = {result.metric_type: result.metric_value for result in getattr(data, "eval_results", None) or []}
    curve = files.folder / "training_curve.json"
    if not metrics and curve.is_file():
        metrics = json.loads(curve.read_text(encoding="utf-8"))["validation"][-1]
    return getattr(data, "license", None), metrics


def class_names(name: str, *, revision: str | None = None) -> tuple[str, ...]:
    """Names of the classes that a pipeline knows, in the order of its labels; empty if it says none."""
    folder = local_folder(name)
    try:
        path = (
            Path(huggingface_hub.hf_hub_download(name, CLASS_NAMES, revision=revision))
            if folder is None
            else folder / CLASS_NAMES
        )
        return tuple(map(str, json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, huggingface_hub.errors.EntryNotFoundError):
        return ()


def _card_path(name: str, files: ModelFiles) -> Path | None:
    if files.origin == "hub":
        try:
            return Path(huggingface_hub.hf_hub_download(name, "README.md", revision=files.revision))
        except (OSError, huggingface_hub.errors.EntryNotFoundError):
            return None
    return next((path for path in (files.folder / n for n in ("README.md", "MODEL_CARD.md")) if path.is_file()), None)
