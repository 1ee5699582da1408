"""Values in nested JSON by a path such as `metrics.ssim.value`, `rows[0].seconds` or `rows[model=ul-photo-f8].seconds`.

A path names keys with dots between them. A number in brackets counts in a list. `[key=value]` is the one object of a
list with that value, also by several keys: `[steps=4,dtype=float32]`; such a key can be a path itself. A key may have
dots of its own, as in `distances.classifier:a.safetensors.num`: the longest key that fits is taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_BRACKETS = re.compile(r"\[([^\]]*)\]\.?")


class MissingPathError(ValueError):
    """There is nothing at a path."""


def look_up(document: Any, path: str) -> Any:
    """The value at a path.

    Args:
        document: objects, lists and values as `json.loads` gives them.
        path: as this module's docstring says.

    Raises:
        MissingPathError: there is nothing at the path, or more than one thing; the sentence says where it ends.
    """
    value, rest = document, path
    while rest:
        value, rest = _step(value, rest, path)
    return value


def _step(value: Any, rest: str, path: str) -> tuple[Any, str]:
    """Goes one key or pair of brackets down: the value there, and what is left of the path."""
    if brackets := _BRACKETS.match(rest):
        return _entry(value, brackets[1], path), rest[brackets.end() :]
    keys = value if isinstance(value, Mapping) else {}
    fitting = [key for key in keys if re.match(rf"{re.escape(key)}(?=$|[.\[])", rest)]
    if not fitting:
        known = f"there are {', '.join(map(str, keys))}" if keys else "there are no keys"
        raise MissingPathError(f"path {path!r} must lead to a value, but there is no {rest!r}: {known}.")
    key = max(fitting, key=len)
    return value[key], rest[len(key) :].removeprefix(".")


def _entry(value: Any, inside: str, path: str) -> Any:
    """What brackets choose from a list."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise MissingPathError(
            f"path {path!r} must have brackets only after a list, got [{inside}] after something else."
        )
    if re.fullmatch(r"-?\d+", inside):
        if not -len(value) <= int(inside) < len(value):
            raise MissingPathError(f"path {path!r} must have an index within its list of {len(value)}, got [{inside}].")
        return value[int(inside)]
    conditions = dict(part.split("=", 1) for part in inside.split(",") if "=" in part)
    if not conditions or len(conditions) != inside.count(",") + 1:
        raise MissingPathError(f"path {path!r} must have [number] or [key=value,…], got [{inside}].")
    found = [entry for entry in value if _fits(entry, conditions)]
    if len(found) != 1:
        raise MissingPathError(f"path {path!r} must match one object, but [{inside}] matches {len(found)}.")
    return found[0]


def _fits(entry: Any, conditions: Mapping[str, str]) -> bool:
    return all(_as_text(find(entry, key.strip())) == value.strip() for key, value in conditions.items())


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def find(document: Any, path: str) -> Any:
    """The value at a path; None where there is nothing."""
    try:
        return look_up(document, path)
    except MissingPathError:
        return None
