"""Each command that a document shows is parsed: programs, subcommands, options and their values are legal.

A command in a ```sh block must be complete. A command within a sentence may leave out what is required, or have "…" in
place of words; its subcommands and options must exist all the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch.distributed.run
import typer
from accelerate.commands.launch import launch_command_parser

from tests.golden_help import FOLDER as HELP
from ul_tokenizer.training.command import EXAMPLES
from ul_tokenizer.training.distill import DistillArguments
from ul_tokenizer.training.parsing import parse_arguments
from ul_tokenizer.training.stage1 import Stage1Arguments
from ul_tokenizer.training.stage2 import Stage2Arguments

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "MODEL_CARD.md"]
DOCUMENTS += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
# Pages that only explain, or that list other pages.
WITHOUT_COMMANDS = re.compile(r"docs/(concepts|notes|reference)/.*|.*/index\.md")
PROGRAMS = ("ul-tokenizer", "accelerate", "torchrun", "sbatch", "python")
# What the documents' commands read; `~` is a temporary folder, too.
FOLDERS = ["photos", "videos", "latents", "runs/my-model", "runs/first-evening-base", "my/photos", "my/classes"]
FOLDERS += ["latents/mine", "imagenet/train", "more-latents"]
FOLDERS += [f"~/.cache/ul_tokenizer/fashion-mnist/{part}" for part in ("train", "test")]
FILES = ["photo.jpg", "clip.mp4"]
FOREIGN = {"cd", "git", "hf", "make", "pip", "pre-commit", "python3", "source"}  # `make` has a test of its own
TRAINING: dict[str, Any] = {
    "autoencoder": Stage1Arguments,
    "base": Stage2Arguments,
    "distill": DistillArguments,
    "train_autoencoder.py": Stage1Arguments,
    "train_base_model.py": Stage2Arguments,
}


class CommandError(ValueError):
    """A command that the documents should not show."""


# ---------------------------------------------------------------- finding commands


def block_commands(text: str) -> list[str]:
    """The lines of ```sh blocks, continued lines joined, without comments."""
    blocks = re.findall(r"^ *```(?:sh|bash)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    stripped = (re.sub(r"(^|\s+)# .*$", "", line).strip() for line in lines)
    return [part for line in stripped if line for part in line.split(" && ")]


def inline_commands(text: str) -> list[str]:
    """Code within sentences that starts with one of our programs and has a further word."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))
    return [part for span in spans if span.startswith(tuple(f"{p} " for p in PROGRAMS)) for part in alternatives(span)]


def alternatives(command: str) -> Iterator[str]:
    """`a b | c` means the commands `a b` and `a c`."""
    first, *others = command.split(" | ")
    yield first
    yield from (f"{first.rpartition(' ')[0]} {other}" for other in others)


# ---------------------------------------------------------------- checking commands


def check(command: str, is_complete: bool) -> None:
    """Raises CommandError for a command with anything that does not exist."""
    program, *words = shlex.split(re.sub(r"\$[A-Z_]+", "1", command))
    words = [os.path.expanduser(word) for word in words if word != "…"]
    if program == "ul-tokenizer":
        check_ours(words, is_complete)
    elif program == "sbatch":
        check(words[words.index("--wrap") + 1], is_complete)
    elif program in ("accelerate", "torchrun"):
        check_launcher(program, words, is_complete)
    elif program == "python":
        is_module = words[0] == "-m"
        check_launched(is_module, words[is_module], words[is_module + 1 :], is_complete)
    elif program not in FOREIGN:
        raise CommandError(f"{program} is no known program: {command}")


def check_ours(words: Sequence[str], is_complete: bool) -> None:
    """Checks the words after `ul-tokenizer`."""
    command, rest = typer.main.get_command(import_module("ul_tokenizer.cli").app), list(words)
    while rest and (children := getattr(command, "commands", None)) is not None and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in children:
            raise CommandError(f"there is no command {name!r} in: {' '.join(words)}")
        command = children[name]
        if name in TRAINING:
            return check_training(TRAINING[name], rest, is_complete)
        if name == "train" and not is_complete and rest[:1] == ["--config"]:
            return check_training(Stage1Arguments, rest, is_complete)  # a sentence about both kinds of training
    if is_complete:
        with refusing(words):
            command.make_context("", rest)
    else:
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        check_options(rest, known | {"--help"}, words)


def check_training(cls: Any, words: Sequence[str], is_complete: bool) -> None:
    """Checks the flags of a training."""
    if is_complete and words:
        with refusing(words):
            parse_arguments(cls, list(words))
        return
    names = {field.name for field in dataclasses.fields(cls)} | {"config", "help"}
    both = {f"--{name}" for name in names} | {f"--no-{name}" for name in names}
    check_options([word.replace("_", "-") for word in words], {flag.replace("_", "-") for flag in both}, words)


def check_options(words: Sequence[str], known: set[str], whole: Sequence[str]) -> None:
    unknown = [w for w in words if re.match(r"--?[A-Za-z]", w) and w.partition("=")[0] not in known]
    if unknown:
        raise CommandError(f"there is no option {unknown[0]} in: {' '.join(whole)}")


def check_launcher(program: str, words: list[str], is_complete: bool) -> None:
    """Checks a launcher's own options, then what it launches."""
    if program == "accelerate":
        parser, command, *words = launch_command_parser(), *words
        if command == "config":
            return
        if command != "launch":
            raise CommandError(f"there is no command accelerate {command}")
    else:
        parser = torch.distributed.run.get_args_parser()
    if not is_complete and "-m" not in words and not any("." in word for word in words):
        words += ["-m", "ul_tokenizer.train"]  # a sentence about the launcher alone
    with refusing(words):
        args = parser.parse_args(words)
    check_launched(args.module, args.training_script, args.training_script_args, is_complete)


