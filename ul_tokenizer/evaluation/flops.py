"""FLOPs of a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode


def count_flops(function: Callable[[], Any]) -> int:
    """FLOPs of a call: convolutions, matrix products and attention, two per multiply-add, nothing element-wise.

    Works on the meta device, where nothing is computed. A training step costs about three forward passes.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())
