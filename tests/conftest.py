"""What all tests share: a hub on the loopback interface, a cache of their own, fresh interpreters and coverage."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.hub.loopback_hub import LoopbackHub

ROOT = Path(__file__).resolve().parent.parent

# The hub's client reads these variables on import, and test modules import it before any fixture runs. Each process of
# pytest-xdist has its own hub, on a port that the system chooses, and its own cache.
HUB = LoopbackHub()
HOME = tempfile.TemporaryDirectory(prefix="hf-home-")
os.environ |= {
    "HF_ENDPOINT": HUB.endpoint,
    "HF_HOME": HOME.name,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", os.path.expanduser("~/.cache/matplotlib")),  # fonts are slow to list
    "XDG_CACHE_HOME": HOME.name,
}
for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE"):
    os.environ.pop(name, None)
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores, so each of them, and each process that they start, gets one thread.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


# The same examples in every run and every worker, and no time limit for one of them: workers share the cores.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("repeatable")


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """An empty hub where nobody is logged in."""
    HUB.reset()
    yield HUB
    HUB.reset()


@pytest.fixture
def login(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> str:
    """Logs in with a token that may write, and returns it."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub.token


@pytest.fixture(scope="session")
def fresh_python() -> Callable[..., str]:
    """A function that runs code in a new interpreter, offline, and returns what it printed.

    It takes the code, strings for `sys.argv[1:]`, and environment variables by keyword. The test fails with the
    traceback if the code does.
    """

    def run(code: str, *arguments: str, **variables: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment | variables, timeout=250)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `gpu` on machines without a CUDA device."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch  # only here: most of pytest's own commands need no torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints the line coverage of each room if it was measured (`--cov`)."""
    plugin: Any = config.pluginmanager.getplugin("_cov")
    if plugin is None or plugin.cov_controller is None:
        return
    terminalreporter.section("coverage by room")
    for room, (covered, statements) in coverage_by_room(plugin.cov_controller.cov).items():
        terminalreporter.write_line(f"{room:<16}{covered:>6} of {statements:>6} lines {covered / statements:>6.1%}")


def coverage_by_room(coverage: Any) -> dict[str, tuple[int, int]]:
    """Room of the package → (lines covered, lines that can be covered); the last entry is "total"."""
    covered, statements = Counter[str](), Counter[str]()
    for path in coverage.get_data().measured_files():
        room = Path(path).relative_to(ROOT / "ul_tokenizer").parts[0].removesuffix(".py")
        _, lines, _, missing, _ = coverage.analysis2(path)
        for name in (room, "total"):
            covered[name] += len(lines) - len(missing)
            statements[name] += len(lines)
    rooms = [*sorted(statements.keys() - {"total"}), "total"]
    return {room: (covered[room], statements[room]) for room in rooms if statements[room]}
