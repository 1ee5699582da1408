"""The processes that share a job: jobs of an array, or a group started by accelerate or torchrun."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import Accelerator

Value = TypeVar("Value")
# Errors travel between processes as one of these, because an arbitrary exception can't always be pickled.
_PORTABLE: tuple[type[Exception], ...] = (FileNotFoundError, OSError, ImportError, MemoryError, ValueError)
PATIENCE = datetime.timedelta(days=365)


class Processes:
    """The processes of a job, as one of them sees it.

    Args:
        rank: number of this process, below `world_size`.
        world_size: number of processes.
        is_group: whether they were started together and can wait for one another. Jobs of an array can't.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, is_group: bool = False) -> None:
        self.rank, self.world_size, self.is_group = rank, world_size, is_group

    @classmethod
    def of(cls, rank: int | None = None, world_size: int | None = None) -> Processes:
        """The processes that the arguments describe, or else those that accelerate or torchrun started.

        Raises:
            ValueError: one argument without the other, or a rank that is not below the world size.
        """
        if (rank is None) != (world_size is None):
            raise ValueError(f"rank and world_size must be given together, got {rank} and {world_size}.")
        if rank is not None and world_size is not None:
            if not 0 <= rank < world_size:
                raise ValueError(f"rank must be from 0 to below world_size, got {rank} and {world_size}.")
            return cls(rank, world_size)
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.accelerator.is_available())
        return cls(state.process_index, state.num_processes, True)

    @classmethod
    def of_accelerator(cls, accelerator: Accelerator) -> Processes:
        """The processes of a training."""
        return cls(accelerator.process_index, accelerator.num_processes, accelerator.num_processes > 1)

    @property
    def is_main(self) -> bool:
        """Whether this process reports what was done: one process of a group, and every job of an array."""
        return self.rank == 0 or not self.is_group

    def wait(self) -> None:
        """Waits until all processes of the group have called it."""
        if self.is_group:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Lets the main process of a group do something before the others, which then find what it has cached."""
        if not self.is_main:
            self.wait()
        try:
            yield
        finally:
            if self.is_main:
                self.wait()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Ends when all processes of the group have reached its end. If one of them fails, all fail with its error.

        Otherwise the others would wait for it until the group's time is out.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        _raise_first(self.gather(_portable(failure)), failure)

    def from_main(self, make: Callable[[], Value]) -> Value:
        """The result of a function that only the main process calls. If it fails, all processes fail with its error."""
        failure: Exception | None = None
        outcome: list[Value | None] = [None]
        if self.is_main:
            try:
                outcome[0] = make()
            except Exception as error:
                failure = error
        if not self.is_group:
            _raise_first([failure], failure)
            return outcome[0]  # type: ignore[return-value]  # it was made
        from accelerate.utils import broadcast_object_list

        told = [*outcome, _portable(failure)]
        broadcast_object_list(told)
        _raise_first([told[1]], failure)  # type: ignore[list-item]
        return told[0]  # type: ignore[return-value]

    @contextmanager
    def apart(self) -> Iterator[None]:
        """As `together`, for work after which processes may arrive days apart.

        The group's own timeout doesn't apply: the processes meet in a gloo group with a timeout of its own. It ends at
        once for all if one of them dies. All processes must enter the block within the usual timeout.
        """
        if not self.is_group:
            yield
            return
        import torch.distributed as dist

        group = dist.new_group(backend="gloo", timeout=PATIENCE)
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        failures: list[Exception | None] = [None] * self.world_size
        dist.all_gather_object(failures, _portable(failure), group=group)
        self.wait()  # a process that has received everything must not close connections on which others still read
        dist.destroy_process_group(group)
        _raise_first(failures, failure)

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes of the group, in the order of their ranks; each process gets them."""
        if not self.is_group:
            return [value]
        from accelerate.utils import gather_object

        gathered: list[Value] = gather_object([value])
        return gathered


def _portable(error: Exception | None) -> Exception | None:
    """An error that every process can receive, with the same sentence."""
    if error is None:
        return None
    kind = next((kind for kind in _PORTABLE if isinstance(error, kind)), RuntimeError)
    return kind(str(error))


def _raise_first(failures: list[Exception | None], own: Exception | None) -> None:
    """Raises the process's own error or, without one, the first error of the others."""
    first = next((error for error in failures if error is not None), None)
    if first is not None:
        raise first if own is None else own


def local_device() -> str | None:
    """The GPU that belongs to this process of a group; None without a group or without GPUs."""
    import torch

    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ and torch.cuda.is_available() else None
