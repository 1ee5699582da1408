"""`benchmarks/startup.py`, and its bar: `ul-tokenizer info` starts in at most 1.5 × the time of what it imports."""

from __future__ import annotations

import sys

import startup

SLEEP = (sys.executable, "-c", "import time; time.sleep(0.2)")
NOTHING = (sys.executable, "-c", "")


def test_ratios_are_medians_within_turns_so_that_a_slow_moment_does_not_count() -> None:
    one, slow = startup.Seconds(2.0, 1.0), startup.Seconds(1.0, 1.0)
    pairs = [(one, slow), (one, slow), (startup.Seconds(40.0, 1.0), startup.Seconds(1.0, 1.0))]
    assert startup.ratios(pairs) == (2.0, 1.0)


def test_sleeping_takes_wall_time_and_hardly_any_cpu_time() -> None:
    ((sleeping, nothing),) = startup.alternate(SLEEP, NOTHING, 1)
    assert sleeping.wall > 0.2 > sleeping.cpu - nothing.cpu


def test_info_starts_within_the_bar() -> None:
    pairs = startup.alternate(startup.INFO, startup.IMPORTS, 3)
    assert startup.ratios(pairs).cpu < startup.BAR  # CPU time: other tests run beside this one
