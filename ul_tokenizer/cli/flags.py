"""Errors of Python functions in the words of the command line: flags in place of arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


def with_flags(text: str, arguments: Iterable[str], spelled: Mapping[str, str]) -> str:
    """A text with flags in place of arguments: of single words where it begins, of longer names anywhere.

    Paths and ids in the text stay as they are.

    Args:
        text: an error's sentence.
        arguments: names of a function's arguments.
        spelled: argument → flag, where the flag isn't the argument with dashes.
    """
    names = list(arguments)
    long, short = ("|".join(n for n in names if ("_" in n) == is_long) or "(?!)" for is_long in (True, False))
    found = rf"^(?:{short})(?= must\b| needs\b| and\b| or\b)|(?<![/\\\w.-])(?:{long})(?![/\\\w-]|\.\w)"
    return re.sub(found, lambda name: spelled.get(name[0], f"--{name[0].replace('_', '-')}"), text)


@contextmanager
def in_flags(arguments: Iterable[str], spelled: Mapping[str, str]) -> Iterator[None]:
    """Errors name the flags of a command in place of the function's arguments; arguments as in `with_flags`."""
    try:
        yield
    except ValueError as error:
        if (text := with_flags(str(error), arguments, spelled)) == str(error):
            raise
        raise ValueError(text) from error
