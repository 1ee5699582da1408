"""The command `evaluate`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.evaluation.conftest import make_pipeline, moved, squares
from ul_tokenizer.cli import app
from ul_tokenizer.evaluation.reference import Reference
from ul_tokenizer.evaluation.sweep import read_rows
from ul_tokenizer.models.presets import build_prior

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose autoencoder has its prior beside it."""
    folder = tmp_path_factory.mktemp("model")
    make_pipeline().save_pretrained(folder)
    moved(build_prior("ul-tiny-f8")).save_pretrained(folder / "vae" / "prior")
    return folder


@pytest.fixture
def run(
    model: Path, train: Path, test: Path, cache: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Runs the command with the cache of these tests; the reference has filled it."""
    monkeypatch.setattr("ul_tokenizer.evaluation.reference.CACHE", cache)

    def call(*arguments: object, train: Path = train, model: Path = model) -> Any:
        words = ["evaluate", "--model", model, "--train", train, "--test", test, "--device", "cpu", *arguments]
        return CliRunner().invoke(app, [str(word) for word in words])

    return call


def rows_of(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    rows: list[dict[str, Any]] = report["results"]
    assert (report["skipped"], report["totals"]) == ([], {"results": len(rows), "skipped": 0})
    return rows


def error_of(result: Any, status: int = 1) -> str:
    """The one line on standard error."""
    assert result.exit_code == status, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return str(result.stderr)


def test_all_combinations_are_measured_and_a_second_run_measures_nothing(run: Any, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    sweep = ("-n", 6, "--solver", "ddim,ddpm", "--steps", "1,2", "--guidance", "1,1.5", "-o", output, "--json")
    rows = rows_of(run(*sweep))
    told = [(row["solver"], row["num_inference_steps"], row["guidance_scale"]) for row in rows]
    assert told == [(s, n, g) for s in ("ddim", "ddpm") for n in (1, 2) for g in (1.0, 1.5)]
    assert read_rows(output) == rows
    before = output.stat().st_mtime_ns
    assert rows_of(run(*sweep)) == rows
    assert output.stat().st_mtime_ns == before
    assert len(rows_of(run(*sweep, "--seed", 1))) == 8
    assert len(read_rows(output)) == 16


def test_rows_of_other_weights_are_no_results(run: Any, model: Path, tmp_path: Path) -> None:
    output, other = tmp_path / "rows.jsonl", tmp_path / "other"
    changed = make_pipeline()
    changed.transformer.conv_out.weight.data.add_(0.1)
    changed.save_pretrained(other)
    for folder in (model, other):
        rows_of(run("-n", 4, "--steps", 1, "-o", output, "--json", model=folder))
    first, second = read_rows(output)
    assert first["frechet_distance"] != second["frechet_distance"]


def test_the_prior_draws_without_classes(run: Any) -> None:
    (row,) = rows_of(run("--prior", "-n", 4, "--steps", 1, "--json"))
    assert (row["generator"], row["accuracy"]) == ("prior", None)
    (base,) = rows_of(run("-n", 4, "--steps", 1, "--unconditional", "--json"))
    assert (base["generator"], base["accuracy"]) == ("base", None)
    assert base["frechet_distance"] != row["frechet_distance"]


def test_reconstructions_are_measured_with_or_without_drawn_images(run: Any, tmp_path: Path) -> None:
    (row,) = rows_of(run("--reconstruction", "-n", 0, "--json"))
    assert row["measured"] == "reconstruction"
    assert row["num_images"] == 60
    assert row["bits_per_pixel"] > 0
    both = rows_of(run("--reconstruction", "-n", 4, "--steps", 1, "--json"))
    assert [one["measured"] for one in both] == ["reconstruction", "generation"]


def test_tables_name_sampler_steps_and_what_the_distance_is(run: Any) -> None:
    result = run("-n", 4, "--steps", "1", "--solver", "dpmsolver++", "--decode", "z0,clean", "--reconstruction")
    assert result.exit_code == 0, result.output
    for words in ("dpmsolver++", "clean", "PSNR", "bits/pixel", "FD (classifier features), 4 images against 60"):
        assert words in result.stdout
    assert "not an FID" in result.stdout
    assert "for all 120" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "4,x"], "--steps must be whole numbers with commas between them, got '4,x'"),
        (["--guidance", ""], "--guidance must be numbers with commas between them, got ''"),
        (
            ["--solver", "ddim,euler"],
            "--solver must be of ddim, dpmsolver++, ddpm, with commas between several, got 'euler'",
        ),
        (["-n", "0"], "--num 0 needs --reconstruction"),
        (["--guidance-low", "2"], "--guidance-low and --guidance-high need --guidance"),
        (["--guidance", "2", "--unconditional"], "--guidance can't be used with --unconditional"),
        (["--device", "toaster"], "--device must be a device of this machine"),
    ],
)
def test_options_that_do_not_fit_together_are_wrong_usage(run: Any, arguments: list[str], sentence: str) -> None:
    assert sentence in error_of(run(*arguments), status=2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--decode", "z1"], "decode must be one of z0"),
        (["-n", "1"], "num_images must be at least 2, got 1"),
        (["--guidance", "2", "--guidance-low", "2", "--guidance-high", "1"], "guidance_interval"),
    ],
)
def test_bad_options_are_one_sentence(run: Any, arguments: list[str], sentence: str) -> None:
    assert sentence in error_of(run(*arguments))


def test_a_dtype_is_one_of_the_choices(run: Any) -> None:
    assert run("--dtype", "int8").exit_code == 2


def test_the_solver_is_that_of_generate_unless_another_is_asked_for(run: Any) -> None:
    (row,) = rows_of(run("-n", 4, "--steps", 1, "--json"))
    assert row["solver"] == "dpmsolver++"


def test_bad_folders_are_one_sentence(run: Any, tmp_path: Path) -> None:
    folder = squares(tmp_path / "one", 2, seed=0, classes={"red": (200, 40, 40)})
    assert "at least two classes" in error_of(run(train=folder))
    folder = squares(tmp_path / "two", 2, seed=0, classes={"a": (9, 9, 9), "b": (99, 9, 9)})
    assert "classes of train" in error_of(run(train=folder))
    assert run(train=tmp_path / "nowhere").exit_code == 2


def test_another_file_is_refused_before_any_work(run: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("buy milk\n")
    assert "JSON lines" in error_of(run("-o", tmp_path / "notes.txt", model=tmp_path / "nowhere"))
    assert (tmp_path / "notes.txt").read_text() == "buy milk\n"


def test_importing_the_command_imports_no_torch() -> None:
    code = "import sys, ul_tokenizer.cli.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
