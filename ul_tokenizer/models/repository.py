"""Repositories of trained models: loading, and what they say of it.

The autoencoder lies at the root with its prior in `prior/`, or, in a pipeline's folder, in `vae/` with `vae/prior/`.
If its decoder was distilled, the whole autoencoder from which it was distilled lies in `teacher/` with a config of its
own. Both have the same encoder, so they have the same latents and the same prior.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import huggingface_hub
import torch

from ul_tokenizer.files import sha256_of
from ul_tokenizer.hub.download import Access, fetch
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.checkpoint import NoModelError, weight_files
from ul_tokenizer.models.loading import (
    DESCRIPTIONS,
    PIPELINE_INDEX,
    check_hub_id,
    model_folder,
)
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.pretrained import bundled_path
from ul_tokenizer.publish.card_merge import Card

AUTOENCODER, PRIOR, TEACHER = "vae", "prior", "teacher"
CLASS_NAMES = "class_names.json"


class MissingPriorError(NoModelError):
    """The repository has no prior."""


class MissingTeacherError(NoModelError):
    """The repository has no teacher: its decoder was not distilled."""


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
    """The stage-1 prior of a repository, with which `UnifiedLatentsAutoencoder.bits` measures bits.

    Args:
        name: a bundled name, a local folder or a hub id, tried in this order.
        revision: branch, tag or commit on the hub.
        torch_dtype: of the weights; fp32 where None.
        **kwargs: as for `from_pretrained`.

    Raises:
        MissingPriorError: the repository has none.
        ValueError: as `load_autoencoder`.
    """
    try:
        model: UnifiedLatentsTransformer = _load_part(
            UnifiedLatentsTransformer, PRIOR, name, revision=revision, torch_dtype=torch_dtype, **kwargs
        )
    except NoModelError as error:
        raise MissingPriorError(f"Model {name} has no prior: there is no {PRIOR}/config.json in it.") from error
    return model


def load_teacher(
    name: str, *, revision: str | None = None, torch_dtype: torch.dtype | None = None, **kwargs: Any
) -> UnifiedLatentsAutoencoder:
    """The autoencoder from which a repository's decoder was distilled; arguments as `load_autoencoder`.

    Raises:
        MissingTeacherError: the repository has none.
        ValueError: as `load_autoencoder`.
    """
    try:
        model: UnifiedLatentsAutoencoder = _load_part(
            UnifiedLatentsAutoencoder, TEACHER, name, revision=revision, torch_dtype=torch_dtype, **kwargs
        )
    except NoModelError as error:
        raise MissingTeacherError(f"Model {name} has no teacher: there is no {TEACHER}/config.json in it.") from error
    return model


def _load_part(cls: Any, part: str, name: str, *, revision: str | None, **kwargs: Any) -> Any:
    """A model in a subfolder of a repository's autoencoder."""
    files = locate(name, revision=revision, access=Access.taken_from(dict(kwargs)))
    subfolder = autoencoder_subfolder(files.folder) + part
    return cls.from_pretrained(name, revision=files.revision or revision, subfolder=subfolder, **kwargs)


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
        folder = self.folder / autoencoder_subfolder(self.folder) / subfolder
        names = weight_files((path.name for path in folder.glob("*")), None)
        return [folder / name for name in names if name.endswith(".safetensors")]

    def sha256(self) -> str:
        """Hash of the autoencoder's weights; several shards are hashed one after the other."""
        return sha256_of(*self.weights())


def locate(name: str, *, revision: str | None = None, access: Access | None = None) -> ModelFiles:
    """Finds the files of a model; of a hub repository those that were loaded before, and what describes it.

    Raises:
        ValueError: no such model.
    """
    if (bundled := bundled_path(name)) is not None:
        return ModelFiles("bundled", bundled, None)
    if Path(name).is_dir():
        return ModelFiles("folder", Path(name).resolve(), None)
    check_hub_id(name)
    wanted = (*DESCRIPTIONS, PIPELINE_INDEX, "config.json")
    folder, commit = fetch(name, lambda files: [file for file in wanted if file in files], revision, access=access)
    return ModelFiles("hub", folder, commit)


def license_and_metrics(files: ModelFiles) -> tuple[str | None, dict[str, Any]]:
    """What the model's card says; where it has no metrics, the last ones of the training curve."""
    path = next((path for path in map(files.folder.joinpath, ("README.md", "MODEL_CARD.md")) if path.is_file()), None)
    metadata = Card.parsed(path.read_text(encoding="utf-8", errors="replace")).metadata if path else {}
    data = huggingface_hub.ModelCardData(ignore_metadata_errors=True, **metadata)
    metrics = {result.metric_type: result.metric_value for result in data.eval_results or []}
    curve = files.folder / "training_curve.json"
    if not metrics and curve.is_file():
        metrics = json.loads(curve.read_text(encoding="utf-8"))["validation"][-1]
    return data.license, metrics


def class_names(name: str, *, revision: str | None = None) -> tuple[str, ...]:
    """Names of the classes that a pipeline knows, in the order of its labels; empty if it says none."""
    try:
        path = locate(name, revision=revision).folder / CLASS_NAMES
        return tuple(map(str, json.loads(path.read_text(encoding="utf-8"))))
    except OSError:
        return ()
