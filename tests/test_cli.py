"""The command line: what it writes, what it prints, what it refuses, and its exit status."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ul_tokenizer import UnifiedLatentsAutoencoder, __version__
from ul_tokenizer.cli import app
from ul_tokenizer.cli.reporting import UsageError, print_results, reported
from ul_tokenizer.files import sha256_of, whole_file
from ul_tokenizer.media.pixels import frame_to_float
from ul_tokenizer.models.latent_distribution import LatentDistribution
from ul_tokenizer.models.presets import build_autoencoder, build_prior

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    build_autoencoder("ul-tiny-f8").save_pretrained(folder)
    build_prior("ul-tiny-f8").save_pretrained(folder / "prior")
    return str(folder)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def photo(path: str | Path, width: int = 64, height: int = 48, seed: int = 0) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return Path(path)


def ul(*arguments: object, model: str | None = None, status: int = 0) -> Any:
    """Runs a command in this process; fails on another exit status than the expected one."""
    words = [str(argument) for argument in arguments] + (["--model", model] if model else [])
    result = CliRunner().invoke(app, words)
    assert result.exit_code == status, result.output
    return result


def files_below(folder: str | Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def metadata_of(path: str | Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ul_tokenizer", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, **options)


# ---------------------------------------------------------------- help


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, ul_tokenizer.cli; sys.exit(any(name in sys.modules for name in ('torch', 'diffusers', 'av')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_what_needs_no_model_is_refused_before_torch_is_imported() -> None:
    photo("photo.png")
    Path("photo.png.safetensors").touch()
    code = """
import sys
from typer.testing import CliRunner
from ul_tokenizer.cli import app
for words in (["photo.png", "-o", "."], ["photo.png", "-o", "out", "--fps", "5"]):
    print(CliRunner().invoke(app, ["encode", *words]).stderr, end="")
print("torch" in sys.modules)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == (
        "error: photo.png.safetensors exists already; --force overwrites.\n"
        "error: --fps is for videos, and photo.png holds none.\n"
        "False\n"
    )


def test_the_version_is_printed() -> None:
    assert __version__ in ul("--version").stdout


# ---------------------------------------------------------------- encode


def test_encode_writes_the_latent_that_the_model_makes(model: str) -> None:
    photo("photo.png")
    ul("encode", "photo.png", "-o", "out", model=model)
    latent = load_file("out/photo.png.safetensors")["latent"]
    with torch.inference_mode():
        x = frame_to_float(Image.open("photo.png"))[None]
        expected = UnifiedLatentsAutoencoder.from_pretrained(model).encode(x).latent[0]
    assert latent.shape == (4, 6, 8)
    assert torch.equal(latent, expected)


def test_a_latent_file_says_how_it_was_made(model: str) -> None:
    photo("photo.png", 60, 44)
    ul("encode", "photo.png", "-o", "a.safetensors", model=model)
    assert metadata_of("a.safetensors") == {
        "format": "ul_tokenizer.latent.1",
        "library_version": __version__,
        "model": model,
        "revision": "",
        "weights_sha256": sha256_of(Path(model, "diffusion_pytorch_model.safetensors")),
        "latent_logsnr": "5.0",
        "original_width": "60",
        "original_height": "44",
        "width": "60",
        "height": "44",
        "fit": "pad",
    }


def test_a_folder_is_mirrored_and_names_that_differ_in_their_suffix_stay_apart(model: str) -> None:
    for name in ("in/a.png", "in/a.bmp", "in/deep/er/b.png"):
        photo(name)
    result = ul("encode", "in", "-o", "out", model=model)
    assert files_below("out") == ["a.bmp.safetensors", "a.png.safetensors", "deep/er/b.png.safetensors"]
    assert "encoded 3 of 3 files into out" in result.stderr


def test_bad_files_in_a_folder_are_named_counted_and_skipped(model: str) -> None:
    photo("in/good.png")
    Path("in/cut.png").write_bytes(Path("in/good.png").read_bytes()[:2000])
    Path("in/empty.jpg").touch()
    Path("in/notes.txt").write_text("notes")
    result = ul("encode", "in", "-o", "out", model=model)
    assert files_below("out") == ["good.png.safetensors"]
    for name in ("cut.png", "empty.jpg", "notes.txt"):
        assert result.stderr.count(f"skipped in/{name}: ") == 1
    assert "encoded 1 of 4 files into out, 3 skipped" in result.stderr


