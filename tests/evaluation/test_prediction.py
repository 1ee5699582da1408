"""Predicted frames, compared with those that came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.evaluation.conftest import moved
from ul_tokenizer import UnifiedLatentsTransformer
from ul_tokenizer.evaluation.drawing import Sampling
from ul_tokenizer.evaluation.job import evaluate_prediction, open_evaluation_samples
from ul_tokenizer.evaluation.measures import metrics
from ul_tokenizer.evaluation.prediction import PredictionSubject
from ul_tokenizer.evaluation.results import check_result, read_result
from ul_tokenizer.evaluation.samples import Crops
from ul_tokenizer.media.videos import VideoWriter
from ul_tokenizer.models.presets import build_autoencoder
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler

SIDE, FRAMES, GIVEN = 16, 12, 5
QUICK = Sampling(num_inference_steps=1)


class Means:
    """Features of an image: its mean colours."""

    name, dim, metric = "means", 3, "FD-means"

    def facts(self) -> dict[str, Any]:
        return {"name": self.name, "weights_sha256": "0"}

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3)) / 255


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ul_tokenizer.evaluation.reference_features.CACHE", tmp_path / "features")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of two clips each, in which a pattern moves."""
    folder, random = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for number in range(3):
        picture = random.integers(0, 256, (4, 4, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
        with VideoWriter(folder / f"{number}.mp4", 10.0) as writer:
            for shift in range(2 * FRAMES):
                writer.write(np.roll(picture, shift, 1))
    return folder


def make_pipeline(context_conditioning: bool = True) -> UnifiedLatentsPipeline:
    torch.manual_seed(0)
    transformer = UnifiedLatentsTransformer(
        4, (32,), (1,), 16, 16, context_conditioning=context_conditioning, sample_size=2
    )
    vae = build_autoencoder("ul-tiny-f8", {"temporal_compression_ratio": 4})
    return UnifiedLatentsPipeline(moved(transformer), LogSNRScheduler(), moved(vae))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_pipeline().save_pretrained(folder)
    return folder


def measure(videos: Path, model: Path, given: int = GIVEN, **options: Any) -> dict[str, Any]:
    defaults = {"sampling": QUICK, "features": [Means()], "lpips": None, "batch_size": 4, "device": "cpu"}
    return evaluate_prediction(videos, str(model), given_frames=given, **{**defaults, "clip_frames": FRAMES, **options})


def clips_of(videos: Path) -> Tensor:
    samples = open_evaluation_samples(videos, Crops(), {"clip_frames": FRAMES})
    return torch.stack([samples.read(number).pixels for number in range(len(samples))])


def continued(model: Path, clips: Tensor, **settings: Any) -> Tensor:
    pipeline = UnifiedLatentsPipeline.from_pretrained(model)
    subject = PredictionSubject("x", pipeline, GIVEN, num_inference_steps=1, **settings)
    batches = torch.arange(len(clips)).split(4)
    return torch.cat([subject.reconstruct(clips[numbers], numbers.tolist()).pixels for numbers in batches])


def test_only_predicted_frames_count(videos: Path, model: Path) -> None:
    """Seven frames are predicted, which is no multiple of the four frames of a latent."""
    result = measure(videos, model)
    check_result(result)
    clips = clips_of(videos)
    again = continued(model, clips)
    assert again.shape == clips.shape == (6, 3, FRAMES, SIDE, SIDE)
    assert torch.equal(again[:, :, :GIVEN], clips[:, :, :GIVEN])
    mse = (again.double() - clips.double())[:, :, GIVEN:].square().mean((1, 3, 4))  # (B, T)
    found = result["metrics"]
    assert found["psnr_of_mean_mse"]["value"] == pytest.approx(float(metrics.psnr(mse.mean())))
    assert found["mean_psnr"]["value"] == pytest.approx(float(metrics.psnr(mse).mean()))
    assert found["psnr_per_frame"]["value"] == pytest.approx(metrics.psnr(mse.mean(0)).tolist())
    assert len(found["psnr_per_frame"]["value"]) == FRAMES - GIVEN
    change = clips[:, :, GIVEN:].double().diff(dim=2).abs().mean() / 255
    assert found["source_change"]["value"] == pytest.approx(float(change))
    assert "bits_per_pixel" not in found
    assert (result["kind"], result["subject"]["given_frames"]) == ("prediction", GIVEN)
    assert result["protocol"]["first_frame"] == GIVEN
    assert result["distances"]["means-clips"]["frechet"]["name"] == "FD-means over clips"


def test_a_prediction_depends_on_the_given_frames_and_the_clips_number_alone(videos: Path, model: Path) -> None:
    clips = clips_of(videos)
    whole = continued(model, clips)
    pipeline = UnifiedLatentsPipeline.from_pretrained(model)
    alone = PredictionSubject("x", pipeline, GIVEN, num_inference_steps=1).reconstruct(clips[2:3], [2]).pixels
    assert (alone.int() - whole[2:3].int()).abs().max() <= 1  # 8-bit values at the edge of rounding
    other = clips.clone()
    other[:, :, GIVEN:] = 0
    assert torch.equal(continued(model, other), whole)
    other[:, :, :GIVEN] = 0
    assert not torch.equal(continued(model, other)[:, :, GIVEN:], whole[:, :, GIVEN:])
    assert not torch.equal(continued(model, clips, seed=1), whole)


def test_an_exact_prediction_has_an_infinite_psnr_which_is_null(
    videos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = PredictionSubject.reconstruct
    monkeypatch.setattr(PredictionSubject, "reconstruct", lambda *words: whole(*words)._replace(pixels=words[1]))
    result = measure(videos, model, output=tmp_path)
    (path,) = tmp_path.glob("*.json")
    assert read_result(path) == result
    found = result["metrics"]
    assert (found["psnr_of_mean_mse"]["value"], found["mean_psnr"]["value"]) == (None, None)
    assert found["psnr_per_frame"]["value"] == [None] * (FRAMES - GIVEN)
    assert (found["ssim"]["value"], found["flicker"]["value"]) == (1, 0)
    assert result["nonfinite"] == []


def test_predictions_that_are_not_finite_are_named(videos: Path, tmp_path: Path) -> None:
    broken = make_pipeline()
    broken.vae.decoder.conv_out.bias.data.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "broken")
    result = measure(videos, tmp_path / "broken")
    assert len(result["nonfinite"]) == 6
    assert result["metrics"]["mean_psnr"]["value"] is None
    assert "not finite" in result["metrics"]["mean_psnr"]["reason"]


def test_a_second_run_predicts_nothing_and_other_settings_are_another_result(
    videos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure(videos, model, output=tmp_path)
    measure(videos, model, output=tmp_path, given=8)
    measure(videos, model, output=tmp_path, sampling=Sampling(num_inference_steps=1, seed=1))
    assert len(list(tmp_path.glob("*.json"))) == 3
    monkeypatch.setattr(PredictionSubject, "reconstruct", None)
    assert measure(videos, model, output=tmp_path) == first


@pytest.mark.parametrize("given", [0, FRAMES, FRAMES + 1])
def test_there_must_be_given_frames_and_some_to_predict(videos: Path, model: Path, given: int) -> None:
    with pytest.raises(ValueError, match=f"given_frames must be from 1 to below clip_frames, got {given} and {FRAMES}"):
        measure(videos, model, given)
    with pytest.raises(ValueError, match="given_frames must be from 1 to below clip_frames, got 5 and None"):
        measure(videos, model, clip_frames=None)


def test_a_model_that_takes_no_given_frames_is_refused(videos: Path, tmp_path: Path) -> None:
    make_pipeline(context_conditioning=False).save_pretrained(tmp_path / "free")
    with pytest.raises(ValueError, match="context"):
        measure(videos, tmp_path / "free")
