"""Downloads Debian packages, also those of another release than this machine's, and looks into them.

Nothing is installed, and apt's own settings and indices stay as they are.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

MIRRORS = ("http://deb.debian.org/debian", "http://archive.debian.org/debian")  # old releases move to the second
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def fetch_package(package: str, folder: Path, release: str | None = None) -> Path:
    """Downloads `package` into `folder` unless it is there; returns the `.deb`.

    Args:
        package: its name.
        folder: made if need be. Every release needs a folder of its own, which also holds apt's index meanwhile.
        release: a release of Debian, such as `bookworm`; None for the package that this machine would install.
    """
    found = sorted(folder.glob(f"{package}_*.deb"))
    if found:
        return found[-1]
    folder.mkdir(parents=True, exist_ok=True)
    options = _options_of_this_machine(package) if release is None else _options_of(release, package, folder / "apt")
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        run("apt-get", *options, "download", "-qq", package, cwd=partial)
        deb = next(Path(partial).glob("*.deb"))
        return deb.replace(folder / deb.name)


def _options_of_this_machine(package: str) -> tuple[str, ...]:
    if not run("apt-cache", "show", "--no-all-versions", package, check=False):
        run("apt-get", "update", "-qq", check=False)
    return ()


def _options_of(release: str, package: str, state: Path) -> tuple[str, ...]:
    """Options with which apt knows one release of Debian only; its index is kept in `state`."""
    if not KEYRING.exists():
        raise SystemExit(f"{KEYRING} must exist to check packages of Debian {release}: install debian-archive-keyring.")
    options = _options_in(state.resolve())
    for mirror in MIRRORS:
        if run("apt-cache", *options, "show", package, check=False):
            break
        for kept in ("lists/partial", "cache/archives/partial"):
            (state / kept).mkdir(parents=True, exist_ok=True)
        (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {release} main\n")
        run("apt-get", *options, "update", "-qq", check=False)
    return options


def _options_in(state: Path) -> tuple[str, ...]:
    settings = {
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": state / "lists",
        "Dir::Cache": state / "cache",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",  # apt's own user can't write into our folders; without effect unless root asks
    }
    return tuple(part for name, value in settings.items() for part in ("-o", f"{name}={value}"))


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
