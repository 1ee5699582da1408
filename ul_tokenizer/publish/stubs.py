"""One-line modules in pushed pipelines, for users of diffusers who never import `ul_tokenizer`.

diffusers looks for the classes in `model_index.json` in `pipeline.py` and `<component>/ul_tokenizer.py`, if the user
allows code from the repository with `trust_remote_code=True`. These modules only import the installed library.
"""

from __future__ import annotations

from pathlib import Path

from ul_tokenizer.publish.records import read_config

_INDEX = "model_index.json"


def stubs(folder: Path) -> dict[str, bytes]:
    """The modules for a pipeline's folder, as path → content; empty for any other folder."""
    index = read_config(folder / _INDEX)
    if not index:
        return {}
    files = {"pipeline.py": _import_of(index["_class_name"])}
    for component, entry in index.items():
        if isinstance(entry, list) and entry[0] == "ul_tokenizer":
            files[f"{component}/ul_tokenizer.py"] = _import_of(entry[1])
    return files


def _import_of(name: str) -> bytes:
    return f"from ul_tokenizer import {name}  # noqa: F401  # pip install ul_tokenizer\n".encode()
