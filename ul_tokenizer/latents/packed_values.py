"""Sequences of JSON values in few bytes: read in place from a buffer, such as a mapped file, and decoded on demand.

Millions of Python strings and numbers take gigabytes, and forked worker processes copy them as soon as reference counts
change. A packed sequence is a view of bytes, which processes share.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_TEXT, _JSON, _SAME = "text", "json", "same"
_INTEGERS = (np.int8, np.int16, np.int32, np.int64)
_ERRORS = "surrogatepass"  # JSON strings may hold lone surrogates, which UTF-8 does not


class PackedValues(Sequence[Any]):
    """Base class of packed sequences; subclasses define `one` and `take`."""

    def __init__(self, count: int) -> None:
        self._count = count

    def one(self, row: int) -> Any:
        """The value at a position, which must be within 0 … len − 1."""
        raise NotImplementedError

    def take(self, rows: Sequence[int]) -> list[Any]:
        """The values at several such positions."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        rows = range(self._count)[index]  # raises IndexError
        return self.one(rows) if isinstance(rows, int) else self.take(rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.take(range(self._count)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"<{self._count} values: {shown}{', …' if self._count > 3 else ''}>"


class _Same(PackedValues):
    """One value, repeated."""

    def __init__(self, value: Any, count: int) -> None:
        super().__init__(count)
        self._value = value

    def one(self, row: int) -> Any:
        return self._value

    def take(self, rows: Sequence[int]) -> list[Any]:
        return [self._value] * len(rows)


class _Numbers(PackedValues):
    """Integers, floats or booleans."""

    def __init__(self, values: Array) -> None:
        super().__init__(len(values))
        self._values = values

    def one(self, row: int) -> Any:
        return self._values.item(row)

    def take(self, rows: Sequence[int]) -> list[Any]:
        taken: list[Any] = self._values[np.asarray(rows, np.int64)].tolist()
        return taken


class _Texts(PackedValues):
    """Strings, or other values as JSON: where each begins, then all in UTF-8."""

    def __init__(self, buffer: Array, offsets: np.dtype[Any], count: int, is_json: bool) -> None:
        super().__init__(count)
        size = (count + 1) * offsets.itemsize
        self._offsets, self._content = buffer[:size].view(offsets), memoryview(buffer[size:])  # type: ignore[arg-type]
        self._is_json = is_json

    def one(self, row: int) -> Any:
        return self._value(self._offsets.item(row), self._offsets.item(row + 1))

    def take(self, rows: Sequence[int]) -> list[Any]:
        where = np.asarray(rows, np.int64)
        return list(map(self._value, self._offsets[where].tolist(), self._offsets[where + 1].tolist()))

    def _value(self, start: int, stop: int) -> Any:
        text = str(self._content[start:stop], "utf-8", _ERRORS)
        return json.loads(text) if self._is_json else text


# ---------------------------------------------------------------- packing


def pack(values: Sequence[Any]) -> tuple[str, bytes]:
    """Packs JSON values; `unpack` gives equal values of the same types.

    Returns:
        the kind of packing, and the bytes.
    """
    kinds = {type(value) for value in values}
    kind = next(iter(kinds)) if len(kinds) == 1 else None
    if kind in (str, int, bool, type(None)) and all(value == values[0] for value in values):
        return _SAME, json.dumps(values[0]).encode()
    if kind is float:
        return "float64", np.array(values, np.float64).tobytes()
    if kind is bool:
        return "bool", np.array(values, np.bool_).tobytes()
    if kind is int and (width := _width_of(values)) is not None:
        return np.dtype(width).name, np.array(values, width).tobytes()
    if kind is str:
        return _packed_texts(_TEXT, values)
    return _packed_texts(_JSON, [json.dumps(value, ensure_ascii=False) for value in values])


def _width_of(values: Sequence[int]) -> type[np.signedinteger[Any]] | None:
    """The smallest integer type that holds all values."""
    low, high = min(values), max(values)
    return next((t for t in _INTEGERS if np.iinfo(t).min <= low and high <= np.iinfo(t).max), None)


def _packed_texts(kind: str, texts: Sequence[str]) -> tuple[str, bytes]:
    contents = [text.encode("utf-8", _ERRORS) for text in texts]
    ends = np.cumsum([0, *map(len, contents)], dtype=np.uint64)
    width = np.dtype(np.uint32 if int(ends[-1]) < 1 << 32 else np.uint64)
    return f"{kind}:{width.name}", ends.astype(width).tobytes() + b"".join(contents)


def unpack(kind: str, buffer: Array, count: int) -> PackedValues:
    """A view of values that `pack` packed.

    Args:
        kind: as `pack` returned it.
        buffer: the bytes, (n,) uint8.
        count: the number of values.
    """
    if kind == _SAME:
        return _Same(json.loads(buffer.tobytes()), count)
    form, _, offsets = kind.partition(":")
    if offsets:
        return _Texts(buffer, np.dtype(offsets), count, form == _JSON)
    return _Numbers(buffer.view(np.dtype(kind)))
