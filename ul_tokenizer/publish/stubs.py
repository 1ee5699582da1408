"""One-line modules in pushed pipelines, for users of diffusers who never import us.

diffusers takes `pipeline.py` and `<component>/ul_tokenizer.py` for the classes that `model_index.json` names, if its
user allows code of the repository by `trust_remote_code=True`. That code only imports the installed library.
"""

from __future__ import annotations

import json
from pathlib import Path

_INDEX = "model_index.json"


def stubs(folder: Path) -> dict[str, bytes]:
    """Path → content, for a pipeline's folder; nothing for anything else."""
    index = folder / _INDEX
    if not index.is_file():
        return {}
    values = json.loads(index.read_text(encoding="utf-8"))
    files = {"pipeline.py": _import_of(values["_class_name"])}
    for component, entry in values.items():
        if isinstance(entry, list) and entry[0] == "ul_tokenizer":
            files[f"{component}/ul_tokenizer.py"] = _import_of(entry[1])
    return files


def _import_of(name: str) -> bytes:
    return f"from ul_tokenizer import {name}  # noqa: F401  # pip install ul_tokenizer\n".encode()
