"""Finds the files of a pipeline, and refuses pipelines that would run code of their repository."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ul_tokenizer.hub.download import Access, fetch
from ul_tokenizer.models.checkpoint import NoModelError, weight_files
from ul_tokenizer.models.loading import (
    DESCRIPTIONS,
    PIPELINE_INDEX,
    check_hub_id,
    local_folder,
)

LIBRARIES = {"ul_tokenizer", "diffusers", "transformers"}
_CONFIGS = (".json", ".txt", ".model")  # of schedulers and tokenizers, too


def find_pipeline(name: str, kwargs: dict[str, Any]) -> tuple[Path, str | None]:
    """The folder of a pipeline, and its commit if it comes from the hub.

    Args:
        name: a bundled name, a local folder or a hub id, tried in this order.
        kwargs: keyword arguments of `from_pretrained`; those that are used here are removed.

    Raises:
        NoModelError: the folder or repository holds no pipeline.
        HubError: the hub can't be reached, or refuses.
        ValueError: the index is damaged, or names libraries other than ours, diffusers and transformers.
    """
    revision, access, commit = kwargs.pop("revision", None), Access.taken_from(kwargs), None
    folder = local_folder(name)
    if folder is None:
        check_hub_id(name)
        folder, commit = fetch(name, _PipelineFiles(name, kwargs.get("variant")), revision, access=access)
    if not (folder / PIPELINE_INDEX).is_file():
        raise NoModelError(f"Folder {folder} holds no pipeline: there is no {PIPELINE_INDEX} in it.")
    _check_index(folder / PIPELINE_INDEX)
    return folder, commit


class _PipelineFiles:
    """Chooses the files of a pipeline: configs and safetensors of its parts, and no code."""

    def __init__(self, name: str, variant: str | None) -> None:
        self.name, self.variant = name, variant

    def __call__(self, files: Sequence[str]) -> list[str]:
        if PIPELINE_INDEX not in files:
            raise NoModelError(f"Hub repository {self.name} holds no pipeline: there is no {PIPELINE_INDEX} in it.")
        wanted = [file for file in (*DESCRIPTIONS, PIPELINE_INDEX) if file in files]
        for part in sorted({file.split("/")[0] for file in files if file.count("/") == 1}):
            names = [file.split("/")[1] for file in files if file.startswith(f"{part}/") and file.count("/") == 1]
            ours = weight_files(names, self.variant) or weight_files(names, None)
            others = [name for name in names if name.endswith(".safetensors") and not weight_files([name], None)]
            foreign = [] if ours else others  # weights of a text encoder have names of their own
            configs = [name for name in names if name.endswith(_CONFIGS) and ".safetensors.index." not in name]
            indices = [name for name in names if ".safetensors.index." in name and foreign]
            wanted += [f"{part}/{name}" for name in sorted({*configs, *ours, *foreign, *indices})]
        return wanted


def _check_index(path: Path) -> None:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        parts = {key: value for key, value in index.items() if not key.startswith("_")}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: it is not the index of a pipeline.") from error
    if not isinstance(index.get("_class_name"), str):
        raise ValueError(f"{path} names code of the repository for the pipeline itself, which is not run.")
    for name, entry in parts.items():
        if isinstance(entry, list) and entry and entry[0] is not None and entry[0] not in LIBRARIES:
            raise ValueError(
                f"{path} takes its {name} from {entry[0]!r}, which is none of {', '.join(sorted(LIBRARIES))}; no code "
                "of the repository is run."
            )