def test_a_folder_of_bad_files_only_is_a_failure(model: str) -> None:
    Path("in").mkdir()
    Path("in/empty.jpg").touch()
    assert "error: none of 1 files could be encoded." in ul("encode", "in", "-o", "out", model=model, status=1).stderr
    assert not Path("out").exists()


def test_a_folder_without_images_is_a_failure(model: str) -> None:
    Path("in").mkdir()
    Path("in/notes.txt").write_text("notes")
    assert "error: IN must hold at least one file" in ul("encode", "in", "-o", "out", model=model, status=1).stderr


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_single_bad_file_is_one_error(model: str, content: bytes) -> None:
    Path("photo.jpg").write_bytes(content)
    result = ul("encode", "photo.jpg", "-o", "out", model=model, status=1)
    assert result.stderr.startswith("error: Image photo.jpg can't be read: ")
    assert result.stderr.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize(("flag", "grid"), [(None, (4, 7, 9)), ("--pad", (4, 7, 9)), ("--crop", (4, 6, 8))])
def test_odd_sizes_are_padded_unless_cropping_is_asked_for(model: str, flag: str | None, grid: tuple[int, ...]) -> None:
    photo("photo.png", 65, 49)
    ul("encode", "photo.png", "-o", "a.safetensors", *([flag] if flag else []), model=model)
    assert load_file("a.safetensors")["latent"].shape == grid
    assert metadata_of("a.safetensors")["fit"] == ("crop" if flag == "--crop" else "pad")


def test_an_image_that_is_too_small_to_be_cropped_is_one_error(model: str) -> None:
    photo("photo.png", 7, 49)
    said = ul("encode", "photo.png", "-o", "out", "--crop", model=model, status=1).stderr
    assert said == "error: image must be at least 8 pixels wide and high to be cropped, got 7×49 (width×height).\n"


@pytest.mark.parametrize(
    ("source", "output", "wanted"),
    [
        ("photo.png", "out.png", "a folder or a .safetensors file"),
        ("photo.png", "out.mp4", "a folder or a .safetensors file"),
        ("in", "out.safetensors", "a folder, as IN is one"),
    ],
)
def test_a_files_name_is_no_output_folder(model: str, source: str, output: str, wanted: str) -> None:
    photo("photo.png")
    photo("in/photo.png")
    said = ul("encode", source, "-o", output, model=model, status=1).stderr
    assert said == f"error: --output must be {wanted}, got {output}.\n"


def test_results_below_the_input_folder_are_no_inputs(model: str) -> None:
    photo("in/a.png")
    ul("reconstruct", "in", "-o", "in/out", model=model)
    ul("reconstruct", "in", "-o", "in/out", "--force", model=model)
    assert files_below("in") == ["a.png", "out/a.png.png"]


def test_a_single_file_needs_no_images_suffix(model: str) -> None:
    photo("photo.png").rename("photo.upload")
    ul("encode", "photo.upload", "-o", "out", model=model)
    assert files_below("out") == ["photo.upload.safetensors"]


def test_tiles_bound_the_memory_and_change_the_latent_little(model: str) -> None:
    photo("photo.png", 256, 64)
    ul("encode", "photo.png", "-o", "whole.safetensors", "--tile", 0, model=model)
    ul("encode", "photo.png", "-o", "tiled.safetensors", "--tile", 64, model=model)
    whole, tiled = (load_file(f"{name}.safetensors")["latent"] for name in ("whole", "tiled"))
    assert 0 < (whole - tiled).abs().max() < 0.5 * whole.abs().max()


