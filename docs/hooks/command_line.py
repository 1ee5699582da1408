"""The page of the command line, from the commands themselves."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterator
from typing import Any

import typer

HEAD = """# Command line

`ul-tokenizer --help` and `ul-tokenizer COMMAND --help` print the same in a terminal. The three
trainings have [their own keys](training-arguments.md), which are also flags.
"""


def page() -> str:
    """The page, with a section for each command."""
    from ul_tokenizer.cli import app

    return "\n\n".join([HEAD.rstrip(), *_sections(("ul-tokenizer",), typer.main.get_command(app))]) + "\n"


def _sections(words: tuple[str, ...], command: Any) -> Iterator[str]:
    title = " ".join(words)
    heading = " ".join(words[1:]) or title  # short ones fit beside the page
    yield f"{'#' * min(len(words) + 1, 3)} {heading} {{ #{'-'.join(words)} }}"
    yield inspect.cleandoc(command.help or "")
    if command.epilog:
        yield f"```sh\n{command.epilog.removeprefix('Example: ').replace(' Example: ', chr(10))}\n```"
    parts = getattr(command, "commands", {})
    rows = [_row(command, parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
    if rows and command.add_help_option:
        yield "\n".join(["| option | meaning |", "|---|---|", *rows])
    if parts:
        yield "\n".join(f"* [`{title} {name}`](#{'-'.join((*words, name))})" for name in parts)
    for name, part in parts.items():
        yield from _sections((*words, name), part)


def _row(command: Any, parameter: Any) -> str:
    is_argument = parameter.param_type_name == "argument"
    names = [parameter.metavar or parameter.name.upper()] if is_argument else parameter.opts + parameter.secondary_opts
    shown = ", ".join(f"`{name}`" for name in names)
    facts = [_choices(parameter), "Required." if parameter.required else _default(parameter)]
    return f"| {shown} | {' '.join([_cell(parameter.help or ''), *filter(None, facts)])} |"


def _choices(parameter: Any) -> str:
    kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return f"One of {', '.join(f'`{member.value}`' for member in kind)}."
    return ""


def _default(parameter: Any) -> str:
    """The default, in the words of the help text if it has some."""
    if isinstance(parameter.show_default, str):
        return f"Default: {parameter.show_default}."
    value = parameter.default.value if isinstance(parameter.default, enum.Enum) else parameter.default
    if parameter.show_default is False or value in (None, False, "", ()):
        return ""
    if value is True:
        return f"Default: `{parameter.opts[0]}`."
    return f"Default: `{value}`."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
