"""Options that take several values with commas between them."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TypeVar

from ul_tokenizer.cli.reporting import UsageError, require

Value = TypeVar("Value")
Choice = TypeVar("Choice", bound=enum.Enum)


def texts(value: str) -> list[str]:
    """The parts of a list with commas between them."""
    return [part.strip() for part in value.split(",")]


def numbers(option: str, value: str, kind: Callable[[str], Value]) -> list[Value]:
    """The numbers of a list with commas between them.

    Raises:
        UsageError: something else in it.
    """
    try:
        return [kind(part) for part in texts(value)]
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"{option} must be {wanted} with commas between them, got {value!r}.") from None


def choices(option: str, value: str, kind: type[Choice]) -> list[Choice]:
    """The members of an enum in a list with commas between them.

    Raises:
        UsageError: another word.
    """
    legal = [str(member.value) for member in kind]
    wrong = next((word for word in texts(value) if word not in legal), None)
    require(wrong is None, f"{option} must be of {', '.join(legal)}, with commas between several, got {wrong!r}.")
    return [kind(word) for word in texts(value)]