def test_large_images_are_tiled_by_themselves(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles: list[int] = []
    enable = UnifiedLatentsAutoencoder.enable_tiling

    def noted(self: UnifiedLatentsAutoencoder, height: int, width: int) -> None:
        tiles.append(height)
        enable(self, height, width)

    monkeypatch.setattr(UnifiedLatentsAutoencoder, "enable_tiling", noted)
    photo("in/1024.png", 1024, 8)
    ul("encode", "in", "-o", "out", model=model)
    assert tiles == []
    photo("in/1032.png", 1032, 8)
    ul("encode", "in", "-o", "out", "--force", model=model)
    assert tiles == [512]


def test_half_precision_works(model: str) -> None:
    photo("photo.png")
    ul("encode", "photo.png", "-o", "half.safetensors", "--dtype", "bfloat16", model=model)
    ul("encode", "photo.png", "-o", "full.safetensors", model=model)
    half, full = (load_file(f"{name}.safetensors")["latent"] for name in ("half", "full"))
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.1 * full.abs().max()


# ---------------------------------------------------------------- decode


def test_decode_gives_the_picture_that_the_model_makes_of_the_latent(model: str) -> None:
    photo("photo.png")
    ul("encode", "photo.png", "-o", "a.safetensors", model=model)
    ul("decode", "a.safetensors", "-o", "a.png", "--mode", model=model)
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(model)
    with torch.inference_mode():
        mode = LatentDistribution(load_file("a.safetensors")["latent"][None], 5.0).mode()
        expected = autoencoder.decode(mode, generator=torch.Generator().manual_seed(0)).sample[0].clamp(-1, 1)
    error = (frame_to_float(Image.open("a.png")) - expected).abs().mean()
    assert error < 0.1  # x_1 is another draw, which an untrained network hardly shows


def test_decode_cuts_the_padding_off_again(model: str) -> None:
    photo("in/sub/photo.png", 61, 43)
    ul("encode", "in", "-o", "latents", "--pad", model=model)
    ul("decode", "latents", "-o", "out", model=model)
    assert files_below("out") == ["sub/photo.png.png"]
    assert Image.open("out/sub/photo.png.png").size == (61, 43)


def test_noise_follows_from_seed_and_latent_wherever_the_file_lies(model: str) -> None:
    for n in range(3):
        photo(f"in/{n}.png", seed=n)
    ul("encode", "in", "-o", "latents", model=model)
    ul("decode", "latents", "-o", "all", model=model)
    shutil.copy("latents/2.png.safetensors", "moved.safetensors")
    ul("decode", "moved.safetensors", "-o", "one.png", model=model)
    ul("decode", "moved.safetensors", "-o", "other.png", "--seed", 1, model=model)
    assert Path("one.png").read_bytes() == Path("all/2.png.png").read_bytes()
    assert Path("other.png").read_bytes() != Path("one.png").read_bytes()


def test_latents_of_one_size_get_different_noise() -> None:
    from ul_tokenizer.cli.image_codec import _seed_of

    latents = [torch.zeros(1, 4, 6, 8), torch.ones(1, 4, 6, 8)]
    assert len({_seed_of(latent, seed) for latent in latents for seed in (0, 1)}) == 4
    assert _seed_of(latents[0], 0) == _seed_of(torch.zeros(1, 4, 6, 8), 0)


def test_latent_noise_and_steps_change_the_picture(model: str) -> None:
    photo("photo.png")
    ul("encode", "photo.png", "-o", "a.safetensors", model=model)
    variants: dict[str, list[str]] = {"noisy": [], "mode": ["--mode"], "steps": ["--steps", "3"]}
    for name, flags in variants.items():
        ul("decode", "a.safetensors", "-o", f"{name}.png", *flags, model=model)
    assert len({Path(f"{name}.png").read_bytes() for name in ("noisy", "mode", "steps")}) == 3


def damage(kind: str) -> None:
    """Makes bad/latent.safetensors of good/photo.png.safetensors."""
    good, bad = Path("good/photo.png.safetensors"), Path("bad/latent.safetensors")
    bad.parent.mkdir()
    tensors, metadata = load_file(good), metadata_of(good)
    if kind == "truncated":
        bad.write_bytes(good.read_bytes()[:-10])
        return
    if kind == "empty":
        bad.touch()
        return
    if kind == "foreign":
        metadata = {}
    elif kind == "size":
        metadata["width"] = "1000"
    elif kind == "channels":
        tensors = {"latent": torch.zeros(5, 6, 8)}
    elif kind == "nan":
        tensors = {"latent": torch.full((4, 6, 8), float("nan"))}
    elif kind == "level":
        metadata["latent_logsnr"] = "4.0"
    elif kind == "unnamed":
        tensors = {"z": tensors["latent"]}
    save_file(tensors, bad, metadata)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("truncated", "can't be read"),
        ("empty", "can't be read"),
        ("foreign", "must have the format"),
        ("size", "claims the size 1000×48"),
        ("channels", "doesn't fit"),
        ("level", "doesn't fit"),
        ("nan", "must hold finite floats"),
        ("unnamed", "must hold finite floats"),
    ],
)
def test_a_bad_latent_is_one_error_alone_and_skipped_among_others(model: str, kind: str, expected: str) -> None:
    photo("photo.png")
    ul("encode", "photo.png", "-o", "good", model=model)
    damage(kind)
    result = ul("decode", "bad/latent.safetensors", "-o", "a.png", model=model, status=1)
    assert result.stderr.startswith("error: Latent bad/latent.safetensors ")
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1
    shutil.move("bad/latent.safetensors", "good/bad.safetensors")
    result = ul("decode", "good", "-o", "out", model=model)
    assert "skipped good/bad.safetensors: " in result.stderr
    assert files_below("out") == ["photo.png.png"]


