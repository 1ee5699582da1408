"""Drawing and judging images."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from tests.evaluation.conftest import SIDE, make_pipeline
from ul_tokenizer.evaluation.classifier import Judgement
from ul_tokenizer.evaluation.generation import (
    Sampling,
    clean_estimate,
    draw_images,
    evaluate_generation,
    sample_generators,
)
from ul_tokenizer.evaluation.labelled_images import to_stored
from ul_tokenizer.evaluation.reference import Reference
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.randomness import EvaluationStream
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler

QUICK = Sampling(num_images=7, num_inference_steps=2)


def quick(**changes: Any) -> Sampling:
    return dataclasses.replace(QUICK, **changes)


def draw(pipeline: UnifiedLatentsPipeline, reference: Reference, batch_size: int = 7, **changes: Any) -> torch.Tensor:
    return draw_images(pipeline, reference, quick(**changes), batch_size)[0]


def test_a_samples_generator_depends_on_seed_stream_and_number_alone() -> None:
    def first_draws(seed: int, stream: EvaluationStream, rows: range) -> list[float]:
        return [float(torch.rand(1, generator=g)) for g in sample_generators(seed, stream, rows)]

    together = first_draws(0, EvaluationStream.GENERATION, range(6))
    assert first_draws(0, EvaluationStream.GENERATION, range(4, 6)) == together[4:]
    others = (
        together
        + first_draws(1, EvaluationStream.GENERATION, range(6))
        + first_draws(0, EvaluationStream.RECONSTRUCTION, range(6))
    )
    assert len(set(others)) == 18


@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++", "ddpm"])
@pytest.mark.parametrize("decode", ["z0", "clean"])
def test_images_do_not_depend_on_the_batch_size(
    pipeline: UnifiedLatentsPipeline, reference: Reference, solver: str, decode: str
) -> None:
    one, many = (draw(pipeline, reference, batch_size=b, solver=solver, decode=decode) for b in (3, 7))
    assert one.shape == (7, 3, SIDE, SIDE)
    assert (one.int() - many.int()).abs().max() <= 1  # 8-bit values at the edge of rounding


def test_every_choice_of_how_to_draw_changes_the_images(pipeline: UnifiedLatentsPipeline, reference: Reference) -> None:
    choices: list[dict[str, Any]] = [
        {},
        {"solver": "ddpm"},
        {"num_inference_steps": 3, "solver": "dpmsolver++"},
        {"num_inference_steps": 3},
        {"decoder_num_inference_steps": 2},
        {"guidance_scale": 3.0},
        {"guidance_scale": 3.0, "guidance_interval": (-20.0, -8.0)},
        {"unconditional": True},
        {"decode": "clean"},
        {"decode": "scaled-clean"},
        {"seed": 1},
    ]
    drawn = [draw(pipeline, reference, **choice) for choice in choices]
    same = [(i, j) for i, a in enumerate(drawn) for j, b in enumerate(drawn) if i < j and torch.equal(a, b)]
    assert same == []


def test_z0_is_decoded_as_the_pipeline_does(pipeline: UnifiedLatentsPipeline, reference: Reference) -> None:
    labels = torch.arange(7) % 3
    scheduler, pipeline.scheduler = pipeline.scheduler, LogSNRScheduler(algorithm_type="ddim")
    images: Any = pipeline(
        class_labels=labels,
        height=SIDE,
        width=SIDE,
        num_inference_steps=2,
        generator=sample_generators(0, EvaluationStream.GENERATION, range(7)),
        output_type="pt",
        return_dict=False,
    )[0]
    pipeline.scheduler = scheduler
    drawn, asked = draw_images(pipeline, reference, QUICK)
    assert asked is not None and torch.equal(asked, labels)
    assert torch.equal(drawn, to_stored(2 * images - 1, grey=False))


def test_the_clean_estimate_is_decoded_with_the_noise_that_z0_gets(
    pipeline: UnifiedLatentsPipeline, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ul_tokenizer.evaluation.generation.clean_estimate", lambda _, z_0, __: z_0)
    assert torch.equal(draw(pipeline, reference, decode="clean"), draw(pipeline, reference, decode="z0"))


def test_the_clean_estimate_of_a_perfect_model_is_the_clean_latent(
    pipeline: UnifiedLatentsPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = LogSNRScheduler()
    clean, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
    level = torch.tensor(5.0)
    v = scheduler.get_velocity(clean, noise, level)
    monkeypatch.setattr(pipeline.transformer, "forward", lambda *_, **__: (v,))
    z_0 = scheduler.add_noise(clean, noise, level)
    assert torch.allclose(clean_estimate(pipeline, z_0, torch.tensor([0, 1, 2])), clean, atol=1e-6)


def test_the_pipeline_is_left_as_it_was(reference: Reference) -> None:
    pipeline = make_pipeline()
    pipeline.set_progress_bar_config(desc="mine")
    scheduler = pipeline.scheduler
    draw(pipeline, reference)
    with pytest.raises(ValueError, match="height"):
        draw(pipeline, dataclasses.replace(reference, image_shape=(3, 17, 17)))
    assert pipeline.scheduler is scheduler
    assert pipeline._progress_bar_config == {"desc": "mine"}


def test_grey_data_is_compared_in_grey(pipeline: UnifiedLatentsPipeline, reference: Reference) -> None:
    grey = dataclasses.replace(reference, image_shape=(1, SIDE, SIDE))
    assert draw(pipeline, grey).shape == (7, 1, SIDE, SIDE)


def test_figures_fit_one_another(pipeline: UnifiedLatentsPipeline, reference: Reference) -> None:
    quality = evaluate_generation(pipeline, reference, quick(num_images=30))
    assert quality.ratio == quality.frechet_distance / quality.floor
    assert quality.floor == reference.floor(30) > reference.floor() == quality.floor_of_all
    assert quality.images_per_second == pytest.approx(30 / quality.seconds)
    assert quality.real_accuracy == 1.0
    assert quality.frechet_distance > 10 * quality.floor  # the weights are random


def test_accuracy_is_that_of_the_class_asked_for(
    pipeline: UnifiedLatentsPipeline, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.randn(7, 128)
    judged = Judgement(features, torch.tensor([0, 1, 2, 0, 1, 1, 1]))  # asked for: 0 1 2 0 1 2 0
    monkeypatch.setattr("ul_tokenizer.evaluation.generation.judge", lambda *_: judged)
    assert evaluate_generation(pipeline, reference, QUICK).accuracy == 5 / 7


def test_a_model_without_classes_has_a_distance_and_no_accuracy(reference: Reference) -> None:
    quality = evaluate_generation(make_pipeline(num_classes=None), reference, QUICK)
    assert quality.accuracy is None
    assert quality.frechet_distance > 0


def test_images_that_are_not_finite_are_no_pictures(reference: Reference) -> None:
    pipeline = make_pipeline()
    pipeline.vae.decoder.conv_out.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="pipeline must draw finite images"):
        draw(pipeline, reference)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_images": 1}, "num_images must be at least 2, got 1"),
        ({"solver": "euler"}, r"solver must be one of ddim, ddpm, dpmsolver\+\+, got 'euler'"),
        ({"decode": "z1"}, "decode must be one of z0, clean, scaled-clean, got 'z1'"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"decoder_num_inference_steps": 0}, "decoder_num_inference_steps must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_interval": (3.0, -3.0)}, "guidance_interval"),
    ],
)
def test_bad_ways_of_drawing_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        quick(**changes)


def test_what_does_not_fit_the_model_is_refused(reference: Reference) -> None:
    with pytest.raises(ValueError, match="data's 3 classes, got one of 5"):
        draw(make_pipeline(num_classes=5), reference)
    with pytest.raises(ValueError, match="guidance_scale must be 1 where no class is asked for, got 2"):
        draw(make_pipeline(num_classes=None), reference, guidance_scale=2.0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        draw(make_pipeline(), reference, batch_size=0)


def test_another_autoencoder_can_draw_but_has_no_clean_estimate_to_compare(reference: Reference) -> None:
    pipeline = make_pipeline()
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()
    other = UnifiedLatentsPipeline(transformer=pipeline.transformer, scheduler=pipeline.scheduler, vae=vae)
    assert draw(other, reference).shape == (7, 3, SIDE, SIDE)
    with pytest.raises(ValueError, match="decode must be z0 for a AutoencoderKL, got 'clean'"):
        draw(other, reference, decode="clean")
