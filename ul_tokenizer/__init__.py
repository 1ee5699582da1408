"""Unified Latents: a latent tokenizer for images; the public names, each imported when it is first touched."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ul_tokenizer.diffusion.scheduler import LogSNRScheduler
    from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
    from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

__version__ = "0.1.0"

__all__ = ["LogSNRScheduler", "UnifiedLatentsAutoencoder", "UnifiedLatentsTransformer", "__version__"]

_HOMES = {
    "LogSNRScheduler": "ul_tokenizer.diffusion.scheduler",
    "UnifiedLatentsAutoencoder": "ul_tokenizer.models.autoencoder",
    "UnifiedLatentsTransformer": "ul_tokenizer.models.transformer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