def check_launched(is_module: bool, name: str, words: Sequence[str], is_complete: bool) -> None:
    """Checks a script or module of ours and the words for it."""
    path = ROOT / (f"{name.replace('.', '/')}.py" if is_module else name)
    if name == "ul_tokenizer.train":
        check_ours(["train", *words], is_complete)
    elif is_module and name == "ul_tokenizer":
        check_ours(words, is_complete)
    elif not path.is_file():
        raise CommandError(f"there is no script {name}")
    elif path.name in TRAINING:
        check_training(TRAINING[path.name], words, is_complete)
    elif path.name == "encode_dataset.py":
        check_ours(["encode-dataset", *words], is_complete)
    else:
        check_options(words, set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", help_of(path))), [name, *words])


@cache
def help_of(script: Path) -> str:
    """What a script prints for --help."""
    printed, path = io.StringIO(), [str(script.parent), *sys.path]
    with (
        mock.patch.object(sys, "argv", [script.name, "--help"]),
        mock.patch.object(sys, "path", path),  # for scripts that import their neighbours
        mock.patch.dict("os.environ", COLUMNS="200", TERM="dumb"),  # otherwise typer wraps and colours
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        runpy.run_path(str(script), run_name="__main__")
    return printed.getvalue()


@contextlib.contextmanager
def refusing(words: Sequence[str]) -> Iterator[None]:
    """Turns what a parser does with illegal words into CommandError."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            yield
    except SystemExit as end:
        if end.code:
            raise CommandError(f"{' '.join(words)}: {errors.getvalue().strip().splitlines()[-1]}") from None
    except Exception as error:  # typer brings click's errors under a private name
        raise CommandError(f"{' '.join(words)}: {error}") from None


# ---------------------------------------------------------------- tests


@pytest.fixture(scope="module", autouse=True)
def _inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A working folder with the files and folders that commands read, since some parsers look for them."""
    home = tmp_path_factory.mktemp("home")
    for folder in FOLDERS:
        (home / folder.removeprefix("~/")).mkdir(parents=True, exist_ok=True)
    for file in FILES:
        (home / file).touch()
    (home / "examples").symlink_to(ROOT / "examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.chdir(home)
        yield


def commands() -> list[tuple[str, str, bool]]:
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
    complete = [(name, command, True) for name, text in texts.items() for command in block_commands(text)]
    partial = [(name, command, False) for name, text in texts.items() for command in inline_commands(text)]
    return list(dict.fromkeys(complete + partial))


@pytest.mark.parametrize(("document", "command", "is_complete"), commands(), ids=str)
def test_a_command_in_a_document_is_legal(document: str, command: str, is_complete: bool) -> None:
    check(command, is_complete)


def test_commands_of_every_document_that_has_some_are_found() -> None:
    found = {name for name, command, _ in commands() if command.split()[0] not in FOREIGN}
    assert [name for name in DOCUMENTS if name not in found and not WITHOUT_COMMANDS.fullmatch(name)] == []


def help_texts(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    """The examples at the end of the help of a command and of its subcommands."""
    yield from re.findall(r"Example:\s+(ul-tokenizer .*)", command.epilog or "")
    for name, child in getattr(command, "commands", {}).items():
        yield from help_texts(child, (*words, name))


def test_each_example_in_the_help_texts_is_legal() -> None:
    examples = [*help_texts(typer.main.get_command(import_module("ul_tokenizer.cli").app)), *EXAMPLES.values()]
    shown = {
        text.split("Example:")[1].strip() for text in (path.read_text(encoding="utf-8") for path in HELP.glob("*.txt"))
    }
    assert set(examples) == shown  # those of the committed help texts, and no others
    for example in examples:
        check(example, is_complete=True)


@pytest.mark.parametrize(
    ("command", "is_complete"),
    [
        ("ul-tokenizer encodes photos/ -o latents/", True),
        ("ul-tokenizer latents nonsense", False),
        ("ul-tokenizer encode photos/ -o latents/ --nonsense", True),
        ("ul-tokenizer encode photos/", True),
        ("ul-tokenizer generate --num many -o grid.png", True),
        ("ul-tokenizer latents export latents/ -o shards/ --format nonsense", True),
        ("ul-tokenizer evaluate --nonsense", False),
        ("accelerate launch --nonsense examples/train_autoencoder.py", True),
        ("accelerate launch examples/train_autoencoder.py --train_data_dir photos/ --max_train_steps many", True),
        ("accelerate launch examples/train_nonsense.py", False),
        ("accelerate launch examples/encode_dataset.py photos/ -o out --nonsense", True),
        ("torchrun --standalone examples/train_autoencoder.py --nonsense 1", False),
        ("python benchmarks/reconstruction.py --nonsense", True),
        ("python benchmarks/reconstruction.py -out x", True),
        ("python benchmarks/reconstruction.py --SCALE 3", True),
        ("sbatch --array 0-3 --wrap 'ul-tokenizer encode-dataset photos/ -o latents/ --nonsense'", True),
        ("nonsense photos/", True),
    ],
)
def test_an_illegal_command_is_seen(command: str, is_complete: bool) -> None:
    with pytest.raises(CommandError):
        check(command, is_complete)
