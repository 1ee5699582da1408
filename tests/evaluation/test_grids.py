"""Pictures for comparison."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ul_tokenizer.evaluation.grids import comparison_grid, difference_picture


def test_a_grid_has_a_line_for_each_row_and_white_gaps() -> None:
    dark, bright = torch.full((3, 3, 4, 5), -1.0), torch.ones(3, 3, 4, 5)
    grid = np.asarray(comparison_grid([dark, bright, dark], columns=2, gap=1))
    assert grid.shape == (3 * 5, 2 * 6, 3)
    assert (grid[:4, :5] == 0).all() and (grid[4] == 255).all() and (grid[:, 5] == 255).all()
    assert (grid[5:9] == 255).all() and (grid[10:14, 6:11] == 0).all()


def test_a_difference_is_grey_where_exact_and_bright_where_too_bright() -> None:
    reference = torch.full((3, 2, 3), 100, dtype=torch.uint8)
    again = reference.clone()
    again[0, 0, 1], again[1, 1, 2], again[2, 1, 0] = 110, 97, 255
    picture = np.asarray(difference_picture(reference, again))
    expected = np.full((2, 3, 3), 128)
    expected[0, 1, 0], expected[1, 2, 1], expected[1, 0, 2] = 168, 116, 255
    assert (picture == expected).all()
    assert np.asarray(difference_picture(again, reference))[1, 0, 2] == 0
    assert np.asarray(difference_picture(reference, again, gain=1.5))[0, 1, 0] == 143


@pytest.mark.parametrize(
    ("reference", "reconstruction", "sentence"),
    [
        ((3, 4, 4), (3, 4, 5), r"reconstruction must have the reference's shape \(3, 4, 4\), got \(3, 4, 5\)"),
        ((1, 3, 4, 4), (1, 3, 4, 4), r"reference must be \(3, H, W\) in uint8, got \(1, 3, 4, 4\)"),
    ],
)
def test_pictures_of_other_shapes_are_refused(
    reference: tuple[int, ...], reconstruction: tuple[int, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        difference_picture(torch.zeros(reference).byte(), torch.zeros(reconstruction).byte())


def test_floats_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reconstruction must be .* in uint8, got \(3, 2, 2\) in torch.float32"):
        difference_picture(torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(3, 2, 2))
