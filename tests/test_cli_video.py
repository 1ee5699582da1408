"""Videos on the command line: to latents and back, side by side, and into data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from conversion.image_to_video import inflate, main
from ul_tokenizer import (
    LatentDataset,
    LogSNRScheduler,
    UnifiedLatentsAutoencoder,
    UnifiedLatentsPipeline,
    UnifiedLatentsTransformer,
)
from ul_tokenizer.cli import app
from ul_tokenizer.cli.tasks import Kind
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.media.videos import VideoWriter, count_frames, probe, read_frames
from ul_tokenizer.models.config_checks import TEMPORAL_DOWNSAMPLES
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.models.rate import latent_bits
from ul_tokenizer.models.repository import load_prior


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    autoencoder = build_autoencoder("ul-tiny-f8", {"temporal_compression_ratio": 4})
    for parameter in autoencoder.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    autoencoder.save_pretrained(folder)
    build_prior("ul-tiny-f8").save_pretrained(folder / "prior")
    return str(folder)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """22 frames of 44×36 pixels: a square that moves."""
    return write(tmp_path / "in" / "clip.mp4")


def write(path: Path, frames: int = 22, height: int = 36, width: int = 44) -> Path:
    with VideoWriter(path, 10) as writer:
        for n in range(frames):
            frame = np.full((height, width, 3), 60, np.uint8)
            frame[8:20, n : n + 12] = (200, 80, 40)
            writer.write(frame)
    return path


def ul(*words: object, status: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == status, result.output
    return result


def test_a_video_becomes_a_latent_file_and_a_video_again(video: Path, model: str, tmp_path: Path) -> None:
    ul("encode", video, "-o", tmp_path / "out", "--model", model)
    latent = load_file(tmp_path / "out" / "clip.mp4.safetensors")["latent"]
    assert latent.shape == (4, 6, 5, 6)
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(model)
    frames = np.stack([np.pad(f, ((0, 4), (0, 4), (0, 0)), mode="edge") for f in read_frames(video)])
    x = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(latent.float(), autoencoder.encode(x).latent[0], rtol=2e-3, atol=2e-3)
    ul("decode", tmp_path / "out" / "clip.mp4.safetensors", "-o", tmp_path / "again.mp4", "--model", model)
    info = probe(tmp_path / "again.mp4")
    assert (info.width, info.height, info.fps, count_frames(tmp_path / "again.mp4")) == (44, 36, 10.0, 22)


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("image-model")
    torch.manual_seed(1)
    build_autoencoder("ul-tiny-f8").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def defaults(model: str, image_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models in the place of the bundled ones that are taken without --model."""
    monkeypatch.setattr("ul_tokenizer.cli.models.DEFAULT_MODELS", {Kind.image: image_model, Kind.video: model})


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_decoding_is_a_function_of_file_and_seed(model: str, tmp_path: Path) -> None:
    # Sizes that H.264 doesn't pad: its encoder isn't deterministic for others.
    video = write(tmp_path / "in" / "clip.mp4", height=32, width=48)
    ul("encode", video, "-o", tmp_path / "out", "--model", model)
    source = tmp_path / "out" / "clip.mp4.safetensors"
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ul("decode", source, "-o", tmp_path / f"{name}.mp4", "--model", model, "--seed", seed)
    a, b, c = (np.stack(list(read_frames(tmp_path / f"{name}.mp4"))) for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_a_reconstruction_stands_beside_its_original(
    video: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    report = json.loads(ul("reconstruct", video, "-o", tmp_path / "out", "--model", model, "--json").stdout)
    (row,) = report["results"]
    assert (row["file"], row["kind"], report["skipped"]) == ("clip.mp4", "video", [])
    totals = report["totals"]["videos"]
    assert (totals["model"], totals["files"], totals["frames"], totals["pixels"]) == (model, 1, 22, 22 * 44 * 36)
    assert totals["mean_psnr"] == pytest.approx(row["mean_psnr"])
    assert totals["psnr_of_mean_mse"] == pytest.approx(row["psnr_of_mean_mse"])
    assert totals["bits_per_pixel"] == pytest.approx(row["bits_per_pixel"])
    assert (row["frames"], row["width"], row["height"], row["fps"]) == (22, 44, 36, 10.0)
    assert len(row["psnr_per_frame"]) == 22
    assert row["mean_psnr"] == pytest.approx(np.mean(row["psnr_per_frame"]), abs=1e-2)
    assert row["bits_per_pixel"] > 0 and row["flicker"] > 0
    both = list(read_frames(tmp_path / "out" / "clip.mp4.mp4"))
    assert len(both) == 22
    assert both[0].shape == (36, 88, 3)
    left = np.stack([frame[:, :44] for frame in both]).astype(float)
    assert np.abs(left - np.stack(list(read_frames(video)))).mean() < 4
    table = ul("reconstruct", video, "-o", tmp_path / "table", "--model", model).stdout
    assert f"{min(row['psnr_per_frame']):.2f}" in table
    assert f"{row['flicker']:.3f}/{row['source_change']:.3f}" in table


def test_the_bits_of_a_video_are_the_priors_bound_on_its_latents(video: Path, model: str, tmp_path: Path) -> None:
    report = json.loads(ul("reconstruct", video, "-o", tmp_path / "out", "--model", model, "--json").stdout)
    autoencoder, prior = UnifiedLatentsAutoencoder.from_pretrained(model), load_prior(model)
    frames = np.stack([np.pad(f, ((0, 4), (0, 4), (0, 0)), mode="edge") for f in read_frames(video)])
    x = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        generator, schedule = torch.Generator().manual_seed(0), LogSNRSchedule(5.0, -10.0, "linear")
        latents = autoencoder.encode_stream(x.split(1, 2), 22, clean=True)
        pieces = [piece for z in latents for piece in z.split(4, 2)]
        bits = [latent_bits(piece, prior, schedule, 4, generator) for piece in pieces]
    assert report["results"][0]["bits_per_pixel"] == pytest.approx(float(sum(bits)) / (22 * 44 * 36), rel=1e-4)


def test_cropping_keeps_the_middle_of_a_video(video: Path, model: str, tmp_path: Path) -> None:
    ul("encode", video, "-o", tmp_path / "out", "--model", model, "--crop")
    path = tmp_path / "out" / "clip.mp4.safetensors"
    assert load_file(path)["latent"].shape == (4, 6, 4, 5)
    metadata = metadata_of(path)
    sizes = [metadata[key] for key in ("original_width", "original_height", "width", "height")]
    assert sizes == ["44", "36", "40", "32"]
    ul("reconstruct", video, "-o", tmp_path / "both", "--model", model, "--crop")
    left = next(iter(read_frames(tmp_path / "both" / "clip.mp4.mp4")))[:, :40]
    assert np.abs(left.astype(int) - next(iter(read_frames(video)))[2:34, 2:42]).mean() < 4


# ---------------------------------------------------------------- folders of both, and which model they take


def test_a_folder_of_videos_and_images_is_encoded_and_decoded_each_by_its_own_model(
    video: Path, model: str, image_model: str, defaults: None, tmp_path: Path
) -> None:
    (video.parent / "deep").mkdir()
    Image.new("RGB", (20, 12), "teal").save(video.parent / "deep" / "a.png")
    said = ul("encode", video.parent, "-o", tmp_path / "latents").stderr
    assert "encoded 2 of 2 files" in said
    assert files_below(tmp_path / "latents") == ["clip.mp4.safetensors", "deep/a.png.safetensors"]
    assert metadata_of(tmp_path / "latents" / "clip.mp4.safetensors")["model"] == model
    assert metadata_of(tmp_path / "latents" / "deep" / "a.png.safetensors")["model"] == image_model
    ul("decode", tmp_path / "latents", "-o", tmp_path / "again")
    assert files_below(tmp_path / "again") == ["clip.mp4.mp4", "deep/a.png.png"]
    assert Image.open(tmp_path / "again" / "deep" / "a.png.png").size == (20, 12)
    assert count_frames(tmp_path / "again" / "clip.mp4.mp4") == 22


def test_a_folder_of_video_latents_is_decoded(video: Path, model: str, tmp_path: Path) -> None:
    write(video.parent / "sub" / "other.mp4", 8)
    ul("encode", video.parent, "-o", tmp_path / "latents", "--model", model)
    ul("decode", tmp_path / "latents", "-o", tmp_path / "again", "--model", model)
    assert files_below(tmp_path / "again") == ["clip.mp4.mp4", "sub/other.mp4.mp4"]
    assert count_frames(tmp_path / "again" / "sub" / "other.mp4.mp4") == 8


def test_reconstructions_of_both_kinds_are_one_report(video: Path, defaults: None, tmp_path: Path) -> None:
    Image.new("RGB", (20, 12), "teal").save(video.parent / "a.png")
    (video.parent / "notes.txt").touch()
    report = json.loads(ul("reconstruct", video.parent, "-o", tmp_path / "out", "--json").stdout)
    assert [(row["file"], row["kind"]) for row in report["results"]] == [("a.png", "image"), ("clip.mp4", "video")]
    assert report["totals"].keys() == {"results", "skipped", "images", "videos"}
    assert report["skipped"][0]["reason"] == "its suffix is not that of an image or a video"
    assert files_below(tmp_path / "out") == ["a.png.png", "clip.mp4.mp4"]
    tables = ul("reconstruct", video.parent, "-o", tmp_path / "out", "--force").stdout
    assert "PSNR of mean MSE" in tables and "flicker/" in tables


def test_a_video_model_takes_a_folder_of_both(video: Path, model: str, tmp_path: Path) -> None:
    Image.new("RGB", (20, 12), "teal").save(video.parent / "a.png")
    ul("encode", video.parent, "-o", tmp_path / "latents", "--model", model)
    ul("decode", tmp_path / "latents", "-o", tmp_path / "again", "--model", model)
    assert files_below(tmp_path / "again") == ["a.png.png", "clip.mp4.mp4"]


@pytest.mark.parametrize("command", ["encode", "reconstruct"])
def test_a_model_of_images_is_never_replaced_for_a_video(command: str, video: Path, tmp_path: Path) -> None:
    said = ul(command, video, "-o", tmp_path / "out", "--model", "ul-photo-f8", status=1).stderr
    assert said == (
        f"error: --model must be a model of videos for {video}, got ul-photo-f8, which is one of images; without "
        "--model, videos take ul-video.\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_model_of_images_is_refused_for_a_folder_with_videos_and_for_their_latents(
    video: Path, model: str, image_model: str, tmp_path: Path
) -> None:
    write(video.parent / "sub" / "other.mp4", 8)
    Image.new("RGB", (20, 12), "teal").save(video.parent / "a.png")
    said = ul("encode", video.parent, "-o", tmp_path / "out", "--model", image_model, status=1).stderr
    assert f"{video} and 1 more, got {image_model}" in said and said.count("\n") == 1
    ul("encode", video.parent, "-o", tmp_path / "latents", "--model", model)
    said = ul("decode", tmp_path / "latents", "-o", tmp_path / "out", "--model", image_model, status=1).stderr
    assert "must be a model of videos" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_defaults_are_the_bundled_models_that_the_help_names() -> None:
    from ul_tokenizer.cli.models import DEFAULT_MODELS

    assert {Kind.image: "ul-photo-f8", Kind.video: "ul-video"} == DEFAULT_MODELS
    text = " ".join(ul("encode", "--help").stdout.replace("│", " ").split())
    assert "ul-photo-f8 for images, ul-video for videos" in text


def test_a_revision_needs_a_model(video: Path, tmp_path: Path) -> None:
    said = ul("encode", video, "-o", tmp_path / "out", "--revision", "v1", status=2).stderr
    assert said == "error: --revision needs --model, got v1 without it.\n"


def test_another_rate_and_a_folder_of_videos(video: Path, model: str, tmp_path: Path) -> None:
    write(video.parent / "sub" / "other.mp4", 8)
    (video.parent / "bad.mp4").write_bytes(b"no video")
    result = ul("encode", video.parent, "-o", tmp_path / "out", "--model", model, "--fps", 5)
    assert "bad.mp4" in result.stderr
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.safetensors")}
    assert found == {"clip.mp4.safetensors", "sub/other.mp4.safetensors"}
    assert load_file(tmp_path / "out" / "clip.mp4.safetensors")["latent"].shape[1] == 3


def test_an_animation_is_a_video(model: str, tmp_path: Path) -> None:
    images = [Image.new("RGB", (16, 16), (n * 40, 0, 0)) for n in range(5)]
    (tmp_path / "in").mkdir()
    images[0].save(tmp_path / "in" / "a.gif", save_all=True, append_images=images[1:], duration=100)
    images[0].save(tmp_path / "in" / "still.gif")
    ul("encode", tmp_path / "in" / "a.gif", "-o", tmp_path / "out", "--model", model)
    assert load_file(tmp_path / "out" / "a.gif.safetensors")["latent"].shape == (4, 2, 2, 2)
    ul("encode", tmp_path / "in", "-o", tmp_path / "folder", "--model", model)
    assert load_file(tmp_path / "folder" / "a.gif.safetensors")["latent"].shape == (4, 2, 2, 2)
    assert load_file(tmp_path / "folder" / "still.gif.safetensors")["latent"].shape == (4, 2, 2)


def test_what_is_wrong_is_one_sentence_and_leaves_nothing(video: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(video.read_bytes()[:100])
    for command in ("encode", "reconstruct"):
        said = ul(command, tmp_path / "bad.mp4", "-o", tmp_path / "out", "--model", model, status=1).stderr
        assert "can't be read" in said
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("changes", "claimed"),
    [
        ({"num_frames": "25"}, "25 frames at 10.0"),
        ({"num_frames": "0"}, "0 frames at 10.0"),
        ({"num_frames": "many"}, "many frames at 10.0"),
        ({"fps": "quick"}, "22 frames at quick"),
        ({"fps": "nan"}, "22 frames at nan"),
    ],
)
def test_latents_that_claim_an_impossible_time_are_refused(
    changes: dict[str, str], claimed: str, video: Path, model: str, tmp_path: Path
) -> None:
    ul("encode", video, "-o", tmp_path / "good", "--model", model)
    good, bad = tmp_path / "good" / "clip.mp4.safetensors", tmp_path / "bad.safetensors"
    save_file(load_file(good), bad, {**metadata_of(good), **changes})
    said = ul("decode", bad, "-o", tmp_path / "out", "--model", model, status=1).stderr
    assert said == f"error: Latent {bad} claims {claimed} frames per second, which doesn't fit its shape.\n"
    assert not list(tmp_path.glob("out/*"))


# ---------------------------------------------------------------- data sets


def test_a_folder_of_videos_becomes_a_data_set_of_clips(video: Path, model: str, tmp_path: Path) -> None:
    folder = video.parent
    write(folder / "cats" / "a.mp4", 22)
    write(folder / "dogs" / "b.mp4", 9)
    video.unlink()
    (folder / "dogs" / "bad.mp4").write_bytes(b"no video")
    words = ["--model", model, "--resolution", 16, "--clip-frames", 8, "--clip-stride", 4, "--dtype", "float32"]
    ul("encode-dataset", folder, "-o", tmp_path / "out", *words, "--max-skip-fraction", 0.5)
    dataset = LatentDataset(tmp_path / "out")
    assert [sample["id"] for sample in dataset] == [
        "cats/a.mp4@0",
        "cats/a.mp4@4",
        "cats/a.mp4@8",
        "cats/a.mp4@12",
        "dogs/b.mp4@0",
    ]
    assert dataset.shapes == {(4, 2, 2, 2): 5}
    assert dataset.class_names == ("cats", "dogs")
    sample = dataset[1]
    assert (sample["label"], sample["first_frame"], sample["num_frames"], sample["fps"]) == (0, 4, 8, 10.0)
    assert "bad.mp4" in (tmp_path / "out" / "skipped.jsonl").read_text()
    assert dataset.header["temporal_compression_ratio"] == 4


def test_clips_with_a_cut_are_passed_over(model: str, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "in" / "a.mp4", 10) as writer:
        for n in range(16):
            writer.write(np.full((32, 32, 3), 20 if n < 11 else 230, np.uint8))
    words = ["--model", model, "--resolution", 16, "--clip-frames", 8, "--without-cuts", "--max-skip-fraction", 0.6]
    ul("encode-dataset", tmp_path / "in", "-o", tmp_path / "out", *words)
    assert [sample["id"] for sample in LatentDataset(tmp_path / "out")] == ["a.mp4@0"]
    assert "there is a cut in it" in (tmp_path / "out" / "skipped.jsonl").read_text()


# ---------------------------------------------------------------- generating


@pytest.fixture(scope="module")
def pipeline(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    transformer = UnifiedLatentsTransformer(4, (32,), (2,), 16, 16, context_conditioning=True, sample_size=4)
    folder = tmp_path_factory.mktemp("pipeline")
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(model)
    UnifiedLatentsPipeline(transformer, LogSNRScheduler(), autoencoder).save_pretrained(folder)
    return folder


def test_clips_are_generated_and_a_clip_is_continued(pipeline: Path, tmp_path: Path) -> None:
    words = ["generate", "--model", pipeline, "--num", 3, "--steps", 2]
    ul(*words, "--frames", 6, "-o", tmp_path / "new.mp4")
    assert (count_frames(tmp_path / "new.mp4"), probe(tmp_path / "new.mp4").width) == (6, 64)
    with VideoWriter(tmp_path / "given.mp4", 12) as writer:
        for n in range(9):
            writer.write(np.full((32, 32, 3), 20 * n, np.uint8))
    ul(*words, "--frames", 4, "--context", tmp_path / "given.mp4", "--given", 5, "-o", tmp_path / "more.mp4")
    assert (count_frames(tmp_path / "more.mp4"), probe(tmp_path / "more.mp4").fps) == (9, 12.0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-o", "x.mp4"], "--frames must be given"),
        (["--context", "given.mp4", "--given", "20", "-o", "x.mp4"], "--context must have the 20 frames of --given"),
        (["--context", "given.mp4", "--frames", "3", "-o", "x.mp4"], "must be a multiple of 4 after given frames"),
    ],
)
def test_what_clips_cannot_be_is_one_sentence(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with VideoWriter(Path("given.mp4"), 10) as writer:
        for _ in range(6):
            writer.write(np.zeros((32, 32, 3), np.uint8))
    assert expected in ul("generate", "--model", pipeline, "--num", 1, *words, status=1).stderr
    assert not Path("x.mp4").exists()


def test_a_frame_rate_that_is_given_wins_over_the_contexts(pipeline: Path, tmp_path: Path) -> None:
    words = ["generate", "--model", pipeline, "--num", 1, "--steps", 1, "--frames", 4]
    given = write(tmp_path / "given.mp4", 6, 32, 32)
    ul(*words, "--context", given, "--fps", 24, "-o", tmp_path / "more.mp4")
    assert probe(tmp_path / "more.mp4").fps == 24.0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--frames", "4", "-o", "x.png"],
            "--frames is for clips, which need an --output that ends in .mp4, got x.png.",
        ),
        (
            ["--context", "given.mp4", "-o", "x"],
            "--context is for clips, which need an --output that ends in .mp4, got x.",
        ),
        (["--fps", "4", "-o", "x.png"], "--fps is for clips, which need an --output that ends in .mp4, got x.png."),
        (["--given", "4", "-o", "x.png"], "--given is for clips, which need an --output that ends in .mp4, got x.png."),
        (["--given", "4", "-o", "x.mp4"], "--given needs --context, the video whose last frames are continued."),
    ],
)
def test_options_of_clips_need_a_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("given.mp4").touch()
    assert ul("generate", *words, status=2).stderr == f"error: {expected}\n"