def test_latents_of_other_weights_are_decoded_with_one_warning(model: str) -> None:
    for n in range(2):
        photo(f"in/{n}.png", seed=n)
    ul("encode", "in", "-o", "latents", model=model)
    torch.manual_seed(1)
    build_autoencoder("ul-tiny-f8").save_pretrained("other")
    result = ul("decode", "latents", "-o", "out", model="other")
    assert result.stderr.count("warning: ") == 1
    assert "are decoded by other, which has other weights" in result.stderr


# ---------------------------------------------------------------- reconstruct


def test_reconstruct_shows_original_and_reconstruction_side_by_side(model: str) -> None:
    photo("photo.png", 64, 48)
    result = ul("reconstruct", "photo.png", "-o", "out", model=model)
    picture = Image.open("out/photo.png.png")
    assert picture.size == (2 * (64 + 2), 48 + 2)
    left = picture.crop((0, 0, 64, 48))
    assert left.tobytes() == Image.open("photo.png").convert("RGB").tobytes()
    assert picture.crop((66, 0, 130, 48)).tobytes() != left.tobytes()
    for word in ("photo.png", "64×48", "mean of PSNR", "PSNR of mean MSE", "bits/pixel"):
        assert word in result.stdout


def test_its_figures_are_those_of_the_picture_and_both_means_are_given(model: str) -> None:
    photo("in/a.png", 61, 43)
    Image.new("RGB", (32, 32), "grey").save("in/b.png")
    report = json.loads(ul("reconstruct", "in", "-o", "out", "--json", model=model).stdout)
    psnrs = [row["psnr"] for row in report["results"]]
    mses = []
    for row, psnr in zip(report["results"], psnrs, strict=True):
        picture = np.asarray(Image.open(row["output"]), dtype=float) / 127.5
        left, right = (picture[: row["height"], x : x + row["width"]] for x in (0, row["width"] + 2))
        mses.append(((left - right) ** 2).mean())
        assert 10 * np.log10(4 / mses[-1]) == pytest.approx(psnr, abs=0.02)
    assert [(row["width"], row["height"]) for row in report["results"]] == [(61, 43), (32, 32)]
    totals = report["totals"]["images"]
    assert (totals["model"], totals["files"]) == (model, 2)
    assert totals["mean_psnr"] == pytest.approx(np.mean(psnrs))
    assert totals["psnr_of_mean_mse"] == pytest.approx(10 * np.log10(4 / np.mean(mses)), abs=0.02)
    assert totals["pixels"] == 61 * 43 + 32 * 32
    assert all(row["bits_per_pixel"] > 0 and row["seconds"] > 0 for row in report["results"])
    bits = [row["bits_per_pixel"] * row["width"] * row["height"] for row in report["results"]]
    assert totals["bits_per_pixel"] == pytest.approx(sum(bits) / totals["pixels"])


def test_bits_per_pixel_are_the_models_own(model: str) -> None:
    from ul_tokenizer.models.repository import load_autoencoder, load_prior

    photo("photo.png", 64, 48)
    report = json.loads(ul("reconstruct", "photo.png", "-o", "out", "--json", model=model).stdout)
    x = frame_to_float(Image.open("photo.png"))[None]
    with torch.inference_mode():
        bits = load_autoencoder(model).bits(x, load_prior(model), generator=torch.Generator().manual_seed(0))
    assert report["totals"]["images"]["bits_per_pixel"] == pytest.approx(float(bits) / (64 * 48), rel=1e-5)


def test_without_a_prior_there_are_no_bits(model: str) -> None:
    shutil.copytree(model, "alone", ignore=shutil.ignore_patterns("prior"))
    photo("photo.png")
    report = json.loads(ul("reconstruct", "photo.png", "-o", "out", "--json", model="alone").stdout)
    assert report["totals"]["images"]["bits_per_pixel"] is None
    table = ul("reconstruct", "photo.png", "-o", "out", "--force", model="alone").stdout
    assert re.search(r"photo.png .*│ +- │", table)


