"""Every draw belongs to one process and one micro-batch, and every epoch takes each sample once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ul_tokenizer.training.draws.crops import DrawSampler, index_of_draw
from ul_tokenizer.training.draws.noise import Draws

lengths = st.integers(1, 40)
seeds = st.integers(0, 2**32)
processes = st.integers(1, 6)


@settings(deadline=None)
@given(lengths, seeds, st.integers(0, 5))
def test_each_epoch_is_a_permutation(length: int, seed: int, epoch: int) -> None:
    draws = range(epoch * length, (epoch + 1) * length)
    assert sorted(index_of_draw(n, length, seed) for n in draws) == list(range(length))


@settings(deadline=None)
@given(seeds, st.integers(0, 3))
def test_epochs_and_seeds_have_orders_of_their_own(seed: int, epoch: int) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [index_of_draw(n, 20, seed) for n in range(20 * epoch, 20 * epoch + 20)]

    assert order(seed, epoch) == order(seed, epoch)
    assert order(seed, epoch) != order(seed, epoch + 1)
    assert order(seed, epoch) != order(seed + 1, epoch)


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(0, 100), processes)
def test_processes_divide_the_draws_without_overlap_or_gap(start: int, count: int, num: int) -> None:
    shares = [list(DrawSampler(start, start + count, num, index)) for index in range(num)]
    assert sorted(draw for share in shares for draw in share) == list(range(start, start + count))
    assert [len(DrawSampler(start, start + count, num, index)) for index in range(num)] == list(map(len, shares))


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), processes, processes)
def test_a_run_resumed_on_other_processes_draws_what_is_left(done: int, left: int, before: int, after: int) -> None:
    """`done` draws on `before` processes, the others on `after` processes."""
    first = [draw for index in range(before) for draw in DrawSampler(0, done, before, index)]
    second = [draw for index in range(after) for draw in DrawSampler(done, done + left, after, index)]
    assert sorted(first + second) == list(range(done + left))


@settings(deadline=None)
@given(st.integers(0, 7), processes, st.integers(1, 4), st.integers(1, 5))
def test_regrouping_a_step_changes_no_sample(step: int, num: int, micro_steps: int, batch_size: int) -> None:
    """The micro-batches of all processes are the step's samples, and the draws that the loader gives them."""
    of_step = range(step * num * micro_steps * batch_size, (step + 1) * num * micro_steps * batch_size)
    values = torch.tensor(of_step) * 10
    seen: list[int] = []
    for index in range(num):
        accelerator: Any = SimpleNamespace(num_processes=num, process_index=index)
        loaded = iter(DrawSampler(of_step.start, of_step.stop, num, index))
        for micro_step in range(micro_steps):
            draws = Draws.of(step, micro_step, accelerator, batch_size, micro_steps)
            assert list(draws.local) == [next(loaded) for _ in range(batch_size)]
            assert draws.pick(values, torch.device("cpu")).tolist() == [10 * n for n in draws.local]
            seen += draws.local
    assert sorted(seen) == list(of_step)
