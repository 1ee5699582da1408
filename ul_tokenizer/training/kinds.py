"""What type of value an argument takes: derived from its annotation, and checked the same way everywhere."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Kind:
    """The values that an argument takes."""

    type: Callable[..., Any]  # bool, int, float, str, dict, or tuple for several numbers
    choices: tuple[str, ...] | None
    optional: bool

    @property
    def text(self) -> str:
        """What is legal, for error messages: "must be …"."""
        if self.type is tuple:
            return "numbers separated by commas"
        return f"one of {', '.join(self.choices)}" if self.choices else f"of type {self.type.__name__}"

    def from_text(self, text: str) -> Any:
        """Reads the value of a flag.

        Raises:
            ValueError: "must be …, got …".
        """
        if self.optional and text == "null":
            return None
        try:
            if self.type is tuple:
                return self.checked(text)
            return self.checked(json.loads(text) if self.type is dict else self.type(text))
        except ValueError as error:
            legal = "a JSON object" if self.type is dict else self.text
            raise ValueError(f"must be {legal}, got {text!r}") from error

    def checked(self, value: Any) -> Any:
        """Returns a value of this kind; for a float also from an integer or a text, as YAML reads 1e-3 as text.

        Several numbers may come as one number, as a text with commas or as a sequence.

        Raises:
            ValueError: "must be …, got …".
        """
        if value is None and self.optional:
            return None
        if self.type is tuple:
            return self._numbers(value)
        try:
            if self.type is float and isinstance(value, (int, str)) and not isinstance(value, bool):
                value = float(value)
        except ValueError as error:
            raise ValueError(f"must be {self.text}, got {value!r}") from error
        if type(value) is not self.type or (self.choices and value not in self.choices):
            raise ValueError(f"must be {self.text}, got {value!r}")
        return value

    def _numbers(self, value: Any) -> tuple[float, ...]:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        number = Kind(float, None, False)
        try:
            return tuple(number.checked(part) for part in parts)
        except ValueError as error:
            raise ValueError(f"must be {self.text}, got {value!r}") from error


def kinds_of(cls: type[Any]) -> dict[str, Kind]:
    """Name → kind, for every field of a dataclass of arguments."""
    hints = typing.get_type_hints(cls)
    return {spec.name: _kind(hints[spec.name]) for spec in dataclasses.fields(cls)}


def _kind(hint: Any) -> Kind:
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)  # Literal[…] | None is the latter
    members = typing.get_args(hint) if is_union else (hint,)
    inner = next(member for member in members if member is not type(None))
    if typing.get_origin(inner) is Literal:
        return Kind(str, typing.get_args(inner), len(members) > 1)
    return Kind(typing.get_origin(inner) or inner, None, len(members) > 1)
