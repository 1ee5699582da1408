"""SIGTERM and Ctrl-C as requests to stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

from ul_tokenizer.training.engine.readback import Readback

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Context manager that turns SIGTERM and SIGINT into a flag, to be read between steps.

    A second signal has its usual effect. The previous handlers are restored at the end.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[int, Any] = {}
        self._asked: Readback | None = None  # how many processes had a signal, at the last call

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers only there
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
        """Whether any process received a signal; every process gets the same answer.

        With several processes, it answers for the previous call, so that it need not wait for their present step.
        """
        if accelerator.num_processes == 1:
            return self.name is not None
        before = self._asked
        flag = torch.full((), float(self.name is not None), device=accelerator.device)
        self._asked = Readback(accelerator.reduce(flag, reduction="sum"))
        return before is not None and before.value() > 0


def leave_signals_to_the_main_process(worker: int) -> None:
    """A data loader's `worker_init_fn`: its workers ignore a signal to the process group, as the loop needs them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
