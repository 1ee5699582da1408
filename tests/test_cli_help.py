"""Help of the command line: every option is explained and worded alike, and the texts are the committed ones."""

from __future__ import annotations

import enum
import re
import typing
from collections import defaultdict
from typing import Any

import pytest
from typer.testing import CliRunner

from tests import golden_help
from ul_tokenizer.cli import app

COMMANDS = golden_help.commands()
LEAVES = {words: command for words, command in COMMANDS.items() if not hasattr(command, "commands")}
# Options with the same name and another meaning in some commands.
MAY_DIFFER = {
    "--output": "what is written depends on the command",
    "--model": "an autoencoder, a pipeline, or the autoencoder that made a data set",
    "--num": "images of each class, images of each row, or samples",
    "--steps": "of a decoder, or of a base model",
    "--seed": "of noise, or of the samples that are drawn as well",
    "--revision": "a branch to pull from, or one to push to, which may be new",
    "--clip-frames": "whether clips are read, or how they are divided",
    "--given": "frames from the end of a video, or from the start of each clip",
    "--crop": "where images are cropped before they are encoded, or which of their pixels are measured",
    "--fps": "the rate at which a video is read, or the one of generated clips",
    "--help": "typer's own",
}
EVALUATIONS = ("reconstruction", "generation", "prediction", "report")
LISTS = " Separate several by commas to measure all combinations."  # added to options of which `evaluate` takes several
NEEDS = " Needs --class or --prompt."


def options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option"]


def names(option: Any) -> list[str]:
    return [*option.opts, *option.secondary_opts]


def each_option() -> list[tuple[str, Any]]:
    return [(" ".join(words), option) for words, command in COMMANDS.items() for option in options(command)]


def callbacks() -> dict[str, Any]:
    """The functions of all commands but those of `train`, which pass their words on to another parser."""
    groups = [app, *(group.typer_instance for group in app.registered_groups)]
    found = [info.callback for group in groups if group for info in group.registered_commands]
    return {f"{f.__module__}.{f.__name__}": f for f in found if f and not f.__module__.endswith(".train")}


def wrapped() -> dict[str, Any]:
    return {name: f.__wrapped__ for name, f in callbacks().items()}


def members(kind: Any) -> list[enum.Enum]:
    """Members of the enum that an annotated type is, or may be."""
    types = [kind.__origin__, *typing.get_args(kind.__origin__)] if typing.get_origin(kind) is typing.Annotated else []
    return [member for one in types if isinstance(one, type) and issubclass(one, enum.Enum) for member in one]


def test_all_commands_are_found() -> None:
    expected = {"encode", "decode", "reconstruct", "generate", "info", "encode-dataset", "push", "pull"}
    assert expected <= {words[0] for words in LEAVES}
    assert {("evaluate", part) for part in EVALUATIONS} <= set(LEAVES)
    assert {("hub", "list"), ("latents", "info"), ("latents", "export")} <= set(LEAVES)


def test_every_option_and_argument_is_explained_in_whole_sentences() -> None:
    wrong = [
        (" ".join(words), p.name, p.help)
        for words, command in COMMANDS.items()
        for p in command.params
        if not re.fullmatch(r"(?s)\S.*\S\.", p.help or "")
    ]
    assert wrong == []


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_says_what_it_does(words: tuple[str, ...]) -> None:
    assert re.match(r"[A-Z][\w-]+,? .*[.:]", COMMANDS[words].help or "")


@pytest.mark.parametrize("words", golden_help.commands(with_trainings=True), ids=" ".join)
def test_every_help_ends_with_an_example_of_the_command_on_one_line(words: tuple[str, ...]) -> None:
    text = (golden_help.FOLDER / golden_help.file_name(" ".join(words))).read_text(encoding="utf-8")
    heading, example = text.split("\n\n")[-1].split("\n", 1) if "Example:\n  " in text else text.split("\n\n")[-2:]
    assert heading.strip() == "Example:" and len(example.strip().splitlines()) == 1
    assert example.split()[: 1 + len(words)] == ["ul-tokenizer", *words]


def test_choices_are_named_in_the_explanation_since_the_list_of_options_has_no_room_for_them() -> None:
    hints = [(name, typing.get_type_hints(f, include_extras=True)) for name, f in wrapped().items()]
    missing = [
        (where, name, str(member.value))
        for where, hint in hints
        for name, kind in hint.items()
        if (choices := members(kind))
        for member in choices
        if not re.search(rf"(?<![\w-]){re.escape(str(member.value))}(?![\w-])", kind.__metadata__[0].help)
    ]
    assert missing == [] and any(members(kind) for _, hint in hints for kind in hint.values())


