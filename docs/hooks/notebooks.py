"""A page for each notebook in examples/, with the outputs that it was saved with."""

from __future__ import annotations

import base64
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = "notebooks"
LINK = re.compile(r"(\]\()((?!https?:|#|attachment:)[^)\s]+)(\))")
IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def page_uris(root: Path) -> list[str]:
    """The pages of all notebooks."""
    return [f"{FOLDER}/{path.stem}.md" for path in _notebooks(root)]


def pages(root: Path) -> dict[str, str | bytes]:
    """The pages, and the pictures that the notebooks' cells made.

    Raises:
        ValueError: a file is no notebook.
    """
    made: dict[str, str | bytes] = {}
    for path in _notebooks(root):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = path.relative_to(root).as_posix()
        parts: list[str] = []
        for number, cell in enumerate(cells):
            parts += _shown(cell, source, f"{path.stem}-{number}", made)
        made[f"{FOLDER}/{path.stem}.md"] = "\n\n".join(parts) + "\n"
    return made


def _notebooks(root: Path) -> list[Path]:
    return sorted(path for path in (root / "examples").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def _shown(cell: dict[str, Any], source: str, stem: str, made: dict[str, str | bytes]) -> Iterator[str]:
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield _relinked(text, source)
    elif cell["cell_type"] == "code" and text.strip():
        yield f"```python\n{text}\n```"
        for number, output in enumerate(cell["outputs"]):
            yield from _output(output, f"{stem}-{number}", made)


def _output(output: dict[str, Any], stem: str, made: dict[str, str | bytes]) -> Iterator[str]:
    """A picture if there is one, or else text."""
    data = output.get("data", {})
    kind = next((kind for kind in IMAGES if kind in data), None)
    if kind:
        content = "".join(data[kind])
        name = f"{stem}.{IMAGES[kind]}"
        made[f"{FOLDER}/{name}"] = content if kind == "image/svg+xml" else base64.b64decode(content)
        yield f"![What the cell shows]({name})"
    else:
        text = COLOURS.sub("", "".join(output.get("text", data.get("text/plain", [])))).rstrip()
        if text:
            yield f"```text\n{text}\n```"


def _relinked(text: str, source: str) -> str:
    """Text whose links, which start from the notebook's folder, start from its page."""

    def relink(found: re.Match[str]) -> str:
        path, hash_sign, anchor = found[2].partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if target.endswith(".ipynb"):
            target = f"docs/{FOLDER}/{posixpath.basename(target).removesuffix('.ipynb')}.md"
        return f"{found[1]}{posixpath.relpath(target, f'docs/{FOLDER}')}{hash_sign}{anchor}{found[3]}"

    return LINK.sub(relink, text)
