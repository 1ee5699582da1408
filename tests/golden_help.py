"""The committed help texts of all commands, in `tests/golden/help/`. To write them anew: `python tests/golden_help.py`.

They are rendered in a process of their own at 80 columns, without colours and whatever the terminal is. Their layout
depends on the versions of typer and rich, so they are made and compared with those in `constraints.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "golden" / "help"
COLUMNS = "80"
_ENVIRONMENT = {
    "COLUMNS": COLUMNS,
    "TERMINAL_WIDTH": COLUMNS,
    "TERM": "dumb",
    "NO_COLOR": "1",
    "PYTHONIOENCODING": "utf8",
}
_COLOURING = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TYPER_USE_RICH")
_RENDER = """
import json, sys
from typer.testing import CliRunner
from tests.golden_help import commands
from ul_tokenizer.cli import app
helps = {" ".join(words): CliRunner().invoke(app, [*words, "--help"]).stdout for words in commands(with_trainings=True)}
print(json.dumps({"helps": helps, "modules": sorted(sys.modules)}))
"""


def commands(with_trainings: bool = False) -> dict[tuple[str, ...], Any]:
    """Words of each command and group → the command, with or without those of `train`, which argparse explains."""
    import typer

    from ul_tokenizer.cli import app

    def walk(words: tuple[str, ...], command: Any) -> dict[tuple[str, ...], Any]:
        found = {words: command} if command.add_help_option or with_trainings else {}
        for name, part in getattr(command, "commands", {}).items():
            found |= walk((*words, name), part)
        return found

    return walk((), typer.main.get_command(app))


def render() -> tuple[dict[str, str], list[str]]:
    """File name → help text, and the names of the modules that were imported to print them all."""
    kept = {name: value for name, value in os.environ.items() if name not in _COLOURING}
    environment = {**kept, **_ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _RENDER], env=environment, cwd=ROOT, capture_output=True, encoding="utf8", check=True
    )
    answer = json.loads(done.stdout)
    return {file_name(words): _trimmed(text) for words, text in answer["helps"].items()}, answer["modules"]


def file_name(words: str) -> str:
    """Name of the file with a command's help, e.g. latents-info.txt."""
    return f"{words.replace(' ', '-') or 'ul-tokenizer'}.txt"


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"


def has_tested_versions() -> bool:
    """Whether typer and rich are installed in the versions of `constraints.txt`."""
    pinned = dict(re.findall(r"^(typer|rich)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    return all(version(name) == wanted for name, wanted in pinned.items())


def main() -> None:
    """Writes all files anew and removes those of commands that no longer exist."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    texts, _ = render()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path in FOLDER.glob("*.txt"):
        path.unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"wrote {len(texts)} help texts: {FOLDER}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
