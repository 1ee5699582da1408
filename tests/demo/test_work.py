"""Work behind a page: its reports arrive, and it ends soon after nobody waits for it."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn

from ul_tokenizer.demo.work import Job, Progress, follow

PATIENCE = 30.0  # seconds


def wait_for(condition: object, seconds: float = PATIENCE) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_what_is_shown_arrives_in_its_order() -> None:
    def work(job: Job) -> None:
        for number in range(5):
            job.show(number)

    assert list(follow(work)) == [0, 1, 2, 3, 4]


def test_an_error_of_the_work_is_raised_where_it_is_followed() -> None:
    def work(job: Job) -> None:
        job.show("first")
        raise ValueError("no such picture")

    steps = follow(work)
    assert next(steps) == "first"
    with pytest.raises(ValueError, match="no such picture"):
        next(steps)


def test_calls_of_a_network_are_reported_and_the_hooks_removed() -> None:
    network, seen = nn.Linear(2, 2), []

    def work(job: Job) -> None:
        with job.counting("Computing", 3, network):
            for _ in range(3):
                network(torch.zeros(1, 2))
                time.sleep(0.25)

    seen = list(follow(work))
    assert seen == [Progress("Computing", done, 3) for done in range(3)]
    assert not network._forward_pre_hooks


def test_progress_that_comes_too_often_is_left_out_but_no_result_is() -> None:
    def work(job: Job) -> None:
        for number in range(500):
            job.show(Progress("Computing", number, 500))
        job.show("result")

    seen = list(follow(work))
    assert seen[-1] == "result" and len(seen) < 20


def test_closing_the_iterator_ends_the_work_at_the_next_call_of_a_network() -> None:
    network, calls = nn.Linear(2, 2), []
    network.register_forward_hook(lambda *_: calls.append(1))
    ended = threading.Event()

    def work(job: Job) -> None:
        try:
            with job.counting("Computing", 10_000, network):
                for _ in range(10_000):
                    network(torch.zeros(1, 2))
                    time.sleep(0.01)
        finally:
            ended.set()

    steps = follow(work)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert ended.wait(PATIENCE)
    assert len(calls) < 1000
    assert not network._forward_pre_hooks


def test_one_job_at_a_time_computes() -> None:
    at_once, most = [0], [0]

    def work(job: Job) -> None:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.05)
        at_once[0] -= 1

    followers = [threading.Thread(target=lambda: list(follow(work))) for _ in range(4)]
    for follower in followers:
        follower.start()
    for follower in followers:
        follower.join(PATIENCE)
    assert most == [1]


def test_the_work_records_no_gradients() -> None:
    def work(job: Job) -> None:
        job.show(torch.is_inference_mode_enabled())

    assert list(follow(work)) == [True]
