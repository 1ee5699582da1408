"""Every public name has its place in the reference and a docstring; so has every public method of a class."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import griffe

PACKAGE = "ul_tokenizer"
PUBLIC = (PACKAGE, f"{PACKAGE}.training")  # packages whose __all__ is public
SHOWN = re.compile(r"^::: ([\w.]+)", re.MULTILINE)


def problems(root: Path, text: str) -> list[str]:
    """A sentence for each public name that the text of all pages does not show, or that is not documented."""
    package = griffe.load(PACKAGE, search_paths=[root], try_relative_path=False, docstring_parser="google")
    assert isinstance(package, griffe.Module)
    shown = {_canonical(package, path) for path in SHOWN.findall(text)}
    found: list[str] = []
    for name, target in _public_names(package):
        if not {target.canonical_path, target.canonical_path.rpartition(".")[0]} & shown:  # itself or its module
            found.append(f"{name} is public, but no page of the reference shows it (write ::: {name}).")
        found += [f"{path} is public, but has no docstring." for path in _undocumented(target)]
        found += [f"{path} has Args that lack {', '.join(names)}." for path, names in _incomplete(target)]
    return sorted(set(found))


def _canonical(package: griffe.Module, path: str) -> str:
    """Where a name is defined; a page may show it under the name that users import."""
    try:
        canonical: str = package[path.removeprefix(f"{PACKAGE}.")].canonical_path
    except KeyError:
        return path  # mkdocstrings reports it
    return canonical


def _public_names(package: griffe.Module) -> Iterator[tuple[str, griffe.Object]]:
    for module_path in PUBLIC:
        module = package if module_path == PACKAGE else package[module_path.removeprefix(f"{PACKAGE}.")]
        for name in module.exports or []:
            member = module.members[str(name)]
            target = member.final_target if isinstance(member, griffe.Alias) else member
            if not target.is_attribute:  # __version__
                yield f"{module_path}.{name}", target


def _undocumented(target: griffe.Object) -> Iterator[str]:
    return (part.path for part in _parts(target) if not part.docstring)


def _incomplete(target: griffe.Object) -> Iterator[tuple[str, list[str]]]:
    """Functions whose docstring explains some of their parameters and not the others."""
    for part in _parts(target):
        if isinstance(part, griffe.Function) and part.docstring:
            sections = [s for s in part.docstring.parse("google") if isinstance(s, griffe.DocstringSectionParameters)]
            named = {entry.name.lstrip("*") for section in sections for entry in section.value}
            lacking = [p.name for p in part.parameters if p.name not in {"self", "cls", *named}]
            if sections and lacking:
                yield part.path, lacking


def _parts(target: griffe.Object) -> Iterator[griffe.Object]:
    """A public name and the public functions and classes in it; properties are documented as attributes."""
    yield target
    for name, member in target.members.items() if target.is_class else ():
        is_part = member.is_function or member.is_class or "property" in member.labels
        if is_part and not name.startswith("_") and isinstance(member, griffe.Object):
            yield member
