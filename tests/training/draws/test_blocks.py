"""The streaming order: every sample once, few blocks at a time, and nothing but n and the seed decides."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest

from ul_tokenizer.training.draws.blocks import BlockOrder

SIZES = [7, 1, 12, 4, 9, 3]
BLOCKS = np.repeat(range(len(SIZES)), SIZES)
COUNT = sum(SIZES)


def epoch_of(order: BlockOrder, epoch: int = 0) -> list[int]:
    return [order.index(epoch * len(order) + n) for n in range(len(order))]


@pytest.mark.parametrize("window", [1, 5, 8, COUNT, 10 * COUNT])
def test_each_epoch_takes_every_sample_once_in_an_order_of_its_own(window: int) -> None:
    order = BlockOrder(SIZES, window, seed=0)
    epochs = [epoch_of(order, epoch) for epoch in range(3)]
    assert all(Counter(epoch) == Counter(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_window_has_few_blocks_and_mixes_them() -> None:
    sizes, window = [10] * 50, 25
    order = BlockOrder(sizes, window, seed=0)
    indices = np.array(epoch_of(order))
    blocks = [set(part // 10) for part in indices.reshape(-1, window)]
    assert max(map(len, blocks)) <= order.most_blocks == 4
    changes = np.diff(indices // 10) != 0
    assert changes.mean() > 0.5  # neighbours are mostly of different blocks
    assert sorted({b for part in blocks[:4] for b in part}) != list(range(10))  # blocks come in random order


@pytest.mark.parametrize("window", [3, 8, 20])
def test_no_window_needs_more_blocks_than_are_kept(window: int) -> None:
    order = BlockOrder(SIZES, window, seed=1)
    for epoch in range(20):
        blocks = BLOCKS[np.array(epoch_of(order, epoch))]
        parts = [blocks[first : first + window] for first in range(0, COUNT, window)]
        assert max(len(set(part)) for part in parts) <= order.most_blocks


def test_a_draw_depends_on_its_number_and_the_seed_alone() -> None:
    order, other = BlockOrder(SIZES, 8, seed=0), pickle.loads(pickle.dumps(BlockOrder(SIZES, 8, seed=0)))
    expected = {n: order.index(n) for n in range(3 * COUNT)}
    for n in (80, 2, 50, 2):
        assert other.index(n) == expected[n]
    assert epoch_of(BlockOrder(SIZES, 8, seed=1)) != epoch_of(order)


@pytest.mark.parametrize(("sizes", "window"), [([], 3), ([2], 0)])
def test_nothing_to_order_is_refused(sizes: list[int], window: int) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        BlockOrder(sizes, window, seed=0)
