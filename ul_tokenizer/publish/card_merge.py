"""Merging of generated cards into cards that people have edited: nothing that a person wrote is overwritten.

A generated section lies between two comments. The first comment holds a digest of the generated text. If the digest no
longer fits, a person has edited the section, and it stays as it is. So do sections that a person removed, and all text
outside of sections.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK  # where the hub itself finds the metadata of a card

_SECTION = re.compile(
    r"<!-- ul_tokenizer:(?P<name>\w+) (?P<digest>[0-9a-f]{12}) -->\r?\n(?P<text>.*?)<!-- /ul_tokenizer:(?P=name) -->",
    re.DOTALL,
)
METRICS = "metrics"  # the section of measured figures
MEASURED = "model-index"  # the metadata with the same figures


class Card(NamedTuple):
    """A README.md: its metadata and the text below."""

    metadata: dict[str, Any]
    body: str

    @classmethod
    def parsed(cls, text: str) -> Card:
        """Splits the text of a file. Broken YAML is dropped; a first block that is no mapping belongs to the body."""
        # Not `huggingface_hub.RepoCard`: it drops keys without a value and fails at broken YAML and at keys that are
        # no strings; `ModelCardData` also drops a model-index that it does not understand.
        found = REGEX_YAML_BLOCK.match(text)
        if found is None:
            return cls({}, text.lstrip("\r\n"))
        try:
            metadata = yaml.safe_load(found[2])
        except Exception:  # PyYAML raises many others than YAMLError, such as KeyError for `!!bool maybe`
            metadata = {}
        is_metadata = metadata is None or isinstance(metadata, dict)
        body = text[found.end() :] if is_metadata else text
        return cls(metadata if isinstance(metadata, dict) else {}, body.lstrip("\r\n"))

    def __str__(self) -> str:
        """The text of the file."""
        if not self.metadata and REGEX_YAML_BLOCK.match(self.body) is None:
            return self.body
        return f"---\n{_as_yaml(self.metadata)}---\n\n{self.body}"


def _as_yaml(metadata: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    if yaml.safe_load(text) == metadata:
        return text
    # Unescaped, PyYAML takes some characters for line ends, such as U+0085.
    return yaml.safe_dump(metadata, sort_keys=False)


def section(name: str, text: str, metadata: Mapping[str, Any] | None = None) -> str:
    """A generated section with its digest.

    Args:
        name: of the section.
        text: its content, in Markdown.
        metadata: of the card; the digest of the section of figures covers the same figures there.
    """
    text = text.strip("\n") + "\n"
    return f"<!-- ul_tokenizer:{name} {_digest(name, text, metadata or {})} -->\n{text}<!-- /ul_tokenizer:{name} -->"


def card_reviser(generate: Callable[[str], Card]) -> Callable[[str, str | None], str]:
    """A function for `hub.upload.push` that merges a generated card into the one in the repository.

    Args:
        generate: full id of the repository → generated card.
    """

    def revise(repo_id: str, existing: str | None) -> str:
        generated = generate(repo_id)
        return str(generated if existing is None else merged(Card.parsed(existing), generated))

    return revise


def merged(existing: Card, generated: Card) -> Card:
    """Renews the unedited sections of `existing`; all that a person wrote stays.

    A new card without sections was written by a person and replaces the old one. Existing metadata keeps its order and
    values, and tags of both cards are united. Figures in the metadata are renewed together with the section that shows
    them; they are left alone if a person edited either.
    """
    if not _SECTION.search(generated.body):
        return generated
    if not existing.body.strip():
        return Card(_merged_metadata(existing, generated, MEASURED not in existing.metadata), generated.body)
    new = {found["name"]: found[0] for found in _SECTION.finditer(generated.body)}
    sections = list(_SECTION.finditer(existing.body))
    untouched = {found["name"] for found in sections if _is_untouched(found, existing.metadata)}
    untouched -= {found["name"] for found in sections if not _is_untouched(found, existing.metadata)}

    def renewed(found: re.Match[str]) -> str:
        return new.get(found["name"], found[0]) if found["name"] in untouched else found[0]

    body = _SECTION.sub(renewed, existing.body)
    return Card(_merged_metadata(existing, generated, METRICS in untouched & new.keys()), body)


def _merged_metadata(existing: Card, generated: Card, renew_figures: bool) -> dict[str, Any]:
    old, new = existing.metadata, dict(generated.metadata)
    figures = new.pop(MEASURED, None)
    metadata = {**old, **{key: value for key, value in new.items() if key not in old}}
    tags = [*_listed(old.get("tags")), *_listed(new.get("tags"))]
    if "tags" in new:
        metadata["tags"] = [tag for n, tag in enumerate(tags) if tag not in tags[:n]]
    if renew_figures and figures is not None:
        metadata[MEASURED] = figures
    elif renew_figures:
        metadata.pop(MEASURED, None)
    return metadata


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_untouched(found: re.Match[str], metadata: Mapping[str, Any]) -> bool:
    text = found["text"].replace("\r\n", "\n")
    # The first cards had digests of the text alone.
    return found["digest"] in (_digest(found["name"], text, metadata), _digest("", text, {}))


def _digest(name: str, text: str, metadata: Mapping[str, Any]) -> str:
    figures = yaml.safe_dump(metadata.get(MEASURED)) if name == METRICS else ""
    return hashlib.sha256((text + figures).encode()).hexdigest()[:12]
