"""Picks a device of this machine by its name."""

from __future__ import annotations

import torch


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """Returns a device of this machine that works.

    Args:
        name: e.g. "cpu" or "cuda:1"; None for a GPU if there is one, else the CPU.

    Raises:
        ValueError: this machine has no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device must be a device of this machine, such as cpu or cuda, got {name}.") from error
    return device
