"""What the tests of sources share: small images, and folders, archives and tables of them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ul_tokenizer.sources.base import Source


def png(seed: int = 0, size: tuple[int, int] = (8, 6)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def write(root: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_png", ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def everything(source: Source) -> list[tuple[str, dict[str, Any]]]:
    return [(source.id(i), source.columns(i)) for i in range(len(source))]


def encoded(source: Source, index: int) -> Path | bytes:
    opened = source.open(index)
    assert isinstance(opened, Path | bytes)
    return opened


def parquet(path: Path, row_group_size: int | None = None, **columns: list[Any]) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    pytest.importorskip("datasets", reason="the extra `data` is not installed")
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.table(columns), path, row_group_size=row_group_size)
    return path
