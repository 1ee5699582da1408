"""Reads training arguments from flags and a YAML file; errors end the program with status 2 and one sentence.

This is argparse and not a library for dataclasses. jsonargparse 4.53 accepts null for a required number, reports errors
over several lines that name no file and no key, and has neither --no-x, kebab-case nor help from a field's metadata;
tyro 1.0 reads no YAML, no null and no JSON objects.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from ul_tokenizer.training.arguments import TrainingArguments
from ul_tokenizer.training.kinds import Kind, kinds_of
from ul_tokenizer.training.recipes import find_config

Arguments = TypeVar("Arguments", bound=TrainingArguments)
PAGE = 78  # columns of a description


def parse_arguments(
    cls: type[Arguments],
    argv: Sequence[str] | None = None,
    description: str = "",
    program: str | None = None,
    others: Mapping[str, type[TrainingArguments]] | None = None,
    example: str = "",
) -> Arguments:
    """Reads arguments from a command line and the `--config` file that it may name.

    Args:
        cls: the arguments to read.
        argv: the words after the program's name; None for those of this process.
        description: what the command does, for `--help`.
        program: the program's name, for `--help` and errors; None for that of this process.
        others: command → the arguments of other commands, whose config files are named as such in errors.
        example: a command to show at the end of `--help`.

    Raises:
        SystemExit: with status 2 after an error, or 0 after `--help`.
    """
    kinds = kinds_of(cls)
    parser = _make_parser(cls, kinds, description, program, example)
    words = (_snake_case(word, {*kinds, *cls.RENAMED}) for word in (sys.argv[1:] if argv is None else argv))
    flags = vars(parser.parse_args(list(words)))
    name: str | None = flags.pop("config", None)
    try:
        config = {} if name is None else _read_config(find_config(name), cls, kinds, others or {})
        return cls(**{**_without_rivals(config, flags, cls.EXCLUSIVE), **flags})
    except (ValueError, OSError) as error:
        parser.error(str(error))


# ----------------------------------------------------------------------------------------------------------------
# Flags
# ----------------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints one sentence, without the page of flags that argparse puts before it."""
        self.exit(2, f"{self.prog}: error: {message.rstrip('.')}.\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Explanations in a column of their own that leaves them most of the line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=10)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)  # names such as ul-photo-f8


class _RenamedFlag(argparse.Action):
    """A flag's old name, which ends the program with its new one."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        parser.error(f"{option} is now called --{self.const}")


def _make_parser(
    cls: type[TrainingArguments], kinds: Mapping[str, Kind], description: str, program: str | None, example: str = ""
) -> _Parser:
    parser = _Parser(
        program,
        usage="%(prog)s [--config FILE] [--FLAG VALUE …]",
        description=textwrap.fill(description, PAGE),
        epilog=example and f"Example:\n  {example}",
        formatter_class=_Formatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with any of these arguments as keys, or the name of a recipe of this package.",
    )
    groups = {title: parser.add_argument_group(title) for title in dict.fromkeys(cls.GROUPS.values())}
    group: Any = parser  # or one of its groups
    for spec in dataclasses.fields(cls):
        if (title := cls.GROUPS.get(spec.name)) is not None:
            group = groups[title]
        _add_flag(group, spec, kinds[spec.name], spec.name in cls.PATHS)
    for old, new in cls.RENAMED.items():
        parser.add_argument(f"--{old}", action=_RenamedFlag, const=new, nargs="?", help=argparse.SUPPRESS)
    return parser


def _add_flag(group: Any, spec: dataclasses.Field[Any], kind: Kind, is_path: bool) -> None:
    default = spec.default if spec.default_factory is MISSING else spec.default_factory()
    default = (",".join(map(str, default)) or None) if isinstance(default, tuple) else default
    choices = f" Choices: {', '.join(kind.choices)}." if kind.choices else ""
    shown = "" if default is None else f" (default: {default})"
    help = f"{spec.metadata['help']}{choices}{shown}".replace("%", "%%")
    if kind.type is bool:
        group.add_argument(f"--{spec.name}", action=argparse.BooleanOptionalAction, help=help)
    else:
        group.add_argument(f"--{spec.name}", type=_reader(kind), metavar="PATH" if is_path else _word(kind), help=help)


def _word(kind: Kind) -> str:
    """What help shows in place of a flag's value."""
    words: dict[Any, str] = {int: "N", float: "X", tuple: "X,…", dict: "JSON"}
    return words.get(kind.type, "NAME" if kind.choices else "TEXT")


def _reader(kind: Kind) -> Any:
    """`kind.from_text` with the error class whose message argparse shows."""

    def read(text: str) -> Any:
        try:
            return kind.from_text(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _snake_case(word: str, names: Iterable[str]) -> str:
    """A flag in kebab-case as the flag in snake_case; any other word as it is."""
    flag, equals, value = word.partition("=")
    name = flag.removeprefix("--").replace("-", "_")
    if not flag.startswith("--"):
        return word
    if name in names:
        return f"--{name}{equals}{value}"
    if name.startswith("no_") and name.removeprefix("no_") in names:
        return f"--no-{name.removeprefix('no_')}"
    return word


# ----------------------------------------------------------------------------------------------------------------
# Config file
# ----------------------------------------------------------------------------------------------------------------


def _read_config(
    path: Path,
    cls: type[TrainingArguments],
    kinds: Mapping[str, Kind],
    others: Mapping[str, type[TrainingArguments]],
) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"--config {path} must contain a mapping of arguments, got a {type(config).__name__}.")
    for key, value in config.items():
        if key in cls.RENAMED:
            raise ValueError(f"--config {path}: the key {key!r} is now called {cls.RENAMED[key]!r}.")
        if key not in kinds:
            raise ValueError(f"--config {path} {_unknown(key, config, others)}.")
        try:
            config[key] = kinds[key].checked(value)
        except ValueError as error:
            raise ValueError(f"--config {path}: {key} {error}.") from error
    return config


def _unknown(key: str, config: Mapping[str, Any], others: Mapping[str, type[TrainingArguments]]) -> str:
    """What is wrong with a config that has a key that is none of the arguments."""
    known = {command: config.keys() & kinds_of(other).keys() for command, other in others.items()}
    having = [command for command, keys in known.items() if key in keys]
    if not having:
        return f"has an unknown key {key!r}"
    return f"is a config for `{max(having, key=lambda command: len(known[command]))}`: it has the key {key!r}"


def _without_rivals(
    config: Mapping[str, Any], flags: Mapping[str, Any], exclusive: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """The config without the keys that exclude a flag, because the flag wins."""
    rivals = {b if a in flags else a for a, b in exclusive if (a in flags) != (b in flags)}
    return {key: value for key, value in config.items() if key not in rivals}
