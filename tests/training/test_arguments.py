"""Flags and config files: what wins, and what is refused with status 2 and one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ul_tokenizer.training.loop import precision_warning
from ul_tokenizer.training.parsing import parse_arguments
from ul_tokenizer.training.stage1 import Stage1Arguments, train_autoencoder
from ul_tokenizer.training.stage2 import Stage2Arguments

CONFIGS = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("*.yaml"))
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(text: str = "", **values: Any) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text or yaml.safe_dump({"train_data_dir": "photos", **values}))
        return str(path)

    return make


def parse(*argv: str) -> Stage1Arguments:
    return parse_arguments(Stage1Arguments, argv)


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one sentence; argparse's page of usage is not printed."""
    with pytest.raises(SystemExit) as exit:
        parse(*argv)
    assert exit.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.endswith(".\n")
    return printed.err


# ---------------------------------------------------------------- what wins


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(write: Write) -> None:
    config = write(seed=1, resolution=32)
    args = parse("--config", config, "--resolution", "48")
    assert (args.seed, args.resolution, args.logging_steps) == (1, 48, 20)


def test_a_flag_that_repeats_the_default_still_wins_over_the_file(write: Write) -> None:
    assert parse("--config", write(random_flip=False), "--random_flip").random_flip is True


def test_a_flag_wins_over_what_it_excludes_in_the_file(write: Write) -> None:
    args = parse("--config", write(max_train_steps=5), "--num_train_epochs", "3")
    assert (args.max_train_steps, args.num_train_epochs) == (None, 3)


def test_the_prior_is_warmed_up_with_fresh_networks_only_unless_told(write: Write) -> None:
    assert parse("--config", write()).prior_warmup is True
    assert parse("--config", write(), "--pretrained_model_name_or_path", "x").prior_warmup is False
    assert parse("--config", write(), "--pretrained_model_name_or_path", "x", "--prior_warmup").prior_warmup is True


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1.0e-3", 1e-3), ("1", 1.0), ("'2'", 2.0)])
def test_a_float_may_be_written_as_yaml_does_not_know_it(write: Write, text: str, value: float) -> None:
    args = parse("--config", write(f"train_data_dir: photos\nlearning_rate: {text}\n"))
    assert args.learning_rate == value and isinstance(args.learning_rate, float)


def test_a_json_object_is_a_flag_and_a_mapping_is_a_key(write: Write) -> None:
    assert parse("--train_data_dir", "x", "--prior", '{"dropout": 0.5}').prior == {"dropout": 0.5}
    assert parse("--config", write(prior={"dropout": 0.5})).prior == {"dropout": 0.5}


def test_null_turns_an_optional_argument_off(write: Write) -> None:
    assert parse("--train_data_dir", "x", "--decoder_boost_below", "null").decoder_boost_below is None
    assert parse("--config", write(checkpoints_total_limit=None)).checkpoints_total_limit is None


def test_steps_are_the_default_and_epochs_replace_them() -> None:
    assert parse("--train_data_dir", "x").max_train_steps == Stage1Arguments.DEFAULT_STEPS
    assert parse("--train_data_dir", "x", "--num_train_epochs", "2").max_train_steps is None


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    args = parse("--config", write(output_dir="~/runs"), "--train_data_dir=~/photos")
    assert (args.output_dir, args.train_data_dir) == ("/home/me/runs", "/home/me/photos")