def test_a_prior_of_several_stages_gets_a_grid_that_it_can_halve(model: str) -> None:
    shutil.copytree(model, "deep")
    changes = {"block_out_channels": (16, 32), "num_layers": (2, 1)}
    build_prior("ul-tiny-f8", changes).save_pretrained("deep/prior")
    photo("photo.png", 40, 24)
    report = json.loads(ul("reconstruct", "photo.png", "-o", "out", "--json", model="deep").stdout)
    assert report["totals"]["images"]["bits_per_pixel"] > 0
    assert report["totals"]["images"]["pixels"] == 40 * 24


def test_json_lists_what_was_skipped_and_is_alone_on_standard_output(model: str) -> None:
    photo("in/a.png")
    Path("in/b.png").touch()
    report = json.loads(ul("reconstruct", "in", "-o", "out", "--json", model=model).stdout)
    assert report["skipped"] == [{"file": "in/b.png", "reason": "the file is empty"}]
    assert (report["totals"]["results"], report["totals"]["skipped"]) == (1, 1)


# ---------------------------------------------------------------- info


def test_info_describes_the_model(model: str) -> None:
    report = json.loads(ul("info", model, "--json").stdout)
    (facts,) = report["results"]
    assert (report["skipped"], report["totals"]) == ([], {"results": 1, "skipped": 0, "bytes": facts["bytes"]})
    parts = facts["parameters"]
    assert parts["total"] == parts["encoder"] + parts["decoder"] + parts["prior"] > 0
    assert (facts["compression_per_side"], facts["compression_in_time"]) == (8, 1)
    assert (facts["latent_channels"], facts["latent_logsnr"]) == (4, 5.0)
    assert facts["bytes"] == sum(path.stat().st_size for path in Path(model).rglob("*.safetensors"))
    assert (facts["from"], facts["license"], facts["metrics"]) == ("folder", None, {})
    text = ul("info", model).stdout
    assert f"{parts['total']:,}" in text
    assert facts["weights_sha256"] in text


def test_info_of_an_unknown_model_is_one_error() -> None:
    result = ul("info", "ul-foto", status=1)
    assert result.stderr.startswith("error: Model ul-foto is neither a bundled name (")
    assert result.stderr.count("\n") == 1


# ---------------------------------------------------------------- overwriting


def test_nothing_is_written_if_one_result_exists(model: str) -> None:
    for name in ("a", "b", "c"):
        photo(f"in/{name}.png")
    Path("out").mkdir()
    Path("out/c.png.safetensors").write_text("mine")
    result = ul("encode", "in", "-o", "out", model=model, status=1)
    assert "out/c.png.safetensors exists already; --force overwrites." in result.stderr
    assert files_below("out") == ["c.png.safetensors"]
    ul("encode", "in", "-o", "out", "--force", model=model)
    assert metadata_of("out/c.png.safetensors")["format"] == "ul_tokenizer.latent.1"


def test_an_input_is_not_overwritten_even_by_force(model: str) -> None:
    before = photo("photo.png").read_bytes()
    result = ul("reconstruct", "photo.png", "-o", "photo.png", "--force", model=model, status=1)
    assert "would replace an input" in result.stderr
    assert Path("photo.png").read_bytes() == before


def test_an_output_folder_that_is_a_file_is_refused(model: str) -> None:
    photo("in/a.png")
    Path("out").touch()
    assert "must lie in a folder, but out is a file" in ul("encode", "in", "-o", "out", model=model, status=1).stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_file_that_was_not_finished_is_never_seen(error: type[BaseException]) -> None:
    Path("a.txt").write_text("before")
    with pytest.raises(error), whole_file(Path("a.txt")) as path:
        path.write_text("half")
        raise error
    assert files_below(".") == ["a.txt"]
    assert Path("a.txt").read_text() == "before"


