"""Unified Latents: a latent tokenizer for images; the public names, each imported when it is first touched."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ul_tokenizer.registration import HOST_CLASSES, register_with_diffusers

if TYPE_CHECKING:
    from ul_tokenizer.latents.dataset import LatentDataset
    from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
    from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
    from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
    from ul_tokenizer.schedulers.log_snr import LogSNRScheduler

__version__ = "0.1.0"

__all__ = [
    "LatentDataset",
    "LogSNRScheduler",
    "UnifiedLatentsAutoencoder",
    "UnifiedLatentsPipeline",
    "UnifiedLatentsTransformer",
    "__version__",
    "register_with_diffusers",
]

_HOMES = {
    "LatentDataset": "ul_tokenizer.latents.dataset",
    "LogSNRScheduler": "ul_tokenizer.schedulers.log_snr",
    "UnifiedLatentsAutoencoder": "ul_tokenizer.models.autoencoder",
    "UnifiedLatentsPipeline": "ul_tokenizer.pipelines.generation",
    "UnifiedLatentsTransformer": "ul_tokenizer.models.transformer",
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
