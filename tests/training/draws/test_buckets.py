"""Orders of samples of several shapes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from ul_tokenizer.training.draws.buckets import BucketedOrder

BUCKETS = np.array([0] * 7 + [3] * 4 + [1])


def epoch_of(order: BucketedOrder, epoch: int) -> list[int]:
    return [order.index(epoch * len(order) + n) for n in range(len(order))]


def test_all_draws_of_a_group_come_from_one_bucket_and_an_epoch_takes_every_sample() -> None:
    order = BucketedOrder(BUCKETS, 3, seed=0)
    assert len(order) == 9 + 6 + 3
    for epoch in range(3):
        indices = np.array(epoch_of(order, epoch))
        assert set(indices) == set(range(len(BUCKETS)))
        assert all(len(set(BUCKETS[group])) == 1 for group in indices.reshape(-1, 3))


def test_epochs_and_seeds_differ_and_a_copy_in_a_worker_does_not() -> None:
    order = BucketedOrder(BUCKETS, 3, seed=0)
    assert epoch_of(order, 0) != epoch_of(order, 1)
    assert epoch_of(order, 0) != epoch_of(BucketedOrder(BUCKETS, 3, seed=1), 0)
    assert epoch_of(order, 1) == epoch_of(pickle.loads(pickle.dumps(order)), 1)


def test_buckets_are_visited_in_no_fixed_order() -> None:
    order = BucketedOrder(np.repeat([0, 1], 30), 3, seed=0)
    visited = buckets_visited(order)
    assert (np.diff(visited) != 0).sum() > 3


def buckets_visited(order: BucketedOrder) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return order.buckets[np.array(epoch_of(order, 0))[::3]]


@pytest.mark.parametrize(("buckets", "group_size"), [([], 3), ([1], 0)])
def test_nothing_to_order_is_refused(buckets: list[int], group_size: int) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        BucketedOrder(np.array(buckets, dtype=np.int64), group_size, seed=0)
