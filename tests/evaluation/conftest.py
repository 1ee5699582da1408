"""Tiny labelled pictures, and a tiny pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ul_tokenizer.evaluation.nets.reference import Reference, load_reference
from ul_tokenizer.models.presets import build_autoencoder, build_base
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler

Network = TypeVar("Network", bound=nn.Module)
COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}
SIDE = 16


def squares(root: Path, per_class: int, seed: int, classes: dict[str, tuple[int, int, int]] = COLOURS) -> Path:
    """A folder of noisy squares, each class of one colour."""
    random = np.random.default_rng(seed)
    for name, colour in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = np.clip(np.array(colour) + random.normal(0, 20, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squares(tmp_path_factory.mktemp("train"), 40, seed=0)


@pytest.fixture(scope="session")
def test(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squares(tmp_path_factory.mktemp("test"), 20, seed=1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def reference(train: Path, test: Path, cache: Path) -> Reference:
    return load_reference(train, test, cache_dir=cache)


def moved(network: Network) -> Network:
    """Some weights start at 0, and what they multiply would go untested."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return network.eval()


def make_pipeline(num_classes: int | None = len(COLOURS)) -> UnifiedLatentsPipeline:
    torch.manual_seed(0)
    return UnifiedLatentsPipeline(
        transformer=moved(build_base("ul-base-tiny", {"num_class_embeds": num_classes})),
        scheduler=LogSNRScheduler(algorithm_type="ddpm"),
        vae=moved(build_autoencoder("ul-tiny-f8")),
    )


@pytest.fixture(scope="session")
def pipeline() -> UnifiedLatentsPipeline:
    return make_pipeline()