def test_a_full_disk_stops_a_folder_with_one_error(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    photo("in/a.png")
    monkeypatch.setattr(Path, "write_bytes", full)
    result = ul("encode", "in", "-o", "out", model=model, status=1)
    assert "No space left on device" in result.stderr
    assert files_below("out") == []


# ---------------------------------------------------------------- usage, signals


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "photo.png"],
        ["encode", "photo.png", "-o", "out", "--unknown"],
        ["encode", "missing.png", "-o", "out"],
        ["encode", "photo.png", "-o", "out", "--dtype", "int8"],
        ["encode", "photo.png", "-o", "out", "--device", "toaster"],
        ["encode", "photo.png", "-o", "out", "--tile", "-1"],
        ["encode", "photo.png", "-o", "out", "--tile", "4"],
        ["encode", "photo.png", "-o", "out", "--fps", "5"],
        ["reconstruct", "photo.png", "-o", "out", "--audio"],
        ["decode", "photo.png", "-o", "out", "--steps", "0"],
        ["reconstruct", "photo.png", "-o", "out", "--seed", "-1"],
        ["transmogrify"],
        [],
    ],
)
def test_wrong_usage_is_status_2_and_nothing_is_written(model: str, arguments: list[str]) -> None:
    photo("photo.png")
    ul(*arguments, model=model if arguments and arguments[0] != "transmogrify" else None, status=2)
    assert files_below(".") == ["photo.png"]


def test_a_missing_extra_is_one_line_that_names_the_command_to_install_it(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo("in/a.png", 16, 16)
    Path("table.parquet").write_bytes(b"PAR1")
    ul("encode-dataset", "in", "-o", "latents", "--crop", "none", model=model)
    monkeypatch.setitem(sys.modules, "datasets", None)  # an import of these fails as if they weren't installed
    monkeypatch.setitem(sys.modules, "webdataset", None)
    for words in (
        ["encode-dataset", "table.parquet", "-o", "out", "--crop", "none", "--model", model],
        ["latents", "export", "latents", "-o", "out", "--format", "webdataset"],
    ):
        said = ul(*words, status=1).stderr
        assert said.startswith("error: ") and said.count("\n") == 1
        assert "pip install" in said and "ul_tokenizer[data]" in said
    assert not Path("out").exists()


def test_a_broken_installation_keeps_its_traceback() -> None:
    def broken() -> None:
        raise ImportError("cannot import name 'x' from 'y'")

    with pytest.raises(ImportError, match="cannot import name"):
        reported(broken)()


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UsageError("--a needs --b."), 2, "error: --a needs --b."),
        (ValueError("no."), 1, "error: no."),
        (OSError(28, "No space left on device", "x"), 1, "error: [Errno 28] No space left on device: 'x'"),
        (MemoryError(), 1, "error: MemoryError"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 1, "error: Not enough memory; use smaller tiles"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "error: Not enough memory; use smaller tiles"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing() -> None:
        raise error

    with pytest.raises(typer.Exit) as stopped:
        reported(failing)()
    said = capsys.readouterr().err
    assert stopped.value.exit_code == status
    assert said.startswith(line) and said.count("\n") == 1


def test_json_has_results_skipped_and_totals_and_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"a": float("nan"), "b": [1.5, float("inf")], "path": Path("x"), "pair": (1, {"c": -float("inf")})}]
    print_results(rows, [{"file": "y", "reason": "ü"}], {"mean": 2.0})
    out = capsys.readouterr().out
    assert "ü" in out and "NaN" not in out
    assert json.loads(out) == {
        "results": [{"a": None, "b": [1.5, None], "path": "x", "pair": [1, {"c": None}]}],
        "skipped": [{"file": "y", "reason": "ü"}],
        "totals": {"results": 1, "skipped": 1, "mean": 2.0},
    }


def test_a_real_process_has_these_exit_statuses_too(model: str) -> None:
    photo("photo.png")
    assert process("encode", "photo.png", "-o", "out", "--model", model).returncode == 0
    again = process("encode", "photo.png", "-o", "out", "--model", model)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert process("encode", "photo.png", "-o", "out", "--nonsense").returncode == 2


def test_ctrl_c_ends_with_130_one_line_and_no_half_written_file(model: str) -> None:
    photo("in/0.png", 256, 256)
    for n in range(1, 1500):
        os.link("in/0.png", f"in/{n}.png")
    running = subprocess.Popen(
        [sys.executable, "-m", "ul_tokenizer", "encode", "in", "-o", "out", "--model", model],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,  # ignored in background jobs
    )
    deadline = time.monotonic() + 60
    while not list(Path().glob("out/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert (running.returncode, stderr) == (130, "interrupted\n")
    written = files_below("out")
    assert 0 < len(written) < 1500
    assert all(load_file(Path("out", name))["latent"].shape == (4, 32, 32) for name in written)
