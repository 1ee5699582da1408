"""Base models of clips: what they learn of a motion whose future is known, and what the pipeline makes of frames."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ul_tokenizer import (
    LogSNRScheduler,
    UnifiedLatentsAutoencoder,
    UnifiedLatentsPipeline,
    UnifiedLatentsTransformer,
)
from ul_tokenizer.latents.manifest import make_header
from ul_tokenizer.latents.writer import LatentWriter
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.training.command import run_command

ROOT = Path(__file__).parents[2]
SIDE, FRAMES, GIVEN = 4, 4, 2
DIRECTIONS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def moving_dots(count: int, seed: int) -> Tensor:
    """Latent clips (N, 4, t, h, w): a spot that goes one position a frame, and comes in again on the other side."""
    random = torch.Generator().manual_seed(seed)
    clips = torch.zeros(count, 4, FRAMES, SIDE, SIDE)
    for clip in clips:
        row, column = torch.randint(SIDE, (2,), generator=random).tolist()
        down, right = DIRECTIONS[int(torch.randint(4, (1,), generator=random))]
        for k in range(FRAMES):
            clip[:, k, (row + k * down) % SIDE, (column + k * right) % SIDE] = 1.0
    return clips


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "vae"
    torch.manual_seed(0)
    build_autoencoder("ul-tiny-f8", {"temporal_compression_ratio": 4}).save_pretrained(folder)
    build_prior("ul-tiny-f8").save_pretrained(folder / "prior")
    return folder


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents") / "dots"
    header = make_header(latent_channels=4, latent_logsnr=5.0, dtype="float32")
    with LatentWriter(folder, header) as writer:
        writer.append([f"{n}" for n in range(600)], moving_dots(600, seed=0))
    return folder


def arguments(autoencoder: Path, latents: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "pretrained_autoencoder": autoencoder,
        "latent_dataset": latents,
        "output_dir": out,
        "preset": "ul-base-tiny",
        "resolution": 8 * SIDE,
        "train_batch_size": 16,
        "max_train_steps": 2,
        "num_validation_images": 8,
        "validation_inference_steps": 2,
        "num_context_latents": GIVEN,
        "lr_warmup_steps": 0,
        **changes,
    }


@pytest.mark.slow
def test_the_future_of_a_known_motion_is_learned(
    autoencoder: Path, latents: Path, tmp_path: Path, flags: Callable[..., list[str]]
) -> None:
    base = {"block_out_channels": [64], "num_layers": [3], "attention_head_dim": 16, "embedding_channels": 32}
    # A negative bias: where the spot shall go is decided at noisy levels, which have little weight else.
    changes = {"max_train_steps": 500, "learning_rate": 2e-3, "lr_warmup_steps": 100, "lr_scheduler": "linear"}
    changes |= {"train_batch_size": 32, "sigmoid_bias": -3.0, "context_dropout": 0.0, "ema_decay": 0.99}
    changes["base_config"] = base
    assert run_command("base", flags(**arguments(autoencoder, latents, tmp_path / "run", **changes))) == 0
    pipeline = UnifiedLatentsPipeline.from_pretrained(tmp_path / "run")
    assert pipeline.transformer.config.sample_frames == FRAMES
    truth = moving_dots(48, seed=1)
    (made,) = pipeline(
        context_latents=truth[:, :, :GIVEN],
        num_images_per_prompt=48,
        num_inference_steps=12,
        output_type="latent",
        generator=[torch.Generator().manual_seed(n) for n in range(48)],
        return_dict=False,
    )
    assert made.shape == truth.shape
    guessed, right = (clip[:, :, GIVEN:].mean(1).flatten(2).argmax(-1) for clip in (made, truth))
    standing = truth[:, :, GIVEN - 1 : GIVEN].mean(1).flatten(2).argmax(-1)
    assert (guessed == right).float().mean() > 0.35  # by chance it would be 1/16
    assert (standing == right).float().mean() < 0.1  # what "nothing moves" would score


def test_clips_without_given_frames_and_images_are_trained_alike(
    autoencoder: Path, latents: Path, tmp_path: Path, flags: Callable[..., list[str]]
) -> None:
    assert run_command("base", flags(**arguments(autoencoder, latents, tmp_path / "run", num_context_latents=0))) == 0
    pipeline = UnifiedLatentsPipeline.from_pretrained(tmp_path / "run")
    assert not pipeline.transformer.config.context_conditioning
    output: Any = pipeline(num_inference_steps=1, output_type="pt")
    assert output.frames is output.images
    assert output.frames.shape == (1, 4 * FRAMES, 3, 8 * SIDE, 8 * SIDE)


@pytest.mark.parametrize(("given", "expected"), [(FRAMES, "needs a --latent_dataset of clips"), (9, "got clips of 4")])
def test_more_given_than_there_is_is_refused(
    autoencoder: Path,
    latents: Path,
    tmp_path: Path,
    flags: Callable[..., list[str]],
    given: int,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = flags(**arguments(autoencoder, latents, tmp_path / "run", num_context_latents=given))
    assert run_command("base", words) == 1
    assert expected in capsys.readouterr().err


# ---------------------------------------------------------------- the pipeline


@pytest.fixture(scope="module")
def pipeline(autoencoder: Path) -> UnifiedLatentsPipeline:
    torch.manual_seed(0)
    transformer = UnifiedLatentsTransformer(
        4, (32,), (2,), 16, 16, context_conditioning=True, sample_size=2, num_class_embeds=3
    ).eval()
    for parameter in transformer.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return UnifiedLatentsPipeline(
        transformer, LogSNRScheduler(), UnifiedLatentsAutoencoder.from_pretrained(autoencoder)
    )


def generate(pipeline: UnifiedLatentsPipeline, **arguments: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    return pipeline(num_inference_steps=2, generator=generator, return_dict=False, **arguments)[0]


def test_frames_come_in_the_forms_of_video_pipelines(pipeline: UnifiedLatentsPipeline) -> None:
    assert generate(pipeline, num_frames=6, output_type="pt").shape == (1, 6, 3, 16, 16)
    assert generate(pipeline, num_frames=6, output_type="np").shape == (1, 6, 16, 16, 3)
    assert generate(pipeline, num_frames=6, output_type="latent").shape == (1, 4, 2, 2, 2)
    (clip,) = generate(pipeline, num_frames=6)
    assert [frame.size for frame in clip] == [(16, 16)] * 6
    assert generate(pipeline, output_type="pt").shape == (1, 3, 16, 16)  # trained on images: an image


def test_given_frames_begin_the_result_and_matter(pipeline: UnifiedLatentsPipeline) -> None:
    frames = [torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1)]
    one, other = (generate(pipeline, context_frames=x, num_frames=8, output_type="latent") for x in frames)
    assert one.shape == (1, 4, 2 + 2, 2, 2)
    assert not torch.allclose(one[:, :, 2:], other[:, :, 2:])
    latents = pipeline.vae.encode(frames[0]).latent
    assert torch.equal(generate(pipeline, context_latents=latents, num_frames=8, output_type="latent"), one)
    assert generate(pipeline, context_frames=frames[0], num_frames=8, output_type="pt").shape == (1, 13, 3, 16, 16)
    guided = generate(
        pipeline, context_frames=frames[0], num_frames=8, class_labels=[1], guidance_scale=2.0, output_type="pt"
    )
    assert guided.shape == (1, 13, 3, 16, 16)


def test_what_does_not_fit_is_one_sentence(pipeline: UnifiedLatentsPipeline) -> None:
    frames, latents = torch.zeros(1, 3, 5, 16, 16), torch.zeros(1, 4, 2, 2, 2)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"num_frames": 0}, "num_frames must be a whole number of at least 1"),
        ({"num_frames": 6, "context_frames": frames}, "must be a multiple of 4 after given frames, got 6"),
        ({"context_frames": frames, "context_latents": latents}, "exclude each other"),
        ({"context_frames": frames[:, :, 0]}, "context_frames must be floats"),
        ({"context_latents": latents, "num_images_per_prompt": 2}, "must be 2 clips"),
    ]
    for arguments, expected in cases:
        with pytest.raises(ValueError, match=expected):
            generate(pipeline, **arguments)


# ---------------------------------------------------------------- steps without context


@pytest.mark.multiprocess
def test_steps_without_context_are_the_same_on_two_processes(
    autoencoder: Path, latents: Path, tmp_path: Path, flags: Callable[..., list[str]]
) -> None:
    """DDP waits for a gradient of every weight, also of those that read the context."""
    changes = {"context_dropout": 0.5, "max_train_steps": 8, "logging_steps": 1, "adam_epsilon": 1e-2}
    assert run_command("base", flags(**arguments(autoencoder, latents, tmp_path / "a", **changes))) == 0
    words = flags(**arguments(autoencoder, latents, tmp_path / "b", **changes, train_batch_size=8))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "ul_tokenizer.train"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, "base", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    one, two = (losses(tmp_path / name) for name in "ab")
    assert len(one) == 8 and one == pytest.approx(two, rel=1e-4)


def losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]
