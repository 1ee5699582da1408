"""The numbers of training and of the bundled models are those of `tests/golden/values.json`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState, GradientState

from tests import golden

HINT = (
    "{name}: {figure} is {found}, not {expected}. If this change is intended, run `python tests/golden.py --write` "
    "and say in the commit why."
)


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps its state in class attributes and refuses to start with another precision."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.mark.parametrize("name", golden.MEASUREMENTS)
def test_the_numbers_are_the_golden_ones(name: str) -> None:
    expected, found = golden.read_values()[name], golden.measured(name)
    assert found.keys() == expected.keys()
    for figure, numbers in found.items():
        message = HINT.format(name=name, figure=figure, found=numbers, expected=expected[figure])
        assert golden.deviation(numbers, expected[figure]) <= 1, message


def test_the_file_holds_no_other_numbers() -> None:
    assert golden.read_values().keys() == golden.MEASUREMENTS.keys()


def test_numbers_that_are_further_apart_than_rounding_differ() -> None:
    assert golden.deviation([1.0, -2.0], [1.0, -2.0]) == 0
    assert golden.deviation([1.00008, -2.0], [1.0, -2.0]) < 1 < golden.deviation([1.001, -2.0], [1.0, -2.0])
    assert golden.deviation([1.0], [1.0, 0.0]) > 1
