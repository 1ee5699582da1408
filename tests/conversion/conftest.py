"""A small trained-looking repository, and the scripts of `conversion/` as modules."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ul_tokenizer.models.presets import build_autoencoder, build_prior


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder whose zero-initialised layers are filled, with its prior."""
    folder = tmp_path_factory.mktemp("repository") / "model"
    torch.manual_seed(0)
    for name, model in (("", build_autoencoder("ul-tiny-f8")), ("prior", build_prior("ul-tiny-f8"))):
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    return lambda name: import_module(f"conversion.{name}")
