"""`ul-tokenizer encode-dataset` and `latents …`: real files through a real encoder, killed, damaged and divided."""

from __future__ import annotations

import json
import os
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
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from ul_tokenizer import LatentDataset, UnifiedLatentsAutoencoder
from ul_tokenizer.cli import app
from ul_tokenizer.cli.encode_dataset import with_flags
from ul_tokenizer.latents.integrity import verify
from ul_tokenizer.media.transforms import Preprocessing
from ul_tokenizer.media.videos import VideoWriter, probe, read_frames
from ul_tokenizer.models.presets import build_autoencoder, build_prior

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "ul-tiny"
    torch.manual_seed(0)
    build_autoencoder("ul-tiny-f8").save_pretrained(folder)
    build_prior("ul-tiny-f8").save_pretrained(folder / "prior")
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of JPEGs in several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for n in range(14):
        path = folder / ("cats" if n % 2 else "dogs") / f"{n:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40 + 8 * (n % 3), 32), Image.Resampling.BICUBIC).save(path)
    return folder


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def arguments(source: object, out: object, model: str, *more: object) -> list[str]:
    fixed = ["--model", model, "--resolution", 16, "--batch-size", 4, "--workers", 0, "--store-dtype", "float32"]
    return [str(word) for word in ("encode-dataset", source, "-o", out, *fixed, *more)]


def ul(*words: object, status: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == status, result.output
    return result


def encode(source: object, out: object, model: str, *more: object, status: int = 0) -> Any:
    return ul(*arguments(source, out, model, *more), status=status)


def start(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.PIPE, text=True)


def by_id(folder: object) -> dict[str, dict[str, Any]]:
    return {sample["id"]: sample for sample in LatentDataset(str(folder))}


def assert_equal(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> None:
    assert one.keys() == other.keys()
    for name, sample in one.items():
        assert torch.equal(sample["latent"], other[name]["latent"]), name
        assert {k: v for k, v in sample.items() if k != "latent"} == {
            k: v for k, v in other[name].items() if k != "latent"
        }


# ---------------------------------------------------------------- what is stored


def test_each_sample_is_the_encoders_latent_with_its_label_and_size(model: str, photos: Path) -> None:
    result = encode(photos, "out", model)
    assert "encoded 14 images in" in result.stderr and "0 skipped" in result.stderr
    dataset = LatentDataset("out")
    assert dataset.class_names == ("cats", "dogs") and len(dataset) == 14
    assert dataset.header["autoencoder"] == "ul-tiny" and len(dataset.header["weights_sha256"]) == 64
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(model).eval()
    for sample in dataset:
        pixels, size = Preprocessing(16, "center", 8)(photos / sample["id"])
        with torch.no_grad():
            exact = autoencoder.encode(pixels[None].float() / 127.5 - 1).latent[0]
        torch.testing.assert_close(sample["latent"], exact, rtol=1e-4, atol=1e-5)
        assert sample["label"] == int(sample["id"].startswith("dogs"))
        assert (sample["height"], sample["width"]) == size


def test_aspects_are_kept_in_buckets(model: str, photos: Path) -> None:
    encode(photos, "out", model, "--crop", "multiple")
    assert set(LatentDataset("out").shapes) == {(4, 2, 2), (4, 2, 3)}


def test_mirrored_views_are_stored_beside_their_images(model: str, photos: Path) -> None:
    encode(photos, "out", model, "--flip")
    samples = by_id("out")
    assert len(samples) == 28
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(model).eval()
    name = "dogs/00.jpg"
    assert samples[name]["flipped"] is False and samples[f"{name}#flipped"]["flipped"] is True
    pixels, _ = Preprocessing(16, "center", 8)(photos / name)
    with torch.no_grad():
        exact = autoencoder.encode(pixels.flip(-1)[None].float() / 127.5 - 1).latent[0]
    torch.testing.assert_close(samples[f"{name}#flipped"]["latent"], exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("more", [("--batch-size", 3), ("--workers", 2), ("--batch-size", 14)])
def test_batches_and_workers_change_no_latent_beyond_rounding(model: str, photos: Path, more: tuple[object]) -> None:
    encode(photos, "a", model)
    encode(photos, "b", model, *more)
    one, other = by_id("a"), by_id("b")
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name]["latent"], other[name]["latent"], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- stopped, and divided


def test_the_same_command_again_encodes_nothing_twice(model: str, photos: Path) -> None:
    encode(photos, "out", model)
    before = {path.name: path.stat().st_mtime_ns for path in Path("out").glob("*.safetensors")}
    result = encode(photos, "out", model)
    assert "encoded 0 images" in result.stderr and "14 were there already" in result.stderr
    assert before == {path.name: path.stat().st_mtime_ns for path in Path("out").glob("*.safetensors")}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_job_goes_on_and_loses_nothing(model: str, photos: Path) -> None:
    encode(photos, "whole", model)
    code = (
        "import sys, ul_tokenizer.latents.writer as w; from ul_tokenizer.cli import app; "
        "w.LatentWriter.__init__.__defaults__ = (0, 1, 2, 10**9); app(sys.argv[1:])"
    )  # shards of two samples, so that there is something to lose
    kills = 0
    for _ in range(2):
        child = start("-c", code, *arguments(photos, "out", model, "--batch-size", 1))
        deadline = time.monotonic() + 60
        count = len(list(Path("out").glob("*.safetensors")))
        while len(list(Path("out").glob("*.safetensors"))) <= count and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        child.kill()
        kills += child.wait() == -signal.SIGKILL
    assert kills
    encode(photos, "out", model, "--batch-size", 1)
    assert verify("out") == []
    one, other = by_id("whole"), by_id("out")
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name]["latent"], other[name]["latent"], rtol=1e-4, atol=1e-5)


