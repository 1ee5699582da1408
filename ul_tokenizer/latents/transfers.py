"""Pixels to the encoder's device and latents back, while the device computes.

A GPU works through what was queued for it, and should never wait for this process. Pixels therefore travel as bytes, a
quarter of the size of fp32, from pinned memory and on a stream of their own. Latents return to pinned memory, and only
the thread that stores them waits for them. On other devices each transfer ends before the next line runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Arriving:
    """Latents on their way to the CPU.

    Args:
        latents: where they arrive, on the CPU.
        arrived: what the device records behind the copy; None if they are there already.
    """

    def __init__(self, latents: Tensor, arrived: torch.cuda.Event | None = None) -> None:
        self._latents, self._arrived = latents, arrived

    def get(self) -> Tensor:
        """The latents (B, c, [t,] h, w), fp32, on the CPU; waits for them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._latents


class Transfers:
    """Transfers between the CPU and one device.

    Args:
        device: the encoder's.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def batch(self, pixels: Sequence[Tensor], batch_size: int) -> Tensor:
        """Pixels of one shape, uint8 each → a batch of `batch_size` rows on the device, uint8.

        A smaller batch is filled up with copies of its last row. Otherwise the rounding of a sample's latent would
        depend on the size of its batch.
        """
        rows = [*pixels, *[pixels[-1]] * (batch_size - len(pixels))]
        if self._stream is None:
            return torch.stack(rows).to(self.device)
        pinned = torch.empty((batch_size, *rows[0].shape), dtype=rows[0].dtype, pin_memory=True)
        torch.stack(rows, out=pinned)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):  # does not wait for the batches before
            batch = pinned.to(self.device, non_blocking=True)
        computing.wait_stream(self._stream)
        batch.record_stream(computing)  # keeps the memory until the batch was read
        return batch

    def latents(self, latents: Tensor) -> Arriving:
        """Latents (B, c, [t,] h, w) on the device, of any dtype → fp32 on the CPU."""
        if self._stream is None:
            return Arriving(latents.float().cpu())
        pinned = torch.empty(latents.shape, dtype=torch.float32, pin_memory=True)
        pinned.copy_(latents.float(), non_blocking=True)
        arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(self.device))
        return Arriving(pinned, arrived)
