"""Unified Latents: a latent tokenizer for images and videos; the public names, each imported at its first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ul_tokenizer.registration import HOST_CLASSES, register_with_diffusers

if TYPE_CHECKING:
    from ul_tokenizer.evaluation.job import evaluate_generation, evaluate_prediction, evaluate_reconstruction
    from ul_tokenizer.evaluation.samples import Crops
    from ul_tokenizer.hub.errors import HubError
    from ul_tokenizer.latents.dataset import LatentDataset
    from ul_tokenizer.latents.job import encode_dataset
    from ul_tokenizer.latents.writer import LatentWriter
    from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
    from ul_tokenizer.models.repository import load_prior
    from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
    from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
    from ul_tokenizer.schedulers.log_snr import LogSNRScheduler
    from ul_tokenizer.training.stage1 import train_autoencoder
    from ul_tokenizer.training.stage2 import train_base_model

__version__ = "0.1.0"

__all__ = [
    "Crops",
    "HubError",
    "LatentDataset",
    "LatentWriter",
    "LogSNRScheduler",
    "UnifiedLatentsAutoencoder",
    "UnifiedLatentsPipeline",
    "UnifiedLatentsTransformer",
    "__version__",
    "encode_dataset",
    "evaluate_generation",
    "evaluate_prediction",
    "evaluate_reconstruction",
    "load_prior",
    "register_with_diffusers",
    "train_autoencoder",
    "train_base_model",
]

_HOMES = {
    "Crops": "ul_tokenizer.evaluation.samples",
    "HubError": "ul_tokenizer.hub.errors",
    "LatentDataset": "ul_tokenizer.latents.dataset",
    "LatentWriter": "ul_tokenizer.latents.writer",
    "LogSNRScheduler": "ul_tokenizer.schedulers.log_snr",
    "UnifiedLatentsAutoencoder": "ul_tokenizer.models.autoencoder",
    "UnifiedLatentsPipeline": "ul_tokenizer.pipelines.generation",
    "UnifiedLatentsTransformer": "ul_tokenizer.models.transformer",
    "encode_dataset": "ul_tokenizer.latents.job",
    "evaluate_generation": "ul_tokenizer.evaluation.job",
    "evaluate_prediction": "ul_tokenizer.evaluation.job",
    "evaluate_reconstruction": "ul_tokenizer.evaluation.job",
    "load_prior": "ul_tokenizer.models.repository",
    "train_autoencoder": "ul_tokenizer.training.stage1",
    "train_base_model": "ul_tokenizer.training.stage2",
}


def __getattr__(name: str) -> Any:
    home = "diffusers" if name in HOST_CLASSES else _HOMES.get(name)  # which diffusers looks for here
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


register_with_diffusers()