@pytest.mark.multiprocess
def test_two_processes_give_the_same_ids_and_bytes_as_one(model: str, photos: Path) -> None:
    (photos / "dogs" / "broken.jpg").write_bytes(b"no picture")
    try:
        encode(photos, "one", model)
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
        script = str(ROOT / "examples" / "encode_dataset.py")
        child = start(*launcher, script, *arguments(photos, "two", model)[1:])
        _, error = child.communicate(timeout=300)
        assert child.returncode == 0, error
    finally:
        (photos / "dogs" / "broken.jpg").unlink()
    assert_equal(by_id("one"), by_id("two"))
    assert len(list(Path("two").glob("manifest-*"))) == 2
    assert Path("one/skipped.jsonl").read_text() == Path("two/skipped.jsonl").read_text() != ""
    # An array of jobs shares the work without a launcher.
    for rank in range(3):
        encode(photos, "three", model, "--rank", rank, "--world-size", 3)
    assert_equal(by_id("one"), by_id("three"))


def test_another_number_of_processes_goes_on(model: str, photos: Path) -> None:
    encode(photos, "out", model, "--rank", 1, "--world-size", 2)
    assert len(LatentDataset("out")) == 7
    assert "encoded 7 images" in encode(photos, "out", model).stderr
    assert len(by_id("out")) == 14


# ---------------------------------------------------------------- bad input