def test_options_are_written_in_kebab_case() -> None:
    spelling = re.compile(r"--[a-z][a-z0-9]*(-[a-z0-9]+)*|-[a-z]")
    assert [(where, n) for where, o in each_option() for n in names(o) if not spelling.fullmatch(n)] == []


def test_an_option_has_the_same_help_in_every_command() -> None:
    texts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for where, option in each_option():
        long_name = next(name for name in option.opts if name.startswith("--"))
        texts[long_name][option.help.removesuffix(LISTS).removesuffix(NEEDS)].append(where)
    different = {name: dict(found) for name, found in texts.items() if len(found) > 1}
    assert {name: found for name, found in different.items() if name not in MAY_DIFFER} == {}


def test_an_option_has_the_same_choices_in_every_command() -> None:
    choices: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for callback in callbacks().values():
        for name, kind in typing.get_type_hints(callback.__wrapped__).items():
            if isinstance(kind, type) and issubclass(kind, enum.Enum):
                choices[name].add(tuple(str(member.value) for member in kind))
    assert {name: found for name, found in choices.items() if len(found) > 1} == {}
    assert choices["dtype"] == {("float32", "bfloat16", "float16")}


def test_results_go_where_output_says_in_every_command() -> None:
    found = {where: option.opts for where, option in each_option() if "--output" in option.opts}
    assert all("-o" in spellings for spellings in found.values())
    commands = {"encode", "decode", "reconstruct", "generate", "encode-dataset", "pull"}
    assert commands | {f"evaluate {part}" for part in EVALUATIONS} <= found.keys()


def test_options_that_need_a_partner_name_it() -> None:
    partners = {
        ("generate", "--given"): "--context",
        ("generate", "--guidance"): "--class",
        ("generate", "--guidance-low"): "--guidance",
        ("generate", "--guidance-high"): "--guidance",
        ("generate", "--frames"): "Clips only",
        ("generate", "--context"): "Clips only",
        ("generate", "--fps"): "Clips only",
        ("encode", "--fps"): "Videos only",
        ("reconstruct", "--fps"): "Videos only",
        ("reconstruct", "--audio"): "Videos only",
        ("evaluate generation", "--guidance-low"): "--guidance",
        ("evaluate generation", "--guidance-high"): "--guidance",
        ("evaluate reconstruction", "--clip-stride"): "--clip-frames",
        ("evaluate reconstruction", "--clip-fps"): "--clip-frames",
        ("evaluate reconstruction", "--without-cuts"): "--clip-frames",
    }
    helps = {(where, name): option.help for where, option in each_option() for name in option.opts}
    assert {key: helps[key] for key, partner in partners.items() if partner not in helps[key]} == {}


def test_every_command_reports_errors_in_one_line() -> None:
    assert len(callbacks()) == len([words for words in LEAVES if words[0] != "train"]) > 10
    assert [name for name, callback in callbacks().items() if not hasattr(callback, "__wrapped__")] == []


def test_another_spelling_of_an_option_is_answered_with_the_right_one() -> None:
    result = CliRunner().invoke(app, ["generate", "--batch_size", "4", "-o", "out"])
    assert result.exit_code == 2
    assert "--batch-size" in result.stderr


# ---------------------------------------------------------------- committed texts


@pytest.fixture(scope="module")
def rendered() -> tuple[dict[str, str], list[str]]:
    return golden_help.render()


def test_help_is_quick_as_it_imports_no_torch(rendered: tuple[dict[str, str], list[str]]) -> None:
    assert {"torch", "diffusers", "transformers", "av"} & set(rendered[1]) == set()


@pytest.mark.skipif(
    not golden_help.has_tested_versions(), reason="other versions of typer or rich lay out help otherwise"
)
def test_help_texts_are_the_committed_ones(rendered: tuple[dict[str, str], list[str]]) -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in golden_help.FOLDER.glob("*.txt")}
    assert rendered[0] == committed, "where the change is meant, run `python tests/golden_help.py` and commit the texts"


def test_committed_help_texts_have_neither_colours_nor_paths_of_this_machine() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in golden_help.FOLDER.glob("*.txt"))
    assert "\x1b" not in texts and str(golden_help.ROOT) not in texts
    assert max(map(len, texts.splitlines())) <= int(golden_help.COLUMNS)
