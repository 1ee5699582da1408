"""The processes that share a job: jobs of an array, or a group started by accelerate or torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

Value = TypeVar("Value")


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

    @property
    def is_main(self) -> bool:
        """Whether this process reports what was done: one process of a group, and every job of an array."""
        return self.rank == 0 or not self.is_group

    def wait(self) -> None:
        """Waits until all processes of the group are here."""
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
        """Ends when all processes of the group are here. If one of them fails, all of them fail with its error.

        Otherwise the others would wait for it until the group's time is out.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        failures = [error for error in self.gather(failure) if error is not None]
        if failures:
            raise failures[0] if failure is None else failure

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes of the group, in the order of their ranks; each process gets them."""
        if not self.is_group:
            return [value]
        from accelerate.utils import gather_object

        gathered: list[Value] = gather_object([value])
        return gathered


def local_device() -> str | None:
    """The GPU that belongs to this process of a group; None without a group or without GPUs."""
    import torch

    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ and torch.cuda.is_available() else None
