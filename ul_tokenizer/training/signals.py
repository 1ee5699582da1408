"""SIGTERM and Ctrl-C, taken note of."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """SIGTERM and SIGINT as a flag that is read between steps; a second one acts as it did before.

    A context manager: the handlers from before are back at its end.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # nowhere else can handlers be set
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._receive) or signal.SIG_DFL
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        signal.signal(number, self._previous[number])

    def received(self, accelerator: Accelerator) -> bool:
        """Whether any process got one; all agree."""
        if accelerator.num_processes == 1:
            return self.name is not None
        flag = torch.tensor(float(self.name is not None), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum") > 0)


def leave_signals_to_the_main_process(worker: int) -> None:
    """A data loader's `worker_init_fn`: a signal to the whole process group must not take the workers from the loop."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