def test_a_run_writes_to_the_home_folder_when_told_so(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert train(Path("~/run")) == 0
    assert (tmp_path / "run" / "config.json").exists() and not (tmp_path / "~").exists()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--no_such_flag", "1"], ["--no_such_flag"]),
        (["--resol", "32"], ["--resol"]),
        (["--resolution", "big"], ["--resolution", "int", "'big'"]),
        (["--resolution", "1.5"], ["--resolution", "int"]),
        (["--learning_rate", "fast"], ["--learning_rate", "float"]),
        (["--learning_rate", "nan"], ["--learning_rate", "finite"]),
        (["--learning_rate", "null"], ["--learning_rate", "float"]),
        (["--mixed_precision", "fp8"], ["--mixed_precision", "bf16", "'fp8'"]),
        (["--train_only", "everything"], ["--train_only", "encoder, decoder, prior"]),
        (["--preset", "ul-huge"], ["--preset", "ul-tiny-f8", "ul-huge"]),
        (["--prior", "[1]"], ["--prior", "JSON object"]),
        (["--prior", "{dropout: 1}"], ["--prior", "JSON object"]),
        (["--prior", "null"], ["--prior", "JSON object"]),
        (["--seed", "-1"], ["--seed", "at least 0", "-1"]),
        (["--train_batch_size", "0"], ["--train_batch_size", "above 0"]),
        (["--num_validation_images", "1"], ["--num_validation_images", "at least 2"]),
        (["--checkpoints_total_limit", "0"], ["--checkpoints_total_limit", "above 0"]),
        (["--max_train_steps", "0"], ["--max_train_steps", "above 0"]),
        (["--prior_hold_weight", "2"], ["--prior_hold_weight", "from 0 to 1"]),
        (["--dataset_name", "me/photos"], ["--train_data_dir", "--dataset_name", "exclude"]),
        (["--dataset_config_name", "large"], ["--dataset_config_name", "--dataset_name"]),
        (["--max_train_steps", "5", "--num_train_epochs", "5"], ["--max_train_steps", "--num_train_epochs", "exclude"]),
        (["--revision", "main"], ["--revision", "--pretrained_model_name_or_path"]),
        (["--validation_data_dir", "photos/held-out"], ["--validation_data_dir", "within"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
)
def test_a_wrong_flag_is_one_sentence_that_names_it(
    capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]
) -> None:
    error = refusal(capsys, "--train_data_dir", "photos", *argv)
    assert [word for word in words if word not in error] == []


def test_data_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--train_data_dir" in refusal(capsys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resolutoin: 32", ["unknown key", "resolutoin"]),
        ("resolution: big", ["resolution", "int", "'big'"]),
        ("resolution: 32.5", ["resolution", "int"]),
        ("seed: true", ["seed", "int", "True"]),
        ("random_flip: 1", ["random_flip", "bool"]),
        ("learning_rate: null", ["learning_rate", "float", "None"]),
        ("learning_rate: true", ["learning_rate", "float"]),
        ("learning_rate: fast", ["learning_rate", "float", "'fast'"]),
        ("output_dir: 7", ["output_dir", "str", "7"]),
        ("prior: [1, 2]", ["prior", "dict"]),
        ("lr_scheduler: cosinus", ["lr_scheduler", "constant_with_warmup", "'cosinus'"]),
        ("train_batch_size: 0", ["--train_batch_size", "above 0"]),
        ("max_train_steps: 5\nnum_train_epochs: 5", ["--max_train_steps", "--num_train_epochs", "exclude"]),
        ("- a\n- b", ["mapping", "list"]),
        ("a: [", ["not valid YAML"]),
        ("config: other.yaml", ["unknown key", "config"]),
    ],
)
def test_a_wrong_key_is_one_sentence_that_names_it(
    capsys: pytest.CaptureFixture[str], write: Write, text: str, words: list[str]
) -> None:
    error = refusal(capsys, "--config", write(text), "--train_data_dir", "photos")
    assert [word for word in words if word not in error] == []


# ---------------------------------------------------------------- what is printed


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_example_config_is_legal(path: Path) -> None:
    kind = Stage2Arguments if "pretrained_autoencoder" in path.read_text() else Stage1Arguments
    assert parse_arguments(kind, ["--config", str(path)]).train_data_dir


def test_there_are_example_configs() -> None:
    assert CONFIGS


def test_the_help_names_every_argument_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        parse("--help")
    assert exit.value.code == 0
    help = " ".join(capsys.readouterr().out.split())
    assert "Side of the square crops, in pixels. (default: 64)" in help
    assert "(default: {})" in help and "MISSING" not in help and "==SUPPRESS==" not in help
    for name in Stage1Arguments.__dataclass_fields__:
        if name not in ("EXCLUSIVE", "PATHS", "DEFAULT_STEPS"):
            assert f"--{name} " in help


def test_a_dry_run_prints_a_config_that_gives_the_same_run_and_writes_nothing(
    train: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {"prior": {"dropout": 0.5}, "learning_rate": 1e-5, "checkpoints_total_limit": "null", "dry_run": True}
    assert train(tmp_path / "run", **changes) == 0
    assert not (tmp_path / "run").exists()
    printed = capfd.readouterr().out
    assert "# decoder: " in printed and "# held-out images: 2" in printed
    config = tmp_path / "config.yaml"
    config.write_text(printed)
    args = parse("--config", str(config))
    assert (args.dry_run, args.prior, args.learning_rate) == (False, {"dropout": 0.5}, 1e-5)
    assert args.checkpoints_total_limit is None
    assert train_autoencoder(["--config", str(config), "--dry_run"]) == 0
    assert capfd.readouterr().out == printed


def test_the_config_of_a_run_lies_beside_it(train: Callable[..., int], tmp_path: Path) -> None:
    assert train(tmp_path, seed=3) == 0
    assert parse("--config", str(tmp_path / "config.yaml")).seed == 3


def test_a_precision_that_the_cpu_emulates_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for is_native in (False, True):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda is_native=is_native: is_native)
        warning = precision_warning("bf16", cpu)
        assert (warning is None) == is_native
        assert precision_warning("no", cpu) is None and precision_warning("bf16", torch.device("cuda")) is None
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert "--mixed_precision no" in str(precision_warning("bf16", cpu))
