"""What all sources share: values of formats without types."""

from __future__ import annotations

import pytest

from ul_tokenizer.sources.base import integer_or_text, numbered_classes


@pytest.mark.parametrize(("text", "value"), [("7", 7), ("-1", -1), ("0012", 12), ("9" * 18, int("9" * 18))])
def test_what_looks_like_an_integer_becomes_one(text: str, value: int) -> None:
    assert integer_or_text(text) == value


@pytest.mark.parametrize("text", ["--5", "-", "", "1.5", "1 2", "9" * 30, "\u0667", "a7", None])
def test_any_other_text_stays_as_it_is(text: str | None) -> None:
    assert integer_or_text(text) is text


def test_a_missing_label_does_not_take_the_others_classes() -> None:
    assert numbered_classes(map(integer_or_text, ["0", "1", "-1"])) == ("0", "1")
