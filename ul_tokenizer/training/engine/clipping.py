"""Clipping of gradients, with one computation of their norms for clipping, logs and the check that they are finite."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from ul_tokenizer import _compat
from ul_tokenizer.training.engine.sharding import whole


def clip_gradients(
    parts: Mapping[str, nn.Module], max_norm: float, clip: Literal["parts", "global"]
) -> dict[str, Tensor]:
    """Clips gradients in place, without waiting for the device.

    The decoder's gradient has a heavy tail. With one norm for all parts, it would scale the steps of the others.

    Args:
        parts: name → module; they share no weights.
        max_norm: largest L2 norm.
        clip: whether each part has this largest norm, or all of them together.

    Returns:
        "grad_norm" of all gradients and "grad_norm/<name>" of each part, before they were clipped (0-dimensional).
    """
    gradients = {name: _gradients(part) for name, part in parts.items()}
    gradients = {name: those for name, those in gradients.items() if those}
    norms = _compat.norms([*chain.from_iterable(gradients.values())])
    total = _norm(norms)
    remaining = iter(norms)
    of_parts = {name: _norm([next(remaining) for _ in those]) for name, those in gradients.items()}
    for name, norm in of_parts.items():
        limited = norm if clip == "parts" else total
        nn.utils.clip_grads_with_norm_(parts[name].parameters(), max_norm, limited)
    return {**{f"grad_norm/{name}": whole(norm) for name, norm in of_parts.items()}, "grad_norm": whole(total)}


def _gradients(part: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in part.parameters() if parameter.grad is not None]


def _norm(norms: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(norms))
