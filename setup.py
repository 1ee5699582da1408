"""What `pyproject.toml` cannot say: the README for a package index, where paths of this repository lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

ELSEWHERE = r"(?:[a-z]+:|#)"  # the start of an address that holds anywhere


def for_index(text: str) -> str:
    """A Markdown text without pictures that are files of this repository, and with the words of links to its files."""
    text = re.sub(
        rf"<picture>(?:(?!</picture>).)*\b(?:src|srcset)=\"(?!{ELSEWHERE}).*?</picture>\n?", "", text, flags=re.S
    )
    text = re.sub(rf"<img\b[^>]*\bsrc=\"(?!{ELSEWHERE})[^>]*>", "", text)
    text = re.sub(rf"!\[[^\]]*\]\((?!{ELSEWHERE})[^)]*\)", "", text)
    return re.sub(rf"(?m)\[([^\]]*)\]\((?!{ELSEWHERE})[^)]*\)", r"\1", text)


if __name__ == "__main__":  # as setuptools runs it
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(long_description=for_index(readme), long_description_content_type="text/markdown")