def test_bad_files_are_listed_with_reasons_and_cost_nothing_else(model: str, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(photos, folder)
    good = sorted(path for path in folder.rglob("*.jpg"))
    (folder / "dogs" / "broken.jpg").write_bytes(good[0].read_bytes()[:200])
    (folder / "dogs" / "empty.png").write_bytes(b"")
    (folder / "dogs" / "copy.jpg").write_bytes(good[-1].read_bytes())
    (folder / "dogs" / "notes.txt").write_text("x")
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "dogs" / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("1", (20_000, 20_000)).save(folder / "dogs" / "huge.png")
    result = encode(folder, "out", model, "--max-skip-fraction", 0.5)
    reasons = {row["id"]: row["reason"] for row in map(json.loads, Path("out/skipped.jsonl").read_text().splitlines())}
    bad = ("broken.jpg", "copy.jpg", "empty.png", "huge.png", "moving.gif", "notes.txt")
    assert set(reasons) == {f"dogs/{name}" for name in bad}
    assert reasons["dogs/copy.jpg"] == "same content as dogs/12.jpg"
    assert "the file is empty" in reasons["dogs/empty.png"] and "animated" in reasons["dogs/moving.gif"]
    assert len(LatentDataset("out")) == 14
    assert "6 skipped" in result.stderr and "… and 1 more, see out/skipped.jsonl" in result.stderr
    assert "more than --max-skip-fraction 0.1" in encode(folder, "out", model, status=1).stderr
    assert len(by_id("out")) == 14


def test_an_odd_size_without_a_crop_rule_is_skipped_with_its_size(model: str, tmp_path: Path) -> None:
    for name, size in (("a.png", (16, 16)), ("b.png", (17, 16))):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", size).save(path)
    words = ["encode-dataset", "in", "-o", "out", "--model", model, "--crop", "none", "--workers", 0]
    ul(*words, "--max-skip-fraction", 0.5)
    (row,) = map(json.loads, Path("out/skipped.jsonl").read_text().splitlines())
    assert row == {"id": "b.png", "reason": row["reason"]} and "17×16" in row["reason"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_workers must not be negative.", "--workers must not be negative."),
        (
            "3 of 4 were skipped, more than max_skip_fraction 0.5 allows.",
            "3 of 4 were skipped, more than --max-skip-fraction 0.5 allows.",
        ),
        ("source must hold images, got image_net/num_workers.", "SRC must hold images, got image_net/num_workers."),
        (
            "Folder /data/clip_frames/batch_size holds max_side.png.",
            "Folder /data/clip_frames/batch_size holds max_side.png.",
        ),
    ],
)
def test_arguments_in_errors_become_flags_and_paths_stay(text: str, words: str) -> None:
    assert with_flags(text) == words


def test_no_usable_image_at_all_is_an_error(model: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    result = encode("in", "out", model, status=1)
    assert "error: SRC must hold images that can be encoded, got none among 1." in result.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--resolution", 20), "resolution must be a positive multiple of 8, got 20."),
        (("--rank", 1), "--rank and --world-size must be given together, got 1 and None."),
        (("--rank", 2, "--world-size", 2), "--rank must be from 0 to below --world-size, got 2 and 2."),
        (("--model", "nothing"), "Model nothing is neither a bundled name"),
        (("--clip-fps", 5), "--clip-fps needs --clip-frames, got none."),
        (("--without-cuts",), "--without-cuts needs --clip-frames, got none."),
    ],
)
def test_contradictions_are_one_sentence(model: str, photos: Path, more: tuple[object, ...], words: str) -> None:
    result = encode(photos, "out", model, *more, status=1)
    assert result.stderr.startswith("error: ") and words in result.stderr and result.stderr.count("\n") == 1
    assert not Path("out").exists()


def test_another_configuration_in_the_folder_is_refused(model: str, photos: Path) -> None:
    encode(photos, "out", model)
    error = encode(photos, "out", model, "--store-dtype", "float16", status=1).stderr
    assert "must have the dtype 'float16', got 'float32'" in error
    error = encode(photos, "out", model, "--resolution", 24, status=1).stderr
    assert "must have the preprocessing" in error
    assert len(LatentDataset("out")) == 14


# ---------------------------------------------------------------- latents …


@pytest.fixture
def data(model: str, photos: Path) -> str:
    encode(photos, "data", model)
    return "data"


def test_info_tells_what_is_in_it(data: str) -> None:
    (facts,) = json.loads(ul("latents", "info", data, "--json").stdout)["results"]
    assert facts["samples"] == 14 and facts["shapes"] == {"4×2×2": 14} and facts["class_names"] == ["cats", "dogs"]
    assert "14" in ul("latents", "info", data).stdout


def test_verify_finds_and_repairs_a_flipped_byte_and_the_job_fills_the_gap(data: str, model: str, photos: Path) -> None:
    assert "whole" in ul("latents", "verify", data).stderr
    (shard,) = Path(data).glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-3] ^= 4
    shard.write_bytes(content)
    result = ul("latents", "verify", data, status=1)
    assert (
        f"{shard.name}: its sha256 differs from the manifest's" in result.stdout
        and "--repair removes damaged shards" in result.stderr
    )
    ul("latents", "verify", data, "--repair")
    encode(photos, data, model)
    ul("latents", "verify", data)
    assert len(by_id(data)) == 14


