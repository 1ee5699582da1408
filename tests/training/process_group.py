"""Processes that train together over gloo; one start of the interpreters serves several runs, one after the other."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
SCRIPT = """
import contextlib, io, json, os, sys, traceback
from pathlib import Path
import torch
from accelerate.state import AcceleratorState, GradientState
from ul_tokenizer.training.command import run_command

rank, results = int(os.environ["RANK"]), []
for port, run in json.loads(Path(sys.argv[1]).read_text()):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    os.environ |= {**run["environment"], "MASTER_PORT": str(port)}
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        try:
            exec(run["code"], {"rank": rank})
            status = run_command(run["target"], [word.replace("RANK", str(rank)) for word in run["flags"]])
        except BaseException as failure:
            status = f"{type(failure).__name__}: {failure}"
            traceback.print_exc()
    for name in run["environment"]:
        os.environ.pop(name)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    results.append([status, error.getvalue()])
Path(sys.argv[1]).with_name(f"results-{rank}.json").write_text(json.dumps(results))
"""


class Run(NamedTuple):
    """A training: flags, in which RANK stands for the process's number, and code that each process runs before it."""

    flags: Sequence[str]
    code: str = ""
    environment: dict[str, str] = {}  # noqa: RUF012
    target: str = "autoencoder"


class Outcome(NamedTuple):
    """What a process returned (or raised, as text) and what it printed on standard error."""

    status: Any
    error: str

    @property
    def last_line(self) -> str:
        return self.error.strip().splitlines()[-1]


def train_together(folder: Path, processes: int, *runs: Run, timeout: float = 240) -> list[list[Outcome]]:
    """For each run, the outcomes of all processes. No launcher ends the others if one of them fails."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "plan.json"
    plan.write_text(json.dumps([(port, run._asdict()) for port, run in zip(free_ports(len(runs)), runs, strict=True)]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    children = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        own = environment | {name: str(value) for name, value in place.items()}
        command = [sys.executable, "-c", SCRIPT, str(plan)]
        children.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    try:
        outputs = [child.communicate(timeout=timeout)[0].decode() for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * processes, "\n".join(outputs)[-4000:]
    results = [json.loads((folder / f"results-{rank}.json").read_text()) for rank in range(processes)]
    return [[Outcome(*outcome) for outcome in of_run] for of_run in zip(*results, strict=True)]


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
