"""Which models the page offers, and the loaded ones."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ul_tokenizer.evaluation.autoencoders import OURS, AnyAutoencoder, load_any_autoencoder
from ul_tokenizer.files import read_json_object
from ul_tokenizer.models.loading import PIPELINE_INDEX
from ul_tokenizer.models.repository import TEACHER, MissingTeacherError, class_names, load_teacher, locate
from ul_tokenizer.pretrained import bundled_names

if TYPE_CHECKING:
    from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline

SOLVER = "dpmsolver++"  # as the default of `ul-tokenizer generate`
LARGE_TILE, TILE_ABOVE = 512, 1024  # pixels a side


class Kind(enum.Enum):
    """What a model is for."""

    images = "an autoencoder of images"
    videos = "an autoencoder of videos"
    generator = "a pipeline"


def offered_models(wanted: Sequence[str] = ()) -> dict[Kind, list[str]]:
    """Models of each kind: those that are wanted come first, then the bundled ones.

    Raises:
        ValueError: a wanted model doesn't exist, or is of no kind that the page can show.
    """
    offered: dict[Kind, list[str]] = {kind: [] for kind in Kind}
    for name in dict.fromkeys([*wanted, *bundled_names()]):
        offered[kind_of(name)].append(name)
    return offered


def kind_of(name: str) -> Kind:
    """What a model is for, from its config.

    Raises:
        ValueError: there is no such model, or it is none of ours.
    """
    folder = locate(name).folder
    if (folder / PIPELINE_INDEX).is_file():
        return Kind.generator
    path = folder / "config.json"
    config: dict[str, Any] = read_json_object(path) if path.is_file() else {}
    if config.get("_class_name") != OURS:
        raise ValueError(f"--model must be a {OURS} or a pipeline, got {name}.")
    return Kind.videos if int(config.get("temporal_compression_ratio") or 1) > 1 else Kind.images


@dataclass
class Models:
    """Models on one device, each loaded when it is first used and kept.

    Args:
        device: where they compute.
    """

    device: torch.device
    _loaded: dict[tuple[str, str], Any] = field(default_factory=dict)
    _loading: threading.RLock = field(default_factory=threading.RLock)

    def autoencoder(self, name: str, teacher: bool = False) -> AnyAutoencoder:
        """An autoencoder with its prior; with `teacher`, the one from which its decoder was distilled.

        Raises:
            ValueError: it can't be loaded.
        """
        model: AnyAutoencoder
        if teacher:
            model = self._once("teacher", name, lambda: self._load_teacher(name))
        else:
            model = self._once("autoencoder", name, lambda: load_any_autoencoder(name, device=self.device))
        return model

    def _load_teacher(self, name: str) -> AnyAutoencoder:
        model = load_teacher(name).eval().requires_grad_(False).to(self.device)
        return AnyAutoencoder(f"{name} before distillation", model, self.autoencoder(name).prior)

    def is_distilled(self, name: str) -> bool:
        """Whether the decoder was distilled, so that there is a teacher to choose."""
        files = locate(name)
        if files.origin != "hub":
            return bool(files.weights(TEACHER))
        try:  # its files are only known once they were asked for
            self.autoencoder(name, teacher=True)
        except MissingTeacherError:
            return False
        return True

    def pipeline(self, name: str) -> UnifiedLatentsPipeline:
        """A pipeline.

        Raises:
            ValueError: it can't be loaded, or it generates clips.
        """
        from ul_tokenizer.pipelines.sampling import load_pipeline  # slow to import, so not before the page is shown

        pipeline: UnifiedLatentsPipeline = self._once(
            "pipeline", name, lambda: load_pipeline(name, None, self.device, torch.float32, SOLVER)
        )
        if pipeline.transformer.config.sample_frames is not None:
            raise ValueError(f"{name} generates clips, which `ul-tokenizer generate` does; this page makes images.")
        return pipeline

    def classes(self, name: str) -> list[str]:
        """Names of a pipeline's classes, or their numbers; empty for a model without classes."""
        path = locate(name).folder / "transformer" / "config.json"
        config = read_json_object(path) if path.is_file() else self.pipeline(name).transformer.config
        number = config.get("num_class_embeds") or 0
        names = class_names(name)
        return list(names) if len(names) == number else [str(label) for label in range(number)]

    def takes_prompts(self, name: str) -> bool:
        """Whether a pipeline has a text encoder."""
        index = read_json_object(locate(name).folder / PIPELINE_INDEX)
        return any(index.get("text_encoder") or [])

    def _once(self, kind: str, name: str, load: Callable[[], Any]) -> Any:
        with self._loading:
            if (kind, name) not in self._loaded:
                self._loaded[kind, name] = load()
            return self._loaded[kind, name]


def set_tiling(model: Any, height: int, width: int) -> None:
    """Switches tiles on for large pictures, and off for others, unless the model's config asks for tiles."""
    if model.config.tile_sample_size:
        return
    if max(height, width) > TILE_ABOVE:
        model.enable_tiling(LARGE_TILE, LARGE_TILE)
    else:
        model.disable_tiling()


def number_of_tiles(model: Any, height: int, width: int) -> int:
    """Tiles that encoding or decoding a picture of this size in pixels takes."""
    ratio = int(model.spatial_compression_ratio)
    return len(model.tile_grid(height // ratio, width // ratio).tiles)
