"""Work behind a page: it runs in a thread, reports as it goes, and ends soon after nobody waits for it any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import nn

SECONDS_BETWEEN_REPORTS = 0.2
_COMPUTING = threading.Lock()  # one job at a time has the networks, whose calls it counts


class StoppedError(Exception):
    """The visitor has left or has pressed "Stop"."""


@dataclass(frozen=True)
class Progress:
    """How far a part of the work is."""

    text: str
    done: int
    total: int


class Job:
    """One piece of work, as the function sees it that does the work."""

    def __init__(self) -> None:
        self.messages: SimpleQueue[Any] = SimpleQueue()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Makes the work end at its next report."""
        self._stopped.set()

    def check(self) -> None:
        """Ends the work if it was stopped.

        Raises:
            StoppedError: it was stopped.
        """
        if self._stopped.is_set():
            raise StoppedError

    def show(self, message: Any) -> None:
        """Hands something to the page.

        Raises:
            StoppedError: as `check`.
        """
        self.check()
        self.messages.put(message)

    @contextmanager
    def counting(self, text: str, total: int, *networks: nn.Module) -> Iterator[None]:
        """Reports each call of the networks as progress; a stopped job ends before the next call.

        Args:
            text: what is going on.
            total: number of calls to expect.
            networks: modules whose calls are counted.
        """
        done = 0

        def report(*_: Any) -> None:
            nonlocal done
            self.show(Progress(text, min(done, total), total))
            done += 1

        handles = [network.register_forward_pre_hook(report) for network in networks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def follow(work: Callable[[Job], None]) -> Iterator[Any]:
    """Runs `work` in a thread and yields what it shows; of frequent `Progress` only some.

    Closing the iterator stops the work. Gradio closes it when the visitor leaves or presses "Stop".

    Raises:
        Exception: what `work` raises.
    """
    job = Job()
    threading.Thread(target=_run, args=(job, work), name="ul-tokenizer-demo", daemon=True).start()
    last = -SECONDS_BETWEEN_REPORTS
    try:
        while not isinstance(message := job.messages.get(), _End):
            if isinstance(message, Progress):
                if time.monotonic() - last < SECONDS_BETWEEN_REPORTS:
                    continue
                last = time.monotonic()
            yield message
        if message.error is not None:
            raise message.error
    finally:
        job.stop()


def _run(job: Job, work: Callable[[Job], None]) -> None:
    error: BaseException | None = None
    try:
        with _COMPUTING, torch.inference_mode():
            job.check()
            work(job)
    except StoppedError:
        pass
    except BaseException as raised:
        error = raised
    job.messages.put(_End(error))
