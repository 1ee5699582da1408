"""Drawing images in a stated way."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from tests.evaluation.conftest import SIDE, make_pipeline
from ul_tokenizer.evaluation.drawing import Drawer, Sampling, clean_estimate, sample_generators
from ul_tokenizer.media.pixels import to_uint8
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.randomness import EvaluationStream
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler

QUICK = Sampling(num_images=7, num_inference_steps=2)


def quick(**changes: Any) -> Sampling:
    return dataclasses.replace(QUICK, **changes)


def draw(pipeline: UnifiedLatentsPipeline, batch_size: int = 7, classes: int = 3, **changes: Any) -> torch.Tensor:
    drawer = Drawer(pipeline, quick(**changes), (SIDE, SIDE), classes)
    batches = [range(first, min(first + batch_size, 7)) for first in range(0, 7, batch_size)]
    return torch.cat([drawer.draw(numbers)[0] for numbers in batches])


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
def test_images_do_not_depend_on_the_batch_size(pipeline: UnifiedLatentsPipeline, solver: str, decode: str) -> None:
    one, many = (draw(pipeline, batch_size=b, solver=solver, decode=decode) for b in (3, 7))
    assert one.shape == (7, 3, SIDE, SIDE)
    assert (one.int() - many.int()).abs().max() <= 1  # 8-bit values at the edge of rounding


def test_every_choice_of_how_to_draw_changes_the_images(pipeline: UnifiedLatentsPipeline) -> None:
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
    drawn = [draw(pipeline, **choice) for choice in choices]
    same = [(i, j) for i, a in enumerate(drawn) for j, b in enumerate(drawn) if i < j and torch.equal(a, b)]
    assert same == []


def test_z0_is_decoded_as_the_pipeline_does(pipeline: UnifiedLatentsPipeline) -> None:
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
    asked = Drawer(pipeline, QUICK, (SIDE, SIDE), 3).labels(range(7))
    assert asked is not None and torch.equal(asked, labels)
    assert torch.equal(draw(pipeline), to_uint8(2 * images - 1))


def test_the_clean_estimate_is_decoded_with_the_noise_that_z0_gets(
    pipeline: UnifiedLatentsPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ul_tokenizer.evaluation.drawing.clean_estimate", lambda _, z_0, *__: z_0)
    assert torch.equal(draw(pipeline, decode="clean"), draw(pipeline, decode="z0"))


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


def test_the_pipeline_is_left_as_it_was() -> None:
    pipeline = make_pipeline()
    pipeline.set_progress_bar_config(desc="mine")
    scheduler = pipeline.scheduler
    draw(pipeline)
    drawer = Drawer(pipeline, QUICK, (SIDE, SIDE), 3)
    drawer.size = (17, 17)
    with pytest.raises(ValueError, match="height"):
        drawer.draw([0])
    assert pipeline.scheduler is scheduler
    assert pipeline._progress_bar_config == {"desc": "mine"}


def test_images_that_are_not_finite_are_told() -> None:
    pipeline = make_pipeline()
    pipeline.vae.decoder.conv_out.bias.data.fill_(torch.nan)
    assert not Drawer(pipeline, QUICK, (SIDE, SIDE), 3).draw([0, 1])[1].any()


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


def test_what_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="data's 3 classes, got one of 5"):
        draw(make_pipeline(num_classes=5))
    with pytest.raises(ValueError, match="guidance_scale must be 1 where no class and no text is asked for, got 2"):
        draw(make_pipeline(num_classes=None), guidance_scale=2.0)
    with pytest.raises(
        ValueError, match=r"size must be a multiple of 8 pixels on both sides for this model, got 16×12"
    ):
        Drawer(make_pipeline(), QUICK, (16, 12), 3)
    assert draw(make_pipeline(num_classes=5), classes=0).shape == (7, 3, SIDE, SIDE)  # data without classes


def test_another_autoencoder_can_draw_but_has_no_clean_estimate_to_compare() -> None:
    pipeline = make_pipeline()
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()
    other = UnifiedLatentsPipeline(transformer=pipeline.transformer, scheduler=pipeline.scheduler, vae=vae)
    assert draw(other).shape == (7, 3, SIDE, SIDE)
    with pytest.raises(ValueError, match="decode must be z0 for a AutoencoderKL, got 'clean'"):
        draw(other, decode="clean")
