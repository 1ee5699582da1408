"""What commands print: JSON of one shape, facts, tables, and one line with an exit status for whatever goes wrong."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130  # exit statuses


class UsageError(ValueError):
    """Options that contradict each other, or one without the partner that it needs: exit status 2."""


def require(condition: bool, sentence: str) -> None:
    """Refuses options that don't fit together.

    Raises:
        UsageError: the condition doesn't hold; `sentence` says what to change.
    """
    if not condition:
        raise UsageError(sentence)


# ---------------------------------------------------------------- errors


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """The same command, which prints one line for an expected error and exits with the status that belongs to it."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        with _reporting():
            command(*args, **kwargs)

    return run


@contextmanager
def _reporting() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except UsageError as error:
        _fail(str(error), WRONG_USAGE)
    except (ValueError, OSError, MemoryError) as error:
        _fail(str(error) or type(error).__name__)
    except ImportError as error:
        if "pip install" not in str(error):  # a broken installation, where the traceback says more
            raise
        _fail(str(error))
    except RuntimeError as error:
        from accelerate.utils.memory import should_reduce_batch_size

        if not should_reduce_batch_size(error):
            raise
        _fail("Not enough memory; use smaller tiles (--tile) or batches (--batch-size), where the command has them.")


def _fail(message: str, status: int = FAILED) -> None:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(status) from None


# ---------------------------------------------------------------- JSON


def print_results(
    results: Sequence[Mapping[str, Any]],
    skipped: Iterable[Mapping[str, Any]] = (),
    totals: Mapping[str, Any] | None = None,
) -> None:
    """Prints the JSON object that `--json` gives in every command.

    Args:
        results: one object for each thing that the command worked on.
        skipped: one object for each thing that it left out, with a "reason".
        totals: figures of all results together, beside the numbers of results and of skipped things.
    """
    rows, left_out = list(results), list(skipped)
    totals = {"results": len(rows), "skipped": len(left_out), **(totals or {})}
    report = {"results": rows, "skipped": left_out, "totals": totals}
    typer.echo(json.dumps(_finite(report), indent=2, default=str, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    """The same value with null for NaN and infinity, which JSON doesn't have."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------- text


def print_facts(facts: Mapping[str, Any], width: int = 22) -> None:
    """Prints one line for each fact: its name, then its value in a column of its own."""
    for key, value in facts.items():
        typer.echo(f"{key.replace('_', ' '):{width}}{_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(entry)}" for key, entry in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value)) or "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def number(value: float | None, form: str, otherwise: str = "-") -> str:
    """A table's cell: the value in a format such as ".2f", or `otherwise` for None."""
    return otherwise if value is None else format(value, form)


def print_table(table: Table) -> None:
    """Prints a table on standard output; long lines are wrapped by the terminal, not cut."""
    from rich.console import Console

    Console(soft_wrap=True).print(table)
