"""One progress bar for everything that takes long: on a terminal, and on request as lines in a log.

Everything goes to standard error.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")
LINE_SECONDS = 60.0  # between two lines in a log


class Bar:
    """A progress bar, or nothing where none is shown; see `progress`."""

    def __init__(self, progress: Progress | None, task: TaskID | None, unit: str) -> None:
        self._progress, self._task, self._unit = progress, task, unit

    @property
    def is_shown(self) -> bool:
        """Whether there is a bar: standard error is a terminal, and it was not switched off."""
        return self._progress is not None

    def update(self, count: int = 1, note: str | None = None) -> None:
        """Moves on by `count`; `note` is shown behind the rate until the next one."""
        if self._progress is None or self._task is None:
            return
        speed = self._progress.tasks[self._task].speed
        fields: dict[str, Any] = {} if note is None else {"note": note}
        self._progress.update(self._task, advance=count, rate=f"{speed:.3g} {self._unit}/s" if speed else "", **fields)

    def write(self, line: str) -> None:
        """Prints a line on standard error, above the bar if there is one."""
        if self._progress is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Lines(Bar):
    """A line with count, rate and time left from time to time, for the logs of long jobs."""

    def __init__(self, description: str, total: int, unit: str, completed: int) -> None:
        super().__init__(None, None, unit)
        self._description, self._total, self._count, self._first = description, total, completed, completed
        self._start = self._last = time.monotonic()

    def update(self, count: int = 1, note: str | None = None) -> None:
        """Moves on by `count`; prints a line if the last one is long ago."""
        self._count += count
        now = time.monotonic()
        if now - self._last < LINE_SECONDS:
            return
        self._last = now
        rate = (self._count - self._first) / (now - self._start)
        left = datetime.timedelta(seconds=round((self._total - self._count) / rate)) if rate else "unknown time"
        self.write(
            f"{self._description}: {self._count:,} of {self._total:,} {self._unit}, {rate:.3g}/s, {left} left"
            + (f", {note}" if note else "")
        )


@contextmanager
def progress(
    description: str, total: int, unit: str = "", completed: int = 0, shown: bool = True, in_logs: bool = False
) -> Iterator[Bar]:
    """Shows a bar with count, rate and time left, which disappears at its end.

    Args:
        description: shown before the bar.
        total: the count at which it is full.
        unit: what is counted, in the plural, e.g. "images".
        completed: the count at which it starts.
        shown: False shows nothing, e.g. on all processes but the main one.
        in_logs: whether to print a line from time to time where standard error is no terminal; otherwise nothing is.
    """
    if not (shown and sys.stderr.isatty()):
        yield _Lines(description, total, unit, completed) if shown and in_logs else Bar(None, None, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, completed=completed, rate="", note="")
        yield Bar(bar, task, unit)


def track(items: Iterable[Item], description: str, total: int, unit: str = "", shown: bool = True) -> Iterator[Item]:
    """Yields the items of an iterable and shows how many were taken; arguments as in `progress`."""
    with progress(description, total, unit, shown=shown) as bar:
        for item in items:
            yield item
            bar.update()
