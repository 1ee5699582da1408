"""The Python in the pages of the site runs, each page from its first block to its last."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ul_tokenizer import encode_dataset

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# What would take too long, and what takes its place.
SHORTER = {"max_train_steps=5000,": "max_train_steps=5000, dry_run=True,", "resolution=256": "resolution=32"}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[str]:
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


PAGES = [name for path in sorted(DOCS.rglob("*.md")) if blocks(name := str(path.relative_to(DOCS)))]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the pages read."""
    monkeypatch.chdir(tmp_path)
    for photos in ("photos", "my/photos"):
        shutil.copytree(ROOT / "examples" / "images", tmp_path / photos)
    (tmp_path / "examples" / "images").mkdir(parents=True)
    Image.open(ROOT / "examples" / "images" / "moose.jpg").resize((128, 96)).save("examples/images/moose.jpg")
    return tmp_path


def test_pages_with_python_are_found() -> None:
    assert {"index.md", "how-to/encode-a-data-set.md", "how-to/generate.md", "how-to/video.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page: str, folder: Path) -> None:
    source = "\n".join(blocks(page))
    if 'LatentDataset("latents/"' in source and "encode_dataset(" not in source:
        encode_dataset("photos", "latents", model="ul-photo-f8", resolution=32)
    for long, short in SHORTER.items():
        source = source.replace(long, short)
    exec(compile(source, page, "exec"), {"__name__": "page"})
    for picture in re.findall(r'\.save\("([\w.-]+)"\)', source):
        assert Image.open(folder / picture).size in {(128, 96), (32, 32)}
