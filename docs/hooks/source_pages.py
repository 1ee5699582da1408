"""Files of the repository that pages link, each on a page of its own.

Pages link them by their path from the page, as GitHub follows it. On the site, such a link leads to a page that shows
the file, so the site is complete without the repository.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import Path

LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(((?:\.\./)+[^)#\s]+)\)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".md": "markdown", ".toml": "toml"}
FENCE = "`" * 6


def pages(root: Path, documents: Mapping[str, str]) -> dict[str, str]:
    """Address → content of a page for each linked file; a linked folder brings a list and all of its files."""
    linked = {path for uri, text in documents.items() for _, link in LINK.findall(text) if (path := _path(uri, link))}
    made: dict[str, str] = {}
    for path in sorted(linked):
        if (root / path).is_dir():
            names = sorted(entry.name for entry in (root / path).iterdir() if entry.is_file())
            made[_address(root, path)] = _listing(path, names)
            made |= {_address(root, f"{path}/{name}"): _shown(root, f"{path}/{name}") for name in names}
        elif (root / path).is_file():
            made[_address(root, path)] = _shown(root, path)
    return made


def relinked(markdown: str, uri: str, root: Path) -> str:
    """A page whose links to files outside of `docs/` lead to their pages; others stay, and mkdocs reports them."""

    def relink(found: re.Match[str]) -> str:
        path = _path(uri, found[2])
        if not path or not (root / path).exists():
            return found[0]
        return f"[{found[1]}]({posixpath.relpath(_address(root, path), posixpath.dirname(uri) or '.')})"

    return LINK.sub(relink, markdown)


def _path(uri: str, link: str) -> str | None:
    """Where a link leads, from the repository's root, if that is outside of `docs/`."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(uri), link))
    return None if path.startswith(("docs/", "..")) else path


def _address(root: Path, path: str) -> str:
    return f"source/{path}/index.md" if (root / path).is_dir() else f"source/{path}.md"


def _listing(path: str, names: list[str]) -> str:
    links = "\n".join(f"* [{name}]({name}.md)" for name in names)
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n{links}\n"


def _shown(root: Path, path: str) -> str:
    language = LANGUAGES.get(Path(path).suffix, "text")
    text = (root / path).read_text(encoding="utf-8")
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n{FENCE}{language}\n{text}\n{FENCE}\n"
