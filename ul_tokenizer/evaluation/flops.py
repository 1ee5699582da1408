"""FLOPs of a call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from ul_tokenizer import _compat


def _linear_flops(x_shape: list[int], weight_shape: list[int], *args: Any, out_shape: list[int], **kwargs: Any) -> int:
    """Of oneDNN's linear layer, which torch's counter does not know: 2 · positions · C · C'."""
    return 2 * math.prod(x_shape) * weight_shape[0]


def _attention_flops(query: list[int], key: list[int], value: list[int], *args: Any, **kwargs: Any) -> int:
    """Of attention's kernel for CPUs: scores and their products with the values; shapes are (B, heads, L, D)."""
    return 2 * math.prod(query) * key[-2] + 2 * math.prod(query[:-1]) * key[-2] * value[-1]


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs of a call: convolutions, matrix products and attention, two per multiply-add, nothing element-wise.

    Works on the meta device, where nothing is computed. A training step costs about three forward passes.
    """
    with FlopCounterMode(display=False, custom_mapping=_unknown_to_torch()) as counter:
        function()
    return int(counter.get_total_flops())


def _unknown_to_torch() -> dict[Any, Callable[..., int]]:
    """FLOPs of operators that torch's counter does not know, where this build of torch has them."""
    known: dict[Any, Callable[..., int]] = {
        _compat.onednn_linear_operator(): _linear_flops,
        _compat.cpu_attention_operator(): _attention_flops,
    }
    return {operator: flops for operator, flops in known.items() if operator is not None}
