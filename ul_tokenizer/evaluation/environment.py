"""Where and with what a figure was measured: machine, versions, commit, memory."""

from __future__ import annotations

import datetime
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ul_tokenizer import __version__

_PACKAGES = ("diffusers", "accelerate", "numpy", "pillow", "av")


def machine() -> str:
    """One line on the processor and its threads."""
    return f"{_processor()}, {torch.get_num_threads()} threads"


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Facts that a result file records; figures depend on them hardly, times do."""
    device = torch.device(device)
    return {
        "machine": machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: _version_of(name) for name in _PACKAGES},
        "ul_tokenizer": __version__,
        "git_commit": git_commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def git_commit() -> str | None:
    """The commit of the checkout that this library lies in, with "+" if its files differ from it; None without one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--", "ul_tokenizer")
    return None if commit is None else commit + ("+" if changed else "")


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# ---------------------------------------------------------------- memory


def reset_peak_memory(device: torch.device | str = "cpu") -> None:
    """Makes `peak_memory_bytes` count from now; on a CPU this works on Linux only."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def peak_memory_bytes(device: torch.device | str = "cpu") -> int | None:
    """Peak memory: what torch allocated on a GPU, or this process's resident memory; None where it is unknown."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = (line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return next((int(line[1]) * 1024 for line in lines), None)
