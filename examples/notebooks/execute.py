"""Executes the notebooks of this folder in place, so that they are shipped with their output.

    make notebooks                                          # all of them
    python examples/notebooks/execute.py first-steps.ipynb  # one of them

Run this when a notebook or the bundled weights change; `tests/examples/test_notebooks.py` finds notebooks that are out
of date. Each notebook runs offline in a fresh copy of `examples/`, so no file of an earlier run is used or left behind.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
MANIFEST = FOLDER.parents[1] / "ul_tokenizer" / "pretrained" / "manifest.json"
MAX_SECONDS_PER_CELL = 600
MAX_PNG = 120_000  # bytes; larger pictures are photographs, which are shipped as JPEG


def notebooks() -> list[Path]:
    """The notebooks, sorted by name."""
    return sorted(FOLDER.glob("*.ipynb"))


def code_cells(notebook: Any) -> list[Any]:
    """The cells that are executed."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def facts(notebook: Any) -> dict[str, Any]:
    """What the output depends on: a hash of all code, and the hashes of the weights that the code names."""
    code = "\0".join(cell.source for cell in code_cells(notebook))
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    weights = {name: hashlib.sha256(json.dumps(manifest[name]).encode()).hexdigest() for name in sorted(manifest)}
    named = {name: weights[name] for name in weights if re.search(rf"{name}(?![\w-])", code)}
    return {"code": hashlib.sha256(code.encode()).hexdigest(), "weights": named}


def execute(path: Path) -> Any:
    """The notebook after a run from top to bottom in a temporary copy of `examples/`.

    Raises:
        CellExecutionError: a cell failed; the message has the traceback.
    """
    notebook: Any = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        work = Path(folder, "notebooks")
        work.mkdir()
        shutil.copytree(FOLDER.parent / "images", Path(folder, "images"))
        root = str(FOLDER.parents[1])
        environment = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
        client = NotebookClient(
            notebook, timeout=MAX_SECONDS_PER_CELL, resources={"metadata": {"path": str(work)}}, record_timing=False
        )
        client.execute(env={**os.environ, **environment})
    for cell in code_cells(notebook):
        cell.outputs = list(tidied(cell.outputs))
    notebook.metadata["executed"] = facts(notebook)
    return notebook


def tidied(outputs: list[Any]) -> Iterator[Any]:
    """Outputs without standard error, which has progress and warnings, and with one file for each picture."""
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        data = output.get("data", {})
        if "image/png" in data and "image/jpeg" in data:  # Pillow gives both
            del data["image/png" if len(data["image/png"]) > MAX_PNG * 4 / 3 else "image/jpeg"]
        yield output


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name.ipynb", help="notebooks of this folder (default: all)")
    for path in [FOLDER / name for name in parser.parse_args().names] or notebooks():
        start = time.monotonic()
        nbformat.write(execute(path), path)
        print(f"{path.name}: {time.monotonic() - start:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
