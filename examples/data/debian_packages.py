"""Downloads Debian packages and looks into them; nothing is installed."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path


def fetch_package(package: str, folder: Path) -> Path:
    """Downloads `package` into `folder` unless it is there; returns the `.deb`."""
    found = sorted(folder.glob(f"{package}_*.deb"))
    if found:
        return found[-1]
    folder.mkdir(parents=True, exist_ok=True)
    if not run("apt-cache", "show", "--no-all-versions", package, check=False):
        run("apt-get", "update", "-qq", check=False)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        run("apt-get", "download", "-qq", package, cwd=partial)
        deb = next(Path(partial).glob("*.deb"))
        return deb.replace(folder / deb.name)


def extract_package(deb: Path, folder: str | Path) -> None:
    """Unpacks the files of a `.deb` below `folder`."""
    run("dpkg-deb", "-x", str(deb), str(folder))


def version_of(deb: Path) -> str:
    """The package's version."""
    return run("dpkg-deb", "-f", str(deb), "Version").strip()


def run(*command: str, cwd: str | None = None, check: bool = True) -> str:
    """The standard output of a command; ends the script with its error if it fails and `check` is set."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout
