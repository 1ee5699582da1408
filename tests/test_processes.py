"""Processes that share a job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ul_tokenizer.processes import Processes

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import sys
from pathlib import Path
import torch
from ul_tokenizer.processes import Processes
processes = Processes.of()
try:
    with processes.together():
        if processes.rank == 1:
            raise ValueError("the disk is full.")
except ValueError as error:
    Path(sys.argv[1], f"{processes.rank}.txt").write_text(str(error))
processes.wait()
torch.distributed.destroy_process_group()
"""


@pytest.mark.multiprocess
def test_if_one_process_fails_all_fail_with_its_error(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += [str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["the disk is full."] * 2


def test_a_process_alone_raises_its_own_error() -> None:
    with pytest.raises(OSError, match="full"), Processes().together():
        raise OSError("full")


@pytest.mark.parametrize(("rank", "world_size"), [(0, None), (None, 2), (2, 2), (-1, 2)])
def test_ranks_that_make_no_sense_are_refused(rank: int | None, world_size: int | None) -> None:
    with pytest.raises(ValueError, match="rank"):
        Processes.of(rank, world_size)


def test_a_result_of_the_main_process_needs_no_group() -> None:
    assert Processes().from_main(lambda: 3) == 3
    assert Processes(1, 2).from_main(lambda: 3) == 3  # a job of an array is on its own
    with pytest.raises(ZeroDivisionError):
        Processes().from_main(lambda: 1 // 0)
    with pytest.raises(OSError, match="full"), Processes().apart():
        raise OSError("full")
