"""Reads training arguments from flags and a YAML file; what is wrong ends the program: status 2, one sentence."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml

from ul_tokenizer.training.arguments import TrainingArguments

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def parse_arguments(cls: type[Arguments], argv: Sequence[str] | None = None, description: str = "") -> Arguments:
    """Arguments from a command line (`sys.argv` if None) and the `--config` file that it may name."""
    kinds = _kinds(cls)
    parser = _Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", type=Path, help="YAML file with any of these arguments as keys.")
    for spec in dataclasses.fields(cls):
        _add_flag(parser, spec, kinds[spec.name])
    flags = vars(parser.parse_args(argv))
    path: Path | None = flags.pop("config", None)
    try:
        config = {} if path is None else _read_config(path, kinds)
        return cls(**{**_without_rivals(config, flags, cls.EXCLUSIVE), **flags})
    except (ValueError, OSError) as error:
        parser.error(str(error))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, without the page of flags that argparse puts before it."""
        self.exit(2, f"{self.prog}: error: {message.rstrip('.')}.\n")


# ----------------------------------------------------------------------------------------------------------------
# Types of fields
# ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """What a field may hold."""

    type: Callable[..., Any]  # bool, int, float, str or dict
    choices: tuple[str, ...] | None
    optional: bool

    @property
    def text(self) -> str:
        """As error messages put it."""
        return f"one of {', '.join(self.choices)}" if self.choices else f"of type {self.type.__name__}"

    def from_text(self, text: str) -> Any:
        """The value of a flag."""
        if self.optional and text == "null":
            return None
        try:
            return self.from_yaml(json.loads(text) if self.type is dict else self.type(text))
        except ValueError:
            legal = "a JSON object" if self.type is dict else self.text
            raise argparse.ArgumentTypeError(f"must be {legal}, got {text!r}") from None

    def from_yaml(self, value: Any) -> Any:
        """The value of a config key; YAML reads 1e-3 as text, and 1 where 1.0 is meant."""
        if value is None and self.optional:
            return None
        if self.type is float and isinstance(value, (int, str)) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not self.type or (self.choices and value not in self.choices):
            raise ValueError
        return value


def _kinds(cls: type[TrainingArguments]) -> dict[str, _Kind]:
    hints = typing.get_type_hints(cls)
    return {spec.name: _kind(hints[spec.name]) for spec in dataclasses.fields(cls)}


def _kind(hint: Any) -> _Kind:
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)  # Literal[…] | None is the latter
    members = typing.get_args(hint) if is_union else (hint,)
    inner = next(member for member in members if member is not type(None))
    if typing.get_origin(inner) is Literal:
        return _Kind(str, typing.get_args(inner), len(members) > 1)
    return _Kind(typing.get_origin(inner) or inner, None, len(members) > 1)


# ----------------------------------------------------------------------------------------------------------------
# Flags and file
# ----------------------------------------------------------------------------------------------------------------


def _add_flag(parser: argparse.ArgumentParser, spec: dataclasses.Field[Any], kind: _Kind) -> None:
    default = spec.default if spec.default_factory is MISSING else spec.default_factory()
    choices = f" Choices: {', '.join(kind.choices)}." if kind.choices else ""
    help = f"{spec.metadata['help']}{choices} (default: {default})".replace("%", "%%")
    if kind.type is bool:
        parser.add_argument(f"--{spec.name}", action=argparse.BooleanOptionalAction, help=help)
    else:
        parser.add_argument(f"--{spec.name}", type=kind.from_text, metavar=spec.name.upper(), help=help)


def _read_config(path: Path, kinds: Mapping[str, _Kind]) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.expanduser().read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise ValueError(f"--config {path} must hold a mapping of arguments, got {type(config).__name__}.")
    for key, value in config.items():
        if key not in kinds:
            raise ValueError(f"--config {path} has an unknown key {key!r}.")
        try:
            config[key] = kinds[key].from_yaml(value)
        except ValueError:
            raise ValueError(f"--config {path}: {key} must be {kinds[key].text}, got {value!r}.") from None
    return config


def _without_rivals(
    config: Mapping[str, Any], flags: Mapping[str, Any], exclusive: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """The config without those keys that exclude a flag: the flag wins."""
    rivals = {b if a in flags else a for a, b in exclusive if (a in flags) != (b in flags)}
    return {key: value for key, value in config.items() if key not in rivals}
