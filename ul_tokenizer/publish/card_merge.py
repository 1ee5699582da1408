"""Cards that a program writes and people edit: what a person changed is never written over.

A generated section lies between two comments, the first of which holds a digest of what was written there. Where it no
longer fits, a person was there, and the section is theirs; so is one that is gone, and all text outside of sections.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import yaml

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_SECTION = re.compile(
    r"<!-- ul_tokenizer:(?P<name>\w+) (?P<digest>[0-9a-f]{12}) -->\n(?P<text>.*?)<!-- /ul_tokenizer:(?P=name) -->",
    re.DOTALL,
)
MEASURED = "model-index"  # metadata that goes with the section of the same figures
METRICS = "metrics"


class Card(NamedTuple):
    """A README.md: its metadata, and what is below it."""

    metadata: dict[str, Any]
    body: str

    @classmethod
    def parsed(cls, text: str) -> Card:
        """Of a file's text; metadata that is no YAML object is dropped, the text below it stays."""
        found = _FRONT_MATTER.match(text)
        if found is None:
            return cls({}, text)
        try:
            metadata = yaml.safe_load(found[1])
        except yaml.YAMLError:
            metadata = None
        return cls(metadata if isinstance(metadata, dict) else {}, text[found.end() :].lstrip("\r\n"))

    def __str__(self) -> str:
        """The file's text."""
        if not self.metadata:
            return self.body
        front = yaml.safe_dump(self.metadata, sort_keys=False, allow_unicode=True)
        return f"---\n{front}---\n\n{self.body}"


def section(name: str, text: str) -> str:
    """A generated section, with the mark by which a later program knows that nobody changed it."""
    text = text.strip("\n") + "\n"
    return f"<!-- ul_tokenizer:{name} {_digest(text)} -->\n{text}<!-- /ul_tokenizer:{name} -->"


def card_maker(generate: Callable[[str], Card]) -> Callable[[str, str | None], str]:
    """A `make_card` for `hub.upload.push`: the generated card of a repository, merged into the one that is there."""

    def make(repo_id: str, existing: str | None) -> str:
        generated = generate(repo_id)
        return str(generated if existing is None else merged(Card.parsed(existing), generated))

    return make


def merged(existing: Card, generated: Card) -> Card:
    """`existing` with its untouched sections renewed; one without any is a person's, and keeps its text.

    A new card without sections is a person's, too, and stands as it is. Of metadata, what is there stays, tags come
    together, and figures are renewed with the section that shows them.
    """
    if not _SECTION.search(generated.body):
        return generated
    if not existing.body.strip():
        return Card(_merged_metadata(existing.metadata, generated.metadata, True), generated.body)
    new = {found["name"]: found[0] for found in _SECTION.finditer(generated.body)}
    untouched = {found["name"] for found in _SECTION.finditer(existing.body) if _is_untouched(found)}

    def renewed(found: re.Match[str]) -> str:
        return new.get(found["name"], found[0]) if found["name"] in untouched else found[0]

    body = _SECTION.sub(renewed, existing.body)
    return Card(_merged_metadata(existing.metadata, generated.metadata, METRICS in untouched), body)


def _merged_metadata(existing: Mapping[str, Any], generated: Mapping[str, Any], renew_figures: bool) -> dict[str, Any]:
    metadata = {**generated, **existing}
    tags = [*_listed(existing.get("tags")), *_listed(generated.get("tags"))]
    if tags:
        metadata["tags"] = list(dict.fromkeys(tags))
    if renew_figures and MEASURED in generated:
        metadata[MEASURED] = generated[MEASURED]
    return metadata


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_untouched(found: re.Match[str]) -> bool:
    return found["digest"] == _digest(found["text"].replace("\r\n", "\n"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
