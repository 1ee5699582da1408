"""A tiny autoencoder and a pipeline around it."""

from __future__ import annotations

import pytest
import torch

from ul_tokenizer import LogSNRScheduler, UnifiedLatentsAutoencoder, UnifiedLatentsPipeline
from ul_tokenizer.models.presets import build_autoencoder, build_prior


@pytest.fixture(scope="session")
def model() -> UnifiedLatentsAutoencoder:
    torch.manual_seed(0)
    return build_autoencoder("ul-tiny-f8").eval()


@pytest.fixture(scope="session")
def pipeline(model: UnifiedLatentsAutoencoder) -> UnifiedLatentsPipeline:
    torch.manual_seed(0)
    return UnifiedLatentsPipeline(build_prior("ul-tiny-f8").eval(), LogSNRScheduler(), model)
