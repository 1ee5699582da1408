"""One progress bar for everything that takes long: on a terminal, on standard error, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")


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


@contextmanager
def progress(description: str, total: int, unit: str = "", completed: int = 0, shown: bool = True) -> Iterator[Bar]:
    """Shows a bar with count, rate and time left, which disappears at its end.

    Args:
        description: shown before the bar.
        total: the count at which it is full.
        unit: what is counted, in the plural, e.g. "images".
        completed: the count at which it starts.
        shown: False shows nothing, e.g. on all processes but the main one; nor does anything that is no terminal.
    """
    if not (shown and sys.stderr.isatty()):
        yield Bar(None, None, unit)
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
