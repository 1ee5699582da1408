"""The device that a name stands for."""

from __future__ import annotations

import torch


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """A device of this machine that works.

    Args:
        name: e.g. "cpu" or "cuda:1"; None for a GPU if there is one, else the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"{name} is no device of this machine.") from error
    return device
