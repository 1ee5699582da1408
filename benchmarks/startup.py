"""How long `ul-tokenizer info` takes to answer, beside `import torch, diffusers`, which it cannot do without.

python benchmarks/startup.py

Both run in turn as fresh processes, since absolute times differ from day to day and from one second to the next.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

IMPORTS = (sys.executable, "-c", "import torch, diffusers")
INFO = (sys.executable, "-m", "ul_tokenizer", "info")
BAR = 1.5  # times the imports


class Seconds(NamedTuple):
    """Time of one process."""

    wall: float
    cpu: float  # user and system, of the process and those that it waited for


class Ratios(NamedTuple):
    """Medians over runs of one command's time over the other's."""

    wall: float
    cpu: float


def seconds_of(command: Sequence[str]) -> Seconds:
    """Runs a command and measures it."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    return Seconds(wall, after.children_user + after.children_system - before.children_user - before.children_system)


def alternate(command: Sequence[str], base: Sequence[str], runs: int) -> list[tuple[Seconds, Seconds]]:
    """Measures two commands in turn, after one run of each that fills the disk's cache."""
    for warmup in (command, base):
        seconds_of(warmup)
    return [(seconds_of(command), seconds_of(base)) for _ in range(runs)]


def ratios(pairs: Sequence[tuple[Seconds, Seconds]]) -> Ratios:
    """Medians of the ratios within each turn."""
    return Ratios(
        statistics.median(one.wall / base.wall for one, base in pairs),
        statistics.median(one.cpu / base.cpu for one, base in pairs),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="Number of turns.")
    pairs = alternate(INFO, IMPORTS, parser.parse_args().runs)
    print(f"{'turn':>6} {'info':>8} {'imports':>8}   seconds (of CPU time)")
    for turn, (info, imports) in enumerate(pairs):
        print(f"{turn:>6} {info.wall:>8.2f} {imports.wall:>8.2f}   ({info.cpu:.2f}, {imports.cpu:.2f})")
    found = ratios(pairs)
    print(f"median ratio {found.wall:.2f} of wall time, {found.cpu:.2f} of CPU time; the bar is {BAR}")


if __name__ == "__main__":
    main()
