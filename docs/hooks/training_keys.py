"""The page of training arguments: keys of YAML files, which are also flags and fields of the argument classes."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

from ul_tokenizer.training.arguments import TrainingArguments
from ul_tokenizer.training.command import ARGUMENTS
from ul_tokenizer.training.kinds import Kind, kinds_of

HEAD = """# Configuration keys

These are the keys of a `--config` file. Each key is also a flag of `ul-tokenizer train`
(`--train_batch_size` or `--train-batch-size`; switches have a second form, `--no-use_ema`), and a
field of the training's argument class. A flag wins over the file, and the file wins over the default.
"""
TITLES = {
    "autoencoder": "Autoencoder (stage 1)",
    "base": "Base model (stage 2)",
    "distill": "Distilled decoder",
}
GROUP = re.compile(r"^    # (\w.*)$|^    (\w+): .*", re.MULTILINE)


def page() -> str:
    """The page: keys that all trainings share, then those of each."""
    shared = {spec.name for spec in dataclasses.fields(TrainingArguments)}
    parts = [HEAD.rstrip(), "## All trainings", *_tables(TrainingArguments, shared)]
    for target, cls in ARGUMENTS.items():
        own = {spec.name for spec in dataclasses.fields(cls)} - shared
        parts += [
            f"## {TITLES[target]} {{ #{target} }}",
            f"`ul-tokenizer train {target}`, or [`{cls.__name__}`][ul_tokenizer.training.{cls.__name__}].",
            *_tables(cls, own),
            *_other_defaults(cls, shared),
        ]
    return "\n\n".join(parts) + "\n"


def _tables(cls: type[TrainingArguments], names: set[str]) -> Iterator[str]:
    """A table for each group of keys, under the comment that heads it in the class."""
    kinds, groups = kinds_of(cls), _groups(cls)
    rows: dict[str, list[str]] = {}
    for spec in dataclasses.fields(cls):
        if spec.name in names:
            rows.setdefault(groups.get(spec.name, ""), []).append(_row(spec, kinds[spec.name]))
    for title, lines in rows.items():
        if title:
            yield f"**{title}**"
        yield "\n".join(["| key | meaning |", "|---|---|", *lines])


def _groups(cls: type[TrainingArguments]) -> dict[str, str]:
    """Key → the comment above its group, in a class and its bases."""
    found: dict[str, str] = {}
    for part in reversed(cls.__mro__):
        title = ""
        if dataclasses.is_dataclass(part):
            for heading, name in GROUP.findall(inspect.getsource(part)):
                title = heading or title
                if name:
                    found[name] = title
    return found


def _row(spec: dataclasses.Field[Any], kind: Kind) -> str:
    legal = spec.metadata.get("legal")
    facts = [
        " ".join(spec.metadata["help"].split()),
        f"One of {', '.join(f'`{choice}`' for choice in kind.choices)}." if kind.choices else "",
        f"Must be {legal.text}." if legal else "",
        f"Default: `{_default(spec)}`." if _default(spec) is not None else "",
    ]
    return f"| `{spec.name}` | {' '.join(filter(None, facts))} |".replace("<", "&lt;")


def _default(spec: dataclasses.Field[Any]) -> Any:
    value = spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory()
    value = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return str(value).lower() if isinstance(value, bool) else value if value not in ("", {}) else None


def _other_defaults(cls: type[TrainingArguments], shared: set[str]) -> Iterator[str]:
    """Which keys of all trainings have another default here."""
    usual = {spec.name: _default(spec) for spec in dataclasses.fields(TrainingArguments)}
    changed = [
        f"`{spec.name}: {_default(spec)}`"
        for spec in dataclasses.fields(cls)
        if spec.name in shared and _default(spec) != usual[spec.name]
    ]
    if changed:
        yield f"Keys of all trainings with another default here: {', '.join(changed)}."
