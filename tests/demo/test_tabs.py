"""What the tabs compute: the same as the library and the command line, whatever the page looks like."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.demo.conftest import PHOTO
from ul_tokenizer.cli import app
from ul_tokenizer.demo import generate, interpolate, panel, pictures, reconstruct, video
from ul_tokenizer.demo.interpolate import Edit
from ul_tokenizer.demo.models import Kind, Models, kind_of, offered_models
from ul_tokenizer.demo.uploads import Upload, UploadError, pan_over, read_clip
from ul_tokenizer.demo.work import Job, Progress, follow
from ul_tokenizer.evaluation.autoencoders import AnyAutoencoder
from ul_tokenizer.media.images import read_image
from ul_tokenizer.media.pixels import frame_to_uint8
from ul_tokenizer.media.videos import VideoWriter, count_frames, probe

IMAGE_MODEL, VIDEO_MODEL, PIPELINE = "ul-photo-f8", "ul-video", "ul-fashion"


def results(work: Any) -> list[Any]:
    return [message for message in follow(work) if not isinstance(message, Progress)]


@pytest.fixture(scope="module")
def crop() -> Image.Image:
    """101×75 pixels, which no compression ratio divides."""
    return read_image(PHOTO).crop((150, 60, 251, 135))


@pytest.fixture(scope="module")
def model(models: Models) -> AnyAutoencoder:
    return models.autoencoder(IMAGE_MODEL)


# ---------------------------------------------------------------- reconstruct


@pytest.fixture(scope="module")
def reconstructed(model: AnyAutoencoder, crop: Image.Image) -> list[reconstruct.Result]:
    return results(lambda job: reconstruct.reconstruct(job, model, crop, 2, 0))


def test_the_picture_comes_first_then_the_bits_then_each_codec(reconstructed: list[reconstruct.Result]) -> None:
    assert [result.bits is None for result in reconstructed] == [True, False, False, False]
    assert [len(result.codecs) for result in reconstructed] == [0, 0, 1, 2]


def test_the_figures_are_those_of_the_pictures(reconstructed: list[reconstruct.Result], crop: Image.Image) -> None:
    last = reconstructed[-1]
    assert last.original.size == last.again.size == last.error.size == crop.size
    difference = np.asarray(crop).astype(float) - np.asarray(last.again)
    assert last.psnr == pytest.approx(10 * math.log10(255**2 / np.square(difference).mean()))
    assert 18 < last.psnr < 40  # of a trained model
    for codec in last.codecs:
        assert codec.fits and codec.bits <= last.bits  # type: ignore[operator]
        difference = np.asarray(crop).astype(float) - np.asarray(codec.image)
        assert codec.psnr == pytest.approx(10 * math.log10(255**2 / np.square(difference).mean()))


def test_bits_and_psnr_are_near_those_of_the_command_line(
    reconstructed: list[reconstruct.Result], crop: Image.Image, tmp_path: Path
) -> None:
    crop.save(tmp_path / "crop.png")
    words = ["reconstruct", str(tmp_path / "crop.png"), "-o", str(tmp_path / "out"), "--steps", "2", "--json"]
    done = CliRunner().invoke(app, words)
    (row,) = json.loads(done.stdout)["results"]
    last = reconstructed[-1]
    assert last.bits / last.pixels == pytest.approx(row["bits_per_pixel"], rel=0.1)  # type: ignore[operator]
    assert last.psnr == pytest.approx(row["psnr"], abs=0.3)  # other noise


def test_another_seed_gives_another_picture_and_the_same_seed_the_same(
    model: AnyAutoencoder, crop: Image.Image, reconstructed: list[reconstruct.Result]
) -> None:
    again, other = (results(lambda job, s=s: reconstruct.reconstruct(job, model, crop, 2, s))[0].again for s in (0, 1))
    np.testing.assert_array_equal(np.asarray(again), np.asarray(reconstructed[0].again))
    assert (np.asarray(other) != np.asarray(again)).any()


def test_a_picture_of_one_pixel_works_and_no_codec_file_is_small_enough(model: AnyAutoencoder) -> None:
    last = results(lambda job: reconstruct.reconstruct(job, model, Image.new("RGB", (1, 1), "teal"), 1, 0))[-1]
    assert last.again.size == (1, 1)
    assert [codec.fits for codec in last.codecs] == [False, False]
    assert "its smallest file" in reconstruct.label_of(last.codecs[0], last.pixels)


def test_the_decoder_before_distillation_is_another_one_with_the_same_latents(
    models: Models, distilled: str, crop: Image.Image
) -> None:
    assert models.is_distilled(distilled) and not models.is_distilled(IMAGE_MODEL)
    both = [models.autoencoder(distilled, teacher) for teacher in (False, True)]
    shown = [results(lambda job, m=m: reconstruct.reconstruct(job, m, crop, 1, 0))[0] for m in both]
    assert (np.asarray(shown[0].again) != np.asarray(shown[1].again)).any()


def test_without_a_prior_the_bits_are_nominal(models: Models, distilled: str, crop: Image.Image) -> None:
    last = results(lambda job: reconstruct.reconstruct(job, models.autoencoder(distilled), crop, 1, 0))[-1]
    assert not last.is_bound and "nominal" in reconstruct.figures_of(last)


def test_an_error_map_is_black_where_nothing_is_wrong() -> None:
    pixels = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    wrong = pixels.clone()
    wrong[:, 0, 0] = 200
    found = np.asarray(pictures.error_map(pixels, wrong)).astype(int).sum(-1)
    assert found[0, 0] > 400 and (found[1:] < 20).all()


def test_each_channel_is_a_picture_of_its_values() -> None:
    sheet = np.asarray(pictures.channel_grid(torch.stack([torch.full((2, 3), v) for v in (-3.0, 0.0, 3.0)]), side=6))
    assert sheet.shape == (2 * 2 + 2, 3 * 2 + 2)
    assert (sheet[0, 0], sheet[0, -1], sheet[-1, 0], sheet[-1, -1]) == (0, 128, 255, 255)


# ---------------------------------------------------------------- interpolate


def edited(model: AnyAutoencoder, first: Image.Image, second: Image.Image, **how: Any) -> interpolate.Edited:
    settings = {"mix": 0.0, "extra_noise": 0.0, "uses_prior": False, "steps": 1, "seed": 0, **how}
    (result,) = results(lambda job: interpolate.edit(job, model, first, second, Edit(**settings)))
    assert isinstance(result, interpolate.Edited)
    return result


def psnr(a: Image.Image, b: Image.Image) -> float:
    return reconstruct.psnr_of(frame_to_uint8(a), frame_to_uint8(b))


def test_the_ends_of_the_mix_are_the_two_pictures(model: AnyAutoencoder, crop: Image.Image) -> None:
    other = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for mix, near in ((0.0, crop), (1.0, other)):
        result = edited(model, crop, other, mix=mix)
        assert psnr(result.picture, near) > 20
        np.testing.assert_array_equal(np.asarray(result.pixels), np.asarray(near))


def test_the_middle_is_neither_and_the_second_picture_gets_the_size_of_the_first(
    model: AnyAutoencoder, crop: Image.Image
) -> None:
    other = read_image(PHOTO).resize((40, 90))
    result = edited(model, crop, other, mix=0.5)
    assert result.picture.size == result.pixels.size == crop.size
    assert psnr(result.picture, crop) < psnr(edited(model, crop, other).picture, crop) - 3


def test_extra_noise_hurts_and_the_prior_takes_it_away(model: AnyAutoencoder, crop: Image.Image) -> None:
    clean, noisy, denoised = (
        psnr(edited(model, crop, crop, extra_noise=noise, uses_prior=prior).picture, crop)
        for noise, prior in ((0.0, False), (3.0, False), (3.0, True))
    )
    assert noisy < clean - 3
    assert noisy + 1 < denoised < clean


def test_noise_that_no_prior_can_take_away_is_refused(models: Models, distilled: str, crop: Image.Image) -> None:
    with pytest.raises(UploadError, match="has no prior"):
        edited(models.autoencoder(distilled), crop, crop, extra_noise=1.0, uses_prior=True)


# ---------------------------------------------------------------- generate


def test_the_grid_fills_row_by_row_and_ends_with_the_images_of_the_command_line(models: Models, tmp_path: Path) -> None:
    order = generate.Order(label=7, prompt=None, guidance=2.0, steps=3, number=6, seed=5)
    sheets = results(lambda job: generate.generate(job, models.pipeline(PIPELINE), order))
    assert len(sheets) == 2  # rows of three
    grey = [int((np.asarray(sheet) == generate.EMPTY).all(-1).sum()) for sheet in sheets]
    assert grey[0] >= 3 * 256**2 > grey[1]
    words = ["--class", "sneaker", "--num", "6", "--steps", "3", "--guidance", "2", "--seed", "5", "--batch-size", "3"]
    CliRunner().invoke(app, ["generate", *words, "-o", str(tmp_path / "out")])
    files = sorted((tmp_path / "out").glob("*.png"))
    expected = pictures.grid([pictures.enlarged(Image.open(path).convert("RGB"), 256) for path in files], 3)
    np.testing.assert_array_equal(np.asarray(sheets[-1]), np.asarray(expected))


def test_a_stopped_sampling_calls_the_base_model_no_more(models: Models) -> None:
    pipeline, calls = models.pipeline(PIPELINE), []
    handle = pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    order = generate.Order(label=None, prompt=None, guidance=1.0, steps=100, number=36, seed=0)
    steps = follow(lambda job: generate.generate(job, pipeline, order))
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    list(follow(Job.check))  # begins when the other job has ended
    handle.remove()
    assert len(calls) < 300


def test_prompts_reach_the_pipeline(models: Models, prompted: str) -> None:
    assert models.takes_prompts(prompted) and not models.takes_prompts(PIPELINE)
    orders = [generate.Order(None, prompt, 1.0, 2, 1, 0) for prompt in ("a red car", "a", "a")]
    sheets = [
        np.asarray(results(lambda job, o=o: generate.generate(job, models.pipeline(prompted), o))[0]) for o in orders
    ]
    np.testing.assert_array_equal(sheets[1], sheets[2])
    assert (sheets[0] != sheets[1]).any()


def test_a_prompt_of_10_000_characters_is_refused_in_one_sentence() -> None:
    with pytest.raises(UploadError, match=r"^A prompt can have at most 2,000 characters; this one has 10,000\.$"):
        generate.read_prompt("a" * 10_000)
    assert generate.read_prompt("  \n ") is None
    assert generate.read_prompt(" a car ") == "a car"


# ---------------------------------------------------------------- video


def test_a_clip_has_the_figures_of_the_command_line(models: Models, tmp_path: Path) -> None:
    clip = pan_over(PHOTO, 64, 9)
    with VideoWriter(tmp_path / "clip.mp4", clip.fps, crf=0) as writer:
        for frame in clip.frames:
            writer.write(frame)
    model, side_by_side = models.autoencoder(VIDEO_MODEL), tmp_path / "both.mp4"
    read = read_clip(Upload(tmp_path / "clip.mp4", "clip.mp4"), 64, 9)
    first, last = results(lambda job: video.reconstruct(job, model, read, 1, 0, side_by_side))
    assert first.bits is None and first.figures == last.figures
    done = CliRunner().invoke(
        app, ["reconstruct", str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "out"), "--json", "--steps", "1"]
    )
    (row,) = json.loads(done.stdout)["results"]
    assert last.figures.flicker == pytest.approx(row["flicker"], abs=1e-4)
    assert last.figures.mean_psnr == pytest.approx(row["mean_psnr"], abs=1e-2)
    assert last.bits / (9 * 64 * 48) == pytest.approx(row["bits_per_pixel"], rel=1e-3)
    assert count_frames(side_by_side) == 9
    assert probe(side_by_side)[:2] == (2 * 6 * 64 + 4, 6 * 48)


# ---------------------------------------------------------------- models and sentences


def test_models_are_sorted_by_what_they_are_for(distilled: str, prompted: str) -> None:
    offered = offered_models([distilled, prompted])
    assert offered[Kind.images][0] == distilled and IMAGE_MODEL in offered[Kind.images]
    assert offered[Kind.generator][0] == prompted and PIPELINE in offered[Kind.generator]
    assert VIDEO_MODEL in offered[Kind.videos]


def test_what_is_no_model_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match="must be a UnifiedLatentsAutoencoder or a pipeline"):
        kind_of(str(tmp_path))


def test_classes_have_names_or_numbers(models: Models, prompted: str) -> None:
    assert models.classes(PIPELINE)[7] == "7-sneaker"
    assert models.classes(prompted) == []


def test_an_error_of_the_program_shows_no_details_but_logs_them(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = panel.sentence_of(KeyError("secret"))
    assert "secret" not in sentence and sentence.endswith("log has the details.")
    assert "secret" in capsys.readouterr().err


def test_too_little_memory_is_said() -> None:
    assert "not enough memory" in panel.sentence_of(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
