"""Training: an autoencoder (stage 1), a base model (stage 2) and a distilled decoder, and their arguments."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ul_tokenizer.training.distill import distill_decoder
    from ul_tokenizer.training.distill_arguments import DistillArguments
    from ul_tokenizer.training.stage1 import train_autoencoder
    from ul_tokenizer.training.stage1_arguments import Stage1Arguments
    from ul_tokenizer.training.stage2 import train_base_model
    from ul_tokenizer.training.stage2_arguments import Stage2Arguments

__all__ = [
    "DistillArguments",
    "Stage1Arguments",
    "Stage2Arguments",
    "distill_decoder",
    "train_autoencoder",
    "train_base_model",
]

_HOMES = {
    "DistillArguments": "ul_tokenizer.training.distill_arguments",
    "Stage1Arguments": "ul_tokenizer.training.stage1_arguments",
    "Stage2Arguments": "ul_tokenizer.training.stage2_arguments",
    "distill_decoder": "ul_tokenizer.training.distill",
    "train_autoencoder": "ul_tokenizer.training.stage1",
    "train_base_model": "ul_tokenizer.training.stage2",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value