# ---------------------------------------------------------------- from image weights


@pytest.mark.parametrize("where", TEMPORAL_DOWNSAMPLES)
def test_image_weights_are_inflated_by_a_script(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    image = build_autoencoder("ul-tiny-f8")
    for parameter in image.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    image.save_pretrained(tmp_path / "image")
    build_prior("ul-tiny-f8").save_pretrained(tmp_path / "image" / "prior")
    words = [str(tmp_path / "image"), "-o", str(tmp_path / "video"), "--temporal_downsample", where]
    assert main(words) == 0
    assert (tmp_path / "video" / "prior").exists() == (where == "features")  # "latents" have channels of their own
    video = UnifiedLatentsAutoencoder.from_pretrained(tmp_path / "video")
    assert video.config.temporal_compression_ratio == video.config.scale_factor_temporal == 4
    x, noise = torch.rand(1, 3, 16, 16) * 2 - 1, torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        one, other = (m(x, noise=noise).sample for m in (video, image.eval()))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="must be an image model"):
        inflate(video, 4)
    again = inflate(image, 4, temporal_downsample=where).state_dict()
    assert all(torch.equal(weight, again[key]) for key, weight in video.state_dict().items())
    assert main(words) == 1
    assert main([str(tmp_path / "image"), "-o", str(tmp_path / "x"), "--temporal_compression_ratio", "3"]) == 1
    assert "must be a power of two" in capsys.readouterr().err
