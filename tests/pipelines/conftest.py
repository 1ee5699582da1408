"""A tiny pipeline, whose networks are fresh but answer to all that they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ul_tokenizer.models.presets import build_autoencoder, build_base
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.schedulers.log_snr import AlgorithmType, LogSNRScheduler

NUM_CLASSES, TEXT_WIDTH = 3, 6


def _make(algorithm: AlgorithmType = "ddim", vae: Any = None, **base_config: Any) -> UnifiedLatentsPipeline:
    torch.manual_seed(0)
    config = {"num_class_embeds": NUM_CLASSES, "sample_size": 2, **base_config}
    base, vae = build_base("ul-base-tiny", config), build_autoencoder("ul-tiny-f8") if vae is None else vae
    with torch.no_grad():
        for parameter in [*base.parameters(), *vae.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    scheduler = LogSNRScheduler(base.config.latent_logsnr, algorithm_type=algorithm)
    pipeline = UnifiedLatentsPipeline(base.eval(), scheduler, vae.eval())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., UnifiedLatentsPipeline]:
    return _make


@pytest.fixture(scope="session")
def pipeline() -> UnifiedLatentsPipeline:
    return _make()
