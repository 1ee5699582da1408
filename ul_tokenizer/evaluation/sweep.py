"""Rows of figures in a JSON-lines file. Each row is written when it is measured, and is not measured again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ul_tokenizer.files import append_json_line, cut_off_partial_line, whole_lines

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Reads the rows of a file; none if there is no file. An incomplete last line of a killed process is ignored.

    Raises:
        ValueError: a line is not a JSON object, so this is not a file of rows.
    """
    if not path.exists():
        return []
    return [_parsed(path, number, line) for number, line in enumerate(whole_lines(path), 1)]


def append_row(path: Path, row: Row) -> None:
    """Appends a row, which is on the disk when this returns; removes an incomplete last line first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_off_partial_line(path)
    append_json_line(path, row)


def _parsed(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ValueError(f"output must be a file of JSON lines, or a new one, got {path} with another line {number}.")
    return row


def run_rows(keys: Sequence[Row], measure: Callable[[int], Mapping[str, Any]], path: Path | None) -> list[Row]:
    """Measures the rows that are not in the file yet.

    Args:
        keys: settings of each row, as JSON values; a row of the file with all items of a key is its result.
        measure: maps the index of a key to its figures.
        path: the file; None writes no file.

    Returns:
        one row per key: the items of the key, then the figures.

    Raises:
        ValueError: as `read_rows`.
    """
    known = [] if path is None else read_rows(path)
    rows = []
    for index, key in enumerate(map(_as_read, keys)):
        row = _find(known, key)
        if row is None:
            row = {**key, **measure(index)}
            if path is not None:
                append_row(path, row)
            known.append(row)
        rows.append(row)
    return rows


def _find(rows: Sequence[Row], key: Row) -> Row | None:
    return next((row for row in rows if all(name in row and row[name] == key[name] for name in key)), None)


def _as_read(row: Row) -> Row:
    """Converts a row as a file would: tuples become lists."""
    read: Row = json.loads(json.dumps(row))
    return read


def weights_sha256(*networks: nn.Module) -> str:
    """Hash of all parameters and buffers of some networks."""
    digest = hashlib.sha256()
    for network in networks:
        for name, tensor in sorted(network.state_dict().items()):
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(content.numpy().data)
    return digest.hexdigest()
