"""Flags and config files: what wins, and what is refused with status 2 and one sentence."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ul_tokenizer.pretrained import ROOT as PRETRAINED
from ul_tokenizer.training import train_autoencoder, train_base_model
from ul_tokenizer.training.arguments import TrainingArguments
from ul_tokenizer.training.command import ARGUMENTS, run_command
from ul_tokenizer.training.engine.accelerator import precision_warning
from ul_tokenizer.training.kinds import kinds_of
from ul_tokenizer.training.parsing import _make_parser, _snake_case, parse_arguments
from ul_tokenizer.training.recipes import RECIPES, describe_recipes, find_config, recipe_names, stage_of
from ul_tokenizer.training.stage1_arguments import Stage1Arguments
from ul_tokenizer.training.stage2_arguments import Stage2Arguments

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


def _flags_of(cls: type[TrainingArguments], *argv: str) -> argparse.Namespace:
    """The flags alone, before they become arguments."""
    words = [_snake_case(word, kinds_of(cls)) for word in argv]
    return _make_parser(cls, kinds_of(cls), "", None).parse_args(words)


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
    assert parse("--train_data_dir", "x", "--prior_config", '{"dropout": 0.5}').prior_config == {"dropout": 0.5}
    assert parse("--config", write(prior_config={"dropout": 0.5})).prior_config == {"dropout": 0.5}


@pytest.mark.parametrize("value", ["0.9,0.99", [0.9, "0.99"], (0.9, 0.99)])
def test_several_numbers_are_a_text_with_commas_or_a_list(write: Write, value: Any) -> None:
    assert Stage1Arguments(train_data_dir="x", ema_decay=value).ema_decay == (0.9, 0.99)
    assert parse("--train_data_dir", "x", "--ema_decay", "0.9,0.99").ema_decay == (0.9, 0.99)
    args = parse("--config", write(ema_decay=list(value) if isinstance(value, tuple) else value))
    assert args.ema_decay == (0.9, 0.99)
    assert yaml.safe_load(args.to_yaml())["ema_decay"] == [0.9, 0.99]


def test_one_of_several_numbers_may_stand_alone(write: Write) -> None:
    assert parse("--config", write(ema_decay=0.5)).ema_decay == (0.5,)
    assert Stage1Arguments(train_data_dir="x", ema_decay=0.5).ema_decay == (0.5,)  # type: ignore[arg-type]


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


@pytest.mark.parametrize(
    ("cls", "name"), [(cls, field.name) for cls in (Stage1Arguments, Stage2Arguments) for field in fields(cls)]
)
def test_every_flag_may_be_written_in_kebab_case(cls: type[TrainingArguments], name: str) -> None:
    values: dict[Any, list[str]] = {bool: [], dict: ["{}"], int: ["2"], float: ["0.5"], str: ["x"], tuple: ["0.5"]}
    value, choices = values[kinds_of(cls)[name].type], kinds_of(cls)[name].choices
    spellings = (name, name.replace("_", "-"))
    results = [vars(_flags_of(cls, f"--{spelling}", *(choices[:1] if choices else value))) for spelling in spellings]
    assert results[0] == results[1] and list(results[0]) == [name]


@pytest.mark.parametrize("flag", ["--no-use_ema", "--no-use-ema", "--no_use_ema"])
def test_a_boolean_flag_is_turned_off_in_any_spelling(flag: str) -> None:
    assert parse("--train-data-dir=a-b/c_d", flag).use_ema is False
    assert parse("--train-data-dir=a-b/c_d", flag).train_data_dir == "a-b/c_d"


# ---------------------------------------------------------------- from Python


def test_arguments_are_made_by_keywords_and_take_paths(tmp_path: Path) -> None:
    args = Stage1Arguments(train_data_dir=tmp_path, learning_rate=1, prior_config={"dropout": 0.5})  # type: ignore[arg-type]
    assert (args.train_data_dir, args.learning_rate) == (str(tmp_path), 1.0)
    assert yaml.safe_load(args.to_yaml())["train_data_dir"] == str(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixed_precision": "fp8"}, "--mixed_precision must be one of no, bf16, fp16, got 'fp8'."),
        ({"resolution": "64"}, "--resolution must be of type int, got '64'."),
        ({"use_ema": None}, "--use_ema must be of type bool, got None."),
        ({"prior_config": ["dropout"]}, "--prior_config must be of type dict, got ['dropout']."),
    ],
)
def test_values_of_a_wrong_type_are_refused_from_python_as_well(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Stage1Arguments(train_data_dir="photos", **changes)


def test_both_stages_train_from_python_in_one_process(images: Path, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"train_data_dir": images, "resolution": 16, "max_train_steps": 1}
    shared |= {"train_batch_size": 2, "num_validation_images": 2, "validation_inference_steps": 1}
    assert train_autoencoder(Stage1Arguments(**shared, preset="ul-tiny-f8", output_dir=str(tmp_path / "vae")))
    stage2 = {**shared, "preset": "ul-base-tiny", "pretrained_autoencoder": tmp_path / "vae"}
    assert train_base_model(Stage2Arguments(**stage2, output_dir=str(tmp_path / "base")))
    assert (tmp_path / "base" / "model_index.json").is_file()


def test_errors_are_raised_from_python_and_keep_their_cause(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--resolution must be a multiple of 8"):
        train_autoencoder(Stage1Arguments(train_data_dir=str(images), resolution=20, output_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="--learning_rate must be of type float, got 'fast'") as caught:
        Stage1Arguments(train_data_dir="photos", learning_rate="fast")  # type: ignore[arg-type]
    assert isinstance(caught.value.__cause__, ValueError)


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
        (["--prior_config", "[1]"], ["--prior_config", "JSON object"]),
        (["--prior_config", "{dropout: 1}"], ["--prior_config", "JSON object"]),
        (["--prior_config", "null"], ["--prior_config", "JSON object"]),
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
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "ul-fashion, "]),
        (["--config", "ul-foto"], ["--config", "ul-foto", "ul-photo-f8, "]),
        (["--prior", '{"dropout": 0.5}'], ["--prior is now called --prior_config"]),
        (["--autoencoder={}"], ["--autoencoder is now called --autoencoder_config"]),
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
        ("prior_config: [1, 2]", ["prior_config", "dict"]),
        ("ema_decay: 0.9,x", ["ema_decay", "numbers separated by commas", "'0.9,x'"]),
        ("ema_decay: [0.9, 1.5]", ["--ema_decay", "from 0 to 1", "1.5"]),
        ("ema_decay: [0.9, 0.9]", ["--ema_decay", "different", "0.9,0.9"]),
        ("ema_decay: []", ["--ema_decay", "--no-use_ema"]),
        ("ema_std: 0.5", ["--ema_std", "0.28", "0.5"]),
        ("lr_rsqrt_steps: 5", ["--lr_rsqrt_steps", "--lr_scheduler rsqrt", "cosine"]),
        ("lr_decay_steps: 5", ["--lr_decay_steps", "--lr_scheduler warmup_stable_decay", "cosine"]),
        ("prior_max_hold_steps: 5", ["--prior_max_hold_steps", "--prior_min_hold_steps, 500", "5"]),
        ("lr_scheduler: cosinus", ["lr_scheduler", "constant_with_warmup", "'cosinus'"]),
        ("train_batch_size: 0", ["--train_batch_size", "above 0"]),
        ("max_train_steps: 5\nnum_train_epochs: 5", ["--max_train_steps", "--num_train_epochs", "exclude"]),
        ("- a\n- b", ["mapping", "list"]),
        ("a: [", ["not valid YAML"]),
        ("config: other.yaml", ["unknown key", "config"]),
        ("prior: {dropout: 0.5}", ["config.yaml", "'prior' is now called 'prior_config'"]),
        ("autoencoder: {}", ["config.yaml", "'autoencoder' is now called 'autoencoder_config'"]),
    ],
)
def test_a_wrong_key_is_one_sentence_that_names_it(
    capsys: pytest.CaptureFixture[str], write: Write, text: str, words: list[str]
) -> None:
    error = refusal(capsys, "--config", write(text), "--train_data_dir", "photos")
    assert [word for word in words if word not in error] == []


# ---------------------------------------------------------------- what is printed


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_legal(name: str) -> None:
    kind = ARGUMENTS[stage_of(yaml.safe_load(find_config(name).read_text()))]
    args = parse_arguments(kind, ["--config", name, "--train_data_dir", "photos"])
    assert args.output_dir.startswith("runs/")


def test_the_recipes_of_all_bundled_models_are_listed_with_what_they_train() -> None:
    lines = {line.split()[0]: line.split()[1] for line in describe_recipes().splitlines()}
    assert {"ul-fashion", "ul-photo-f8", "ul-video"} <= set(lines) == set(recipe_names())
    stages = (lines["ul-fashion"], lines["ul-fashion-base"], lines["ul-photo-f8-distilled"])
    assert stages == ("autoencoder", "base", "distill")


def test_a_file_wins_over_the_recipe_of_its_name_and_a_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ul-video").mkdir()  # a run's folder, for instance
    (tmp_path / "ul-photo-f8").write_text("train_data_dir: mine\n")
    assert find_config("ul-video") == RECIPES / "ul-video.yaml"
    assert parse("--config", "ul-photo-f8").train_data_dir == "mine"


def test_the_records_of_bundled_models_have_the_keys_of_a_config() -> None:
    records = {path: yaml.safe_load(path.read_text()) for path in PRETRAINED.glob("*/training-phase-*.yaml")}
    assert len(records) == 7
    for path, record in records.items():
        kinds = kinds_of(Stage2Arguments if "sigmoid_bias" in record else Stage1Arguments)
        assert [key for key in record if key not in kinds] == [], path


def test_the_help_names_every_argument_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        parse("--help")
    assert exit.value.code == 0
    help = " ".join(capsys.readouterr().out.split())
    assert "Side of the square crops, in pixels. (default: 64)" in help
    assert "(default: {})" in help and "MISSING" not in help and "==SUPPRESS==" not in help
    assert all(re.search(rf"--{field.name}[ ,]", help) for field in fields(Stage1Arguments))


@pytest.mark.parametrize("cls", ARGUMENTS.values())
def test_groups_of_the_help_start_at_arguments_that_exist(cls: type[TrainingArguments]) -> None:
    assert cls.GROUPS.keys() <= {field.name for field in fields(cls)}


def test_a_dry_run_prints_a_config_that_gives_the_same_run_and_writes_nothing(
    train: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {"prior_config": {"dropout": 0.5}, "learning_rate": 1e-5, "checkpoints_total_limit": "null"}
    assert train(tmp_path / "run", **changes, dry_run=True) == 0
    assert not (tmp_path / "run").exists()
    printed = capfd.readouterr().out
    assert "# decoder: " in printed and "# held-out images: 2" in printed
    config = tmp_path / "config.yaml"
    config.write_text(printed)
    args = parse("--config", str(config))
    assert (args.dry_run, args.prior_config, args.learning_rate) == (False, {"dropout": 0.5}, 1e-5)
    assert args.checkpoints_total_limit is None
    assert run_command("autoencoder", ["--config", str(config), "--dry_run"]) == 0
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