def test_stats_are_the_data_sets_and_go_into_a_config(data: str, model: str, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "copy")
    words = ["latents", "stats", data, "--json", "--model", model, "--num", 3, "--write-config", tmp_path / "copy"]
    (facts,) = json.loads(ul(*words).stdout)["results"]
    values: Tensor = torch.stack([sample["latent"] for sample in LatentDataset(data)])
    exact = values.double().transpose(0, 1).flatten(1)
    np.testing.assert_allclose(facts["mean"], exact.mean(1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(facts["std"], exact.std(1, correction=0), rtol=1e-9)
    assert facts["bits_per_image"] > 0
    loaded = UnifiedLatentsAutoencoder.from_pretrained(tmp_path / "copy")
    np.testing.assert_allclose(loaded.config.latents_mean, exact.mean(1), atol=1e-6)


def test_parts_merge(model: str, photos: Path) -> None:
    for rank in range(2):
        encode(photos, f"part{rank}", model, "--rank", rank, "--world-size", 2)
    assert "merged 14 samples: all" in ul("latents", "merge", "part0", "part1", "-o", "all").stderr
    assert len(by_id("all")) == 14
    assert "error: " in ul("latents", "merge", "part0", "part1", "-o", "all", status=1).stderr


@pytest.mark.parametrize("form", ["webdataset", "parquet", "npy"])
def test_data_sets_are_exported(data: str, form: str) -> None:
    pytest.importorskip({"webdataset": "webdataset", "parquet": "pyarrow"}.get(form, "numpy"))
    result = ul("latents", "export", data, "-o", "out", "--format", form)
    assert f"exported 14 samples as {form}: out" in result.stderr
    assert any(Path("out").glob("latents-*"))
    assert "which exists" in ul("latents", "export", data, "-o", "out", "--format", form, status=1).stderr


def test_samples_are_decoded_onto_a_sheet(data: str, model: str) -> None:
    result = ul("latents", "decode", data, "-o", "sheet.png", "--model", model, "-n", 5, "--steps", 1)
    assert "decoded 5 of 14 samples: sheet.png" in result.stderr
    shown = result.stdout.split()
    assert len(set(shown)) == 5 and set(shown) <= set(by_id(data))
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (3 * 18, 2 * 18)  # 16 pixels and a gap of 2
    assert "exists already" in ul("latents", "decode", data, "-o", "sheet.png", "--model", model, status=1).stderr


@pytest.fixture
def clips(tmp_path: Path) -> tuple[str, str]:
    """A model of videos, and a data set of four clips of five frames each."""
    torch.manual_seed(0)
    folder = tmp_path / "ul-tiny-video"
    autoencoder = build_autoencoder("ul-tiny-f8", {"temporal_compression_ratio": 4})
    with torch.no_grad():
        for parameter in autoencoder.parameters():  # a fresh decoder gives the same picture for every latent
            parameter.add_(0.1 * torch.randn_like(parameter))
    autoencoder.save_pretrained(folder)
    random, videos = np.random.default_rng(0), tmp_path / "videos"
    videos.mkdir()
    with VideoWriter(videos / "a.mp4", 5) as writer:
        for _ in range(21):
            writer.write(random.integers(0, 256, (16, 24, 3), dtype=np.uint8))
    encode("videos", "clips", str(folder), "--clip-frames", 5)
    return "clips", str(folder)


def test_clips_are_decoded_onto_a_sheet_and_into_a_video(clips: tuple[str, str]) -> None:
    data, model = clips
    result = ul("latents", "decode", data, "-o", "sheet.png", "--model", model, "-n", 3, "--steps", 1)
    shown, ids = result.stdout.split(), [sample["id"] for sample in LatentDataset(data)]
    assert len(shown) == 3 and shown == [name for name in ids if name in set(shown)]
    with Image.open("sheet.png") as sheet:  # first, middle and last frame of each, in a grid of two columns
        assert sheet.size == (2 * (3 * 16 + 2), 2 * 18)
        first, last = (np.array(sheet.crop((1 + left, 1, 17 + left, 17))) for left in (0, 32))
        assert (first != last).any()
    ul("latents", "decode", data, "-o", "sheet.mp4", "--model", model, "-n", 4, "--steps", 1)
    frames = list(read_frames(Path("sheet.mp4")))
    assert len(frames) == 5 and frames[0].shape == (2 * 18, 2 * 18, 3) and probe(Path("sheet.mp4")).rate == 5


def test_images_make_no_video(data: str, model: str) -> None:
    error = ul("latents", "decode", data, "-o", "sheet.mp4", "--model", model, status=1).stderr
    assert "--output must be a .png file for a data set of images, got sheet.mp4." in error


def test_the_result_as_json_has_results_skipped_samples_and_totals(model: str, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "in")
    (tmp_path / "in" / "dogs" / "notes.txt").write_text("x")
    printed = json.loads(encode("in", "out", model, "--json").stdout)
    assert printed["results"][0]["output"] == "out" and printed["totals"]["encoded"] == 14
    assert [skip["id"] for skip in printed["skipped"]] == ["dogs/notes.txt"]
    assert json.loads(encode("in", "out", model, "--json", "--max-skip-fraction", 0, status=1).stdout)["skipped"]


def test_other_weights_do_not_decode_a_data_set(data: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    build_autoencoder("ul-tiny-f8").save_pretrained(tmp_path / "other")
    error = ul("latents", "decode", data, "-o", "sheet.png", "--model", tmp_path / "other", status=1).stderr
    assert "must have the weights_sha256" in error and not Path("sheet.png").exists()


# ---------------------------------------------------------------- disks


def test_a_disk_that_fills_up_is_one_sentence_and_the_job_goes_on_later(model: str, photos: Path) -> None:
    pytest.importorskip("resource")
    limited = (  # the system itself then refuses to write more, as on a full disk
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from ul_tokenizer.latents import writer as latent_writer\n"
        "latent_writer.SHARD_SAMPLES = 4\n"
        "latent_writer.LatentWriter.__init__.__defaults__ = (0, 1, 4, 10**6)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))\n"
        "from ul_tokenizer.cli import app\n"
        "app(sys.argv[1:])\n"
    )
    encode(photos, "whole", model)
    process = start("-c", limited, *arguments(photos, "out", model))
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and "Traceback" not in errors and "File too large" in errors, errors
    assert not list(Path("out").glob("*.tmp"))
    encode(photos, "out", model)
    assert not verify("out")
    assert_equal(by_id("whole"), by_id("out"))


def test_an_output_that_cannot_be_written_is_one_sentence(model: str, photos: Path) -> None:
    error = encode(photos, "/proc/latents", model, status=1).stderr
    assert "/proc/latents" in error and "Traceback" not in error


# ---------------------------------------------------------------- on a cluster


def ray_job(source: Path, out: str, model: str) -> subprocess.CompletedProcess[str]:
    """A local cluster of two workers, for this one job."""
    words = [sys.executable, ROOT / "examples" / "encode_dataset_ray.py", source, "-o", out, "--model", model]
    words += ["--resolution", 16, "--batch-size", 4, "--store-dtype", "float32", "--actors", 2]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_ray_cluster_gives_the_samples_of_one_process(model: str, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    source = tmp_path / "photos"
    shutil.copytree(photos, source)
    (source / "cats" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    encode(source, "one", model)
    done = ray_job(source, "ray", model)
    assert done.returncode == 0, done.stderr
    assert_equal(by_id("one"), by_id("ray"))
    assert LatentDataset("one").header == LatentDataset("ray").header and not verify("ray")
    assert Path("one/skipped.jsonl").read_text() == Path("ray/skipped.jsonl").read_text()
    lost = next(Path("ray").glob("*.safetensors"))
    lost.unlink()
    ul("latents", "verify", "ray", "--repair")
    again = ray_job(source, "ray", model)  # makes what is lacking, and that alone
    assert again.returncode == 0, again.stderr
    assert_equal(by_id("one"), by_id("ray"))
