"""Names in one block of memory are the names that were put in."""

from __future__ import annotations

import pickle
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ul_tokenizer.sources.names import CompactNames


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=8).filter(lambda t: not has_surrogates(t))))
def test_every_name_comes_back_in_every_process(names: list[str]) -> None:
    compact = pickle.loads(pickle.dumps(CompactNames(names)))
    assert [compact[index] for index in range(len(compact))] == names


def has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def test_names_that_are_no_utf8_come_back() -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert CompactNames([name])[0] == name


def test_ten_bytes_a_name_beside_its_text() -> None:
    names = [f"class-{n % 1000}/image-{n:08}.jpg" for n in range(10_000)]
    compact = CompactNames(names)
    size = sum(sys.getsizeof(part) for part in vars(compact).values())
    assert size < sum(map(len, names)) + 10 * len(names)


@pytest.mark.parametrize("index", [-1, 2])
def test_an_index_out_of_range_is_named(index: int) -> None:
    with pytest.raises(IndexError, match=f"from 0 to 1, got {index}"):
        CompactNames(["a", "b"])[index]
