"""FLOPs of a call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch.utils.flop_counter import FlopCounterMode

from ul_tokenizer import _compat


class Flops(NamedTuple):
    """FLOPs by kind of operator, two per multiply-add.

    Attributes:
        linear_and_attention: of linear layers and other matrix products, and of attention; what the paper counts.
        convolutions: of convolutions of any rank, transposed ones and those of kernel size 1 included.
    """

    linear_and_attention: int
    convolutions: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.linear_and_attention + self.convolutions


def split_flops(function: Callable[[], Any]) -> Flops:
    """Counts the FLOPs of a call and tells matrix products and attention from convolutions, by operator.

    Element-wise operations are not counted.

    Works on the meta device, where nothing is computed. A training step costs about three forward passes.
    """
    with FlopCounterMode(display=False, custom_mapping=_unknown_to_torch()) as counter:
        function()
    by_operator = counter.get_flop_counts().get("Global", {})
    convolutions = sum(int(flops) for operator, flops in by_operator.items() if "conv" in str(operator))
    return Flops(int(counter.get_total_flops()) - convolutions, convolutions)


def count_flops(function: Callable[[], Any]) -> int:
    """Counts the FLOPs of a call: convolutions, matrix products and attention together; see `split_flops`."""
    return split_flops(function).total


def _linear_flops(x_shape: list[int], weight_shape: list[int], *args: Any, out_shape: list[int], **kwargs: Any) -> int:
    """FLOPs of oneDNN's linear layer, which torch's counter does not know: 2 · positions · C · C'."""
    return 2 * math.prod(x_shape) * weight_shape[0]


def _attention_flops(query: list[int], key: list[int], value: list[int], *args: Any, **kwargs: Any) -> int:
    """FLOPs of the attention kernel for CPUs: scores, and their products with the values; shapes (B, heads, L, D)."""
    return 2 * math.prod(query) * key[-2] + 2 * math.prod(query[:-1]) * key[-2] * value[-1]


def _unknown_to_torch() -> dict[Any, Callable[..., int]]:
    """Formulas for operators that torch's counter does not know, if this build of torch has them."""
    known: dict[Any, Callable[..., int]] = {
        _compat.onednn_linear_operator(): _linear_flops,
        _compat.cpu_attention_operator(): _attention_flops,
    }
    return {operator: flops for operator, flops in known.items() if operator is not None}
