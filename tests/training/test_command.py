"""The doors to training: `ul-tokenizer train`, `python -m ul_tokenizer.train` and the example scripts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ul_tokenizer.cli import app
from ul_tokenizer.cli import train as train_commands
from ul_tokenizer.training.stage1_arguments import Stage1Arguments

ROOT = Path(__file__).parents[2]
HELP_WITHOUT_TORCH = """
import runpy, sys
sys.argv = ["train", "autoencoder", "--help"]
try:
    runpy.run_module("ul_tokenizer.train", run_name="__main__")
except SystemExit as exit:
    assert exit.code == 0, exit.code
assert not {"torch", "diffusers", "accelerate"} & set(sys.modules)
"""


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["train", *map(str, words)])
    return result.exit_code, result.output


def python(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_help_of_training_is_shown_without_importing_torch() -> None:
    shown = " ".join(python("-c", HELP_WITHOUT_TORCH).split())
    assert "usage: python -m ul_tokenizer.train autoencoder" in shown
    assert "--train_data_dir PATH Train on a folder of images" in shown


@pytest.mark.parametrize(("name", "flag"), [("autoencoder", "--loss_factor"), ("base_model", "--sigmoid_bias")])
def test_the_example_scripts_are_the_same_commands(name: str, flag: str) -> None:
    shown = python(f"examples/train_{name}.py", "--help")
    assert f"usage: train_{name}.py" in shown and flag in shown


def test_the_recipes_are_listed() -> None:
    status, shown = run("--list-recipes")
    assert status == 0 and "ul-photo-f8 " in shown and "ul-fashion-base " in shown


@pytest.mark.parametrize("target", ["autoencoder", "base", "distill"])
def test_all_words_reach_the_trainings_own_parser_unchanged(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str], str]] = []

    def record(*call: Any) -> int:
        seen.append(call)
        return 3

    monkeypatch.setattr(train_commands, "run_command", record)
    words = ["--help", "--decoder_bias", "-1.5", "--no-use_ema", "--base_config", '{"a": [1, "--b"]}', "--a=b c", "-x"]
    assert run(target, *words)[0] == 3
    assert seen == [(target, words, f"root train {target}")] or seen == [
        (target, words, f"ul-tokenizer train {target}")
    ]


def test_illegal_arguments_end_with_status_2_and_one_sentence() -> None:
    status, shown = run("autoencoder", "--train_data_dir", "photos", "--resolution", "big")
    assert status == 2
    assert shown.endswith(" train autoencoder: error: argument --resolution: must be of type int, got 'big'.\n")
    assert run("base", "--base", "{}")[1].endswith(" train base: error: --base is now called --base_config.\n")


def test_a_missing_folder_ends_with_status_1_and_one_sentence(tmp_path: Path) -> None:
    status, shown = run("autoencoder", "--train_data_dir", tmp_path / "nowhere", "--output_dir", tmp_path / "run")
    assert status == 1
    assert shown.startswith("error: --train_data_dir") and shown.count("\n") == 1


def test_the_command_trains(smallest_flags: Callable[..., list[str]], tmp_path: Path) -> None:
    status, shown = run("autoencoder", *smallest_flags(tmp_path / "run"))
    assert status == 0, shown
    assert (tmp_path / "run" / "config.json").is_file()


def test_the_classes_of_arguments_have_a_home_that_imports_no_networks() -> None:
    code = (
        "import sys; from ul_tokenizer.training import DistillArguments, Stage1Arguments; print('torch' in sys.modules)"
    )
    assert python("-c", code) == "False\n"
    from ul_tokenizer import training
    from ul_tokenizer.training import distill, stage1, stage2

    assert training.Stage1Arguments is Stage1Arguments is stage1.Stage1Arguments
    assert training.Stage2Arguments is stage2.Stage2Arguments
    assert training.train_base_model is stage2.train_base_model
    assert (training.DistillArguments, training.distill_decoder) == (distill.DistillArguments, distill.distill_decoder)


@pytest.mark.parametrize(
    ("target", "text", "message"),
    [
        ("autoencoder", "sigmoid_bias: 2.0", "is a config for `train base`: it has the key 'sigmoid_bias'"),
        ("base", "loss_factor: 1.5", "is a config for `train autoencoder`: it has the key 'loss_factor'"),
        (
            "distill",
            "preset: ul-base-tiny\nlabel_dropout: 0.1",
            "is a config for `train base`: it has the key 'preset'",
        ),
        ("autoencoder", "objective: pairs", "is a config for `train distill`: it has the key 'objective'"),
        ("base", "colour: red", "has an unknown key 'colour'"),
    ],
)
def test_a_config_of_another_stage_is_refused_in_a_sentence(
    target: str, text: str, message: str, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"resolution: 64\n{text}\n")
    status, shown = run(target, "--config", config)
    assert status == 2 and shown.endswith(f"error: --config {config} {message}.\n")
