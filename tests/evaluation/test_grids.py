"""Pictures for comparison."""

from __future__ import annotations

import numpy as np
import torch

from ul_tokenizer.evaluation.grids import comparison_grid


def test_a_grid_has_a_line_for_each_row_and_white_gaps() -> None:
    dark, bright = torch.full((3, 3, 4, 5), -1.0), torch.ones(3, 3, 4, 5)
    grid = np.asarray(comparison_grid([dark, bright, dark], columns=2, gap=1))
    assert grid.shape == (3 * 5, 2 * 6, 3)
    assert (grid[:4, :5] == 0).all() and (grid[4] == 255).all() and (grid[:, 5] == 255).all()
    assert (grid[5:9] == 255).all() and (grid[10:14, 6:11] == 0).all()
