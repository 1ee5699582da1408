"""Values on their way from the device to the host."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """A copy of a tensor that travels to the host while the device works on.

    On a CPU it is the tensor itself, which must not change until it is read.

    Args:
        tensor: what to copy.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._host, self._arrived = tensor, None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def value(self) -> float:
        """The value of a tensor with one element; waits only for the work that was queued before the copy."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return float(self._host)
