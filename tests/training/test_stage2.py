"""Stage 2 in the shared loop: what it trains, on what, and what it saves and refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderDC, AutoencoderKL, DiffusionPipeline
from PIL import Image
from torch import Tensor

from tests.evaluation.autoencoders import save
from ul_tokenizer import LatentDataset, UnifiedLatentsAutoencoder, UnifiedLatentsPipeline
from ul_tokenizer.latents.manifest import make_header
from ul_tokenizer.latents.writer import LatentWriter
from ul_tokenizer.media.pixels import to_float
from ul_tokenizer.models.latent_normalization import denormalize_latents, normalize_latents
from ul_tokenizer.models.presets import build_autoencoder, build_base
from ul_tokenizer.training.draws.noise import Draws
from ul_tokenizer.training.parsing import parse_arguments
from ul_tokenizer.training.stage2 import Stage2
from ul_tokenizer.training.stage2_arguments import Stage2Arguments

ROOT = Path(__file__).parents[2]
Logged = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, Tensor]]


def latent_dataset(folder: Path, stage: Stage2) -> Path:
    """A data set of the latents of a stage's training images."""
    header = {"latent_channels": 4, "latent_logsnr": 5.0, "dtype": "float32", "class_names": stage.class_names}
    images = stage._images
    assert images is not None
    with LatentWriter(folder, header) as writer:
        for i in range(len(images)):
            crop = stage._crops(images, 0).crop_of(i)
            latent = stage.autoencoder.encode(to_float(crop["pixel_values"])[None])
            writer.append([f"{i}"], latent, [{"label": crop["class_label"]}])
    return folder


# ---------------------------------------------------------------- what is learned


def test_the_loss_falls_and_classes_are_told_apart(train2: Callable[..., int], logged: Logged, tmp_path: Path) -> None:
    options = {"max_train_steps": 200, "learning_rate": 1e-2, "ema_decay": 0.9, "train_batch_size": 8}
    assert train2(tmp_path, **options, cache_latents=True, logging_steps=10) == 0
    losses = [line["loss"] for line in logged(tmp_path) if "loss" in line]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
    pipeline = UnifiedLatentsPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    stage_vae = pipeline.vae
    means = []
    for name in ("dark", "light"):
        level = -0.84 if name == "dark" else 0.73
        means.append(stage_vae.encode(torch.full((1, 3, 16, 16), level)).latent)
    for label in (0, 1):
        (z,) = pipeline([label] * 8, num_inference_steps=8, output_type="latent", return_dict=False)
        own, other = ((z - means[k]).square().mean() for k in (label, 1 - label))
        assert own < other


def test_what_is_saved_is_a_whole_pipeline(train2: Callable[..., int], autoencoder: Path, tmp_path: Path) -> None:
    assert train2(tmp_path) == 0
    assert json.loads((tmp_path / "class_names.json").read_text()) == ["dark", "light"]
    assert (tmp_path / "vae" / "prior" / "config.json").is_file()
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipeline).__name__ == "UnifiedLatentsPipeline"
    assert pipeline.transformer.config.num_class_embeds == 2
    assert pipeline.transformer.config.latent_logsnr == pipeline.scheduler.config.logsnr_max == 5.0
    assert pipeline.transformer.config.sample_size == 2
    before = UnifiedLatentsAutoencoder.from_pretrained(autoencoder).state_dict()
    assert all(torch.equal(before[key], tensor) for key, tensor in pipeline.vae.state_dict().items())


def test_checkpoints_hold_what_is_trained_and_no_autoencoder(
    train2: Callable[..., int], weights: Weights, tmp_path: Path
) -> None:
    assert train2(tmp_path, checkpointing_steps=1) == 0
    folders = {path.name for path in (tmp_path / "checkpoint-2").iterdir() if path.is_dir()}
    assert folders == {"transformer", "transformer_ema"}
    first, second = (weights(tmp_path / f"checkpoint-{step}") for step in (1, 2))
    base = build_base("ul-base-tiny", {"num_class_embeds": 2})
    moments = {name.split("/")[1] for name in second if name.startswith("optimizer/")}
    assert len(moments) == len(list(base.parameters()))
    assert any(not torch.equal(first[name], second[name]) for name in first if name.startswith("transformer/"))


def test_validation_measures_every_level_and_draws_the_classes(
    train2: Callable[..., int], logged: Logged, tmp_path: Path
) -> None:
    assert train2(tmp_path, validation_steps=1, validation_guidance_scale=1.5) == 0
    metrics = [{k: v for k, v in line.items() if k.startswith("validation/")} for line in logged(tmp_path)]
    metrics = [line for line in metrics if line]
    assert len(metrics) == 2
    levels = [name for name in metrics[0] if name.startswith("validation/eps_mse_at_logsnr_")]
    assert len(levels) == 5
    assert metrics[0]["validation/eps_mse_at_logsnr_3.5"] > metrics[0]["validation/eps_mse_at_logsnr_-8.5"]
    assert {"validation/loss", "validation/bits_per_latent_dim"} < set(metrics[0])
    picture = Image.open(tmp_path / "samples" / "step-0000002.png")
    assert picture.size == (2 * 18, 4 * 18)


def test_images_without_classes_make_an_unconditional_model(
    train2: Callable[..., int], images: Path, tmp_path: Path
) -> None:
    assert train2(tmp_path / "flat", train_data_dir=images, validation_steps=1) == 0
    assert train2(tmp_path / "asked", class_conditional=False) == 0
    for name in ("flat", "asked"):
        pipeline = UnifiedLatentsPipeline.from_pretrained(tmp_path / name)
        assert pipeline.transformer.config.num_class_embeds is None
        assert not (tmp_path / name / "class_names.json").exists()


# ---------------------------------------------------------------- exactness


HARD = {
    "max_train_steps": 6,
    "checkpointing_steps": 3,
    "validation_steps": 4,
    "gradient_accumulation_steps": 2,
    "lr_scheduler": "cosine",
    "base_config": {"dropout": 0.2},
    "resume_from_checkpoint": "latest",
}


def test_a_resumed_run_ends_with_the_same_bits(
    train2: Callable[..., int], logged: Logged, weights: Weights, tmp_path: Path
) -> None:
    assert train2(tmp_path / "a", **HARD) == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoint-6")
    assert train2(tmp_path / "b", **HARD) == 0
    assert logged(tmp_path / "a") == logged(tmp_path / "b")
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_run_goes_on_to_the_same_bits(
    train2: Callable[..., int], run_flags: Callable[..., list[str]], weights: Weights, tmp_path: Path
) -> None:
    options = {**HARD, "max_train_steps": 12, "validation_steps": 1000, "cache_latents": True}
    assert train2(tmp_path / "a", **options) == 0
    command = [sys.executable, "-m", "ul_tokenizer.train", "base", *run_flags(tmp_path / "b", **options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    while not (tmp_path / "b" / "checkpoint-3").is_dir() and child.poll() is None:
        time.sleep(0.005)
    child.kill()
    assert child.wait() in (-signal.SIGKILL, 0)
    assert train2(tmp_path / "b", **options) == 0
    a, b = weights(tmp_path / "a" / "checkpoint-12"), weights(tmp_path / "b" / "checkpoint-12")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


SMOOTH = {"learning_rate": 1e-2, "adam_epsilon": 1e-2, "max_train_steps": 3, "validation_steps": 3}


def test_micro_batches_do_not_change_the_run(
    train2: Callable[..., int], logged: Logged, weights: Weights, tmp_path: Path
) -> None:
    assert train2(tmp_path / "a", **SMOOTH) == 0
    assert train2(tmp_path / "b", **SMOOTH, train_batch_size=2, gradient_accumulation_steps=2) == 0
    assert_the_same_run(tmp_path / "a", tmp_path / "b", logged, weights)


@pytest.mark.multiprocess
def test_two_processes_do_not_change_the_run(
    train2: Callable[..., int], run_flags: Callable[..., list[str]], logged: Logged, weights: Weights, tmp_path: Path
) -> None:
    options = {**SMOOTH, "cache_latents": True}
    assert train2(tmp_path / "a", **options) == 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = ["-m", "ul_tokenizer.train", "base", *run_flags(tmp_path / "b", **options, train_batch_size=2)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert_the_same_run(tmp_path / "a", tmp_path / "b", logged, weights)


def assert_the_same_run(a: Path, b: Path, logged: Logged, weights: Weights) -> None:
    for line, other in zip(logged(a), logged(b), strict=True):
        assert line == pytest.approx(other, rel=1e-3, abs=1e-5)
    mine, theirs = weights(a / "checkpoint-3"), weights(b / "checkpoint-3")
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


def test_labels_are_dropped_at_their_rate_and_by_the_draw_alone(make_stage: Callable[..., Stage2]) -> None:
    stage = make_stage(label_dropout=0.25)
    labels = torch.zeros(4, dtype=torch.long)
    dropped = []
    for step in range(500):
        whole = stage._dropped(labels, Draws(step, range(4 * step, 4 * step + 4), range(4 * step, 4 * step + 4)))
        parts = [
            stage._dropped(labels[:2], Draws(step, range(4 * step, 4 * step + 4), range(4 * step + k, 4 * step + 4, 2)))
            for k in range(2)
        ]
        assert whole is not None and parts[0] is not None and parts[1] is not None
        assert torch.equal(whole[0::2], parts[0]) and torch.equal(whole[1::2], parts[1])
        null = stage.transformer.null_class_label
        assert null is not None
        dropped += whole.eq(null).tolist()
    assert 0.21 < np.mean(dropped) < 0.29


# ---------------------------------------------------------------- latents


def test_the_target_is_the_clean_latent(make_stage: Callable[..., Stage2]) -> None:
    autoencoder = make_stage().autoencoder
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        exact = autoencoder.vae.encode(x).latent
    torch.testing.assert_close(autoencoder.encode(x), exact, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(autoencoder.encode(x), 0.99665 * exact, rtol=1e-5, atol=1e-6)


def test_an_encoder_that_learned_a_variance_draws_the_targets_anew_for_each_sample(
    make_stage: Callable[..., Stage2], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    vae = build_autoencoder("ul-tiny-f8", {"learned_variance": True})
    assert vae.encoder.conv_out.bias is not None
    vae.encoder.conv_out.bias.data[4:] = -1.0
    vae.save_pretrained(tmp_path / "random")
    stage = make_stage(pretrained_autoencoder=tmp_path / "random")
    x = (torch.rand(1, 3, 64, 64) * 2 - 1).expand(40, -1, -1, -1)
    z = stage._encoded(x, range(40))
    torch.testing.assert_close(z.std(0).mean(), torch.tensor(-0.5).exp(), rtol=0.05, atol=0)
    torch.testing.assert_close(stage._encoded(x[:2], range(5, 7)), z[5:7])
    draws = Draws(0, range(4), range(4))
    batch = stage.collate([stage.dataset[n] for n in draws.local])
    batch.pop("skipped")
    assert stage.loss(stage.model, batch, draws)[0].isfinite()
    with pytest.raises(ValueError, match="stored and given only of encoders without learned_variance"):
        make_stage(pretrained_autoencoder=tmp_path / "random", cache_latents=True)


def test_cached_latents_cost_one_pass_per_image_and_others_one_per_draw(make_stage: Callable[..., Stage2]) -> None:
    cached, fresh = make_stage(cache_latents=True), make_stage()
    held_out, images = 2, 10  # 12 images, of which a fifth is held out
    assert cached.autoencoder.passes == images + held_out
    assert fresh.autoencoder.passes == held_out
    losses = []
    for stage in (cached, fresh):
        draws = Draws(0, range(4), range(4))
        batch = stage.collate([stage.dataset[n] for n in draws.local])
        batch.pop("skipped")
        losses.append(stage.loss(stage.model, batch, draws)[0])
    assert cached.autoencoder.passes == images + held_out
    assert fresh.autoencoder.passes == held_out + 4
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-6)


def test_a_latent_data_set_costs_no_pass_at_all(
    make_stage: Callable[..., Stage2], train2: Callable[..., int], tmp_path: Path
) -> None:
    folder = latent_dataset(tmp_path / "latents", make_stage())
    options = {"train_data_dir": None, "center_crop": None, "latent_dataset": folder}
    stage = make_stage(**options)
    assert stage.class_names == ("dark", "light")
    assert len(stage.dataset) == len(LatentDataset(folder)) - 2
    batch = stage.collate([stage.dataset[n] for n in range(4)])
    batch.pop("skipped")
    stage.loss(stage.model, batch, Draws(0, range(4), range(4)))
    assert stage.autoencoder.passes == 0
    assert train2(tmp_path / "run", **options, validation_steps=1) == 0
    assert UnifiedLatentsPipeline.from_pretrained(tmp_path / "run").transformer.config.num_class_embeds == 2


def test_latents_of_another_autoencoder_are_refused(
    make_stage: Callable[..., Stage2], train2: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = latent_dataset(tmp_path / "latents", make_stage())
    header = folder / "header.json"
    header.write_text(header.read_text().replace('"latent_logsnr": 5.0', '"latent_logsnr": 4.0'))
    assert train2(tmp_path / "run", train_data_dir=None, latent_dataset=folder) == 1
    assert "must have the latent_logsnr 5.0, got 4.0" in capfd.readouterr().err


def test_an_unreadable_image_is_left_out_of_the_cache_with_its_label_and_named(
    make_stage: Callable[..., Stage2], classes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(classes, folder)
    (folder / "light" / "a; broken.png").write_bytes(b"no picture")
    stage = make_stage(train_data_dir=folder, validation_data_dir=classes, cache_latents=True)
    assert len(stage.dataset) == 12
    labels = [stage.dataset.source[i]["label"] for i in range(12)]
    assert labels == [0] * 6 + [1] * 6
    error = capfd.readouterr().err
    assert error.count("skipped light/a; broken.png: it is not an image of a known format") == 1


# ---------------------------------------------------------------- other autoencoders


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kl")
    torch.manual_seed(1)
    model = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    )
    model.save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def dc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dc")
    torch.manual_seed(1)
    AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.4,
    ).save_pretrained(folder)
    return folder


def test_a_base_can_be_trained_on_the_latents_of_any_autoencoder(
    train2: Callable[..., int], kl: Path, dc: Path, tmp_path: Path
) -> None:
    for name, options in (
        ("kl", {"pretrained_vae": kl, "vae_subfolder": "vae", "logsnr_max": 9.0}),
        ("dc", {"pretrained_vae": dc}),
    ):
        assert train2(tmp_path / name, pretrained_autoencoder=None, **options, validation_steps=1) == 0
        pipeline = DiffusionPipeline.from_pretrained(tmp_path / name)
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline.transformer.config.latent_logsnr == (9.0 if name == "kl" else 10.0)
        images = pipeline(class_labels=[0, 1], num_inference_steps=2, output_type="pt").images
        assert images.shape == (2, 3, 16, 16)


def test_a_base_can_be_trained_on_pictures_and_clips_through_an_autoencoder_of_clips(
    train2: Callable[..., int], tmp_path: Path
) -> None:
    vae: dict[str, Any] = {"pretrained_autoencoder": None, "pretrained_vae": save("AutoencoderKLWan", tmp_path)}
    vae |= {"preset": "ul-base-tiny", "num_validation_images": 2, "validation_steps": 1}
    assert train2(tmp_path / "pictures", **vae, cache_latents=True) == 0
    pipeline: Any = DiffusionPipeline.from_pretrained(tmp_path / "pictures")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(class_labels=[0, 1], num_inference_steps=1, output_type="pt").images.shape == (2, 3, 16, 16)
    with LatentWriter(tmp_path / "latents", make_header(latent_channels=4, latent_logsnr=10.0, dtype="float32")) as w:
        w.append([str(n) for n in range(12)], torch.randn(12, 4, 3, 2, 2))
    clips = {**vae, "train_data_dir": None, "latent_dataset": tmp_path / "latents"}
    for name, given in (("clips", 0), ("prediction", 1)):
        assert train2(tmp_path / name, **clips, num_context_latents=given) == 0
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "clips")
    pipeline.set_progress_bar_config(disable=True)
    for asked, made in ((None, 9), (5, 5), (4, 4)):
        frames = pipeline(num_frames=asked, num_inference_steps=1, output_type="pt").frames
        assert frames.shape == (1, made, 3, 16, 16)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "prediction")
    pipeline.set_progress_bar_config(disable=True)
    given_frames = torch.zeros(1, 3, 5, 16, 16)
    frames = pipeline(context_frames=given_frames, num_frames=4, num_inference_steps=1, output_type="pt").frames
    assert frames.shape == (1, 9, 3, 16, 16)


def test_their_latents_are_normalised_as_their_configs_say(kl: Path, make_stage: Callable[..., Stage2]) -> None:
    stage = make_stage(pretrained_autoencoder=None, pretrained_vae=kl, vae_subfolder="vae")
    vae = stage.autoencoder.vae
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        mode = vae.encode(x).latent_dist.mode()
    z = stage.autoencoder.encode(x)
    torch.testing.assert_close(z, (mode - 0.25) * 0.5)
    torch.testing.assert_close(denormalize_latents(vae, z), mode)
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    vae.register_to_config(latents_mean=mean, latents_std=std)
    by_channel = (mode - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(normalize_latents(vae, mode), by_channel)
    torch.testing.assert_close(denormalize_latents(vae, by_channel), mode)


def test_stored_latents_are_normalised_as_the_config_of_our_autoencoder_says(
    make_stage: Callable[..., Stage2], tmp_path: Path
) -> None:
    folder = latent_dataset(tmp_path / "latents", make_stage())
    stage = make_stage(train_data_dir=None, center_crop=None, latent_dataset=folder)
    stage.autoencoder.vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    batch = stage.collate([stage.dataset[n] for n in range(4)])
    seen: list[Tensor] = []
    stage.loss(lambda z, *_: seen.append(z) or z, batch, Draws(0, range(4), range(4)))  # type: ignore[func-returns-value, arg-type]
    torch.testing.assert_close(seen[0], (batch["latents"] - 0.25) * 0.5)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"base_config": {"latent_logsnr": 4.0}},
            "--base_config must have the latent_logsnr of the latents and labels, 5.0",
        ),
        (
            {"base_config": {"in_channels": 8}},
            "--base_config must have the in_channels of the latents and labels, 4, got 8",
        ),
        (
            {"base_config": {"num_class_embeds": 5}},
            "--base_config must have the num_class_embeds of the latents and labels, 2",
        ),
        ({"base_config": {"width": 5}}, "UnifiedLatentsTransformer has no config key 'width'"),
        ({"resolution": 20}, "--resolution must be a multiple of 8 for these networks, got 20"),
        ({"pretrained_autoencoder": "/no/such"}, "Model /no/such is neither a bundled name"),
        ({"pretrained_autoencoder": None, "pretrained_vae": "/no/such"}, "--pretrained_vae /no/such can't be loaded"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    train2: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    assert train2(tmp_path / "run", **changes) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"pretrained_autoencoder": None},
            "--pretrained_autoencoder and --pretrained_vae is needed, got neither",
        ),
        ({"pretrained_vae": "x"}, "--pretrained_autoencoder and --pretrained_vae exclude each other"),
        ({"train_data_dir": None}, "images (--train_data_dir or --dataset_name) or --latent_dataset are needed"),
        (
            {"latent_dataset": "x"},
            "--dataset_name) or --latent_dataset are needed, got both",
        ),
        ({"cache_latents": True, "center_crop": False}, "--cache_latents needs crops that never change"),
        ({"cache_latents": True, "random_flip": True}, "--cache_latents needs crops that never change"),
        ({"logsnr_max": 9.0}, "--logsnr_max needs --pretrained_vae"),
        ({"vae_subfolder": "vae"}, "--vae_subfolder needs --pretrained_vae"),
        ({"preset": "ul-tiny-f8"}, "--preset must be one of ul-base-imagenet512-medium"),
        ({"label_dropout": 1.0}, "--label_dropout must be at least 0 and below 1, got 1.0"),
        ({"validation_guidance_scale": -1.0}, "--validation_guidance_scale must be at least 0, got -1.0"),
    ],
)
def test_contradictory_arguments_are_one_sentence(
    run_flags: Callable[..., list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: Any, words: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(Stage2Arguments, run_flags(tmp_path, **changes))
    assert exit_.value.code == 2
    assert words in capfd.readouterr().err


def test_a_base_of_another_level_is_not_trained_on(
    train2: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    build_base("ul-base-tiny", {"num_class_embeds": 2, "latent_logsnr": 4.0}).save_pretrained(tmp_path / "base")
    assert train2(tmp_path / "run", pretrained_model_name_or_path=tmp_path / "base") == 1
    words = "--pretrained_model_name_or_path must have the latent_logsnr of the latents and labels, 5.0, got 4.0"
    assert words in capfd.readouterr().err


def test_a_trained_base_can_be_trained_further(train2: Callable[..., int], weights: Weights, tmp_path: Path) -> None:
    assert train2(tmp_path / "a") == 0
    options = {"pretrained_model_name_or_path": tmp_path / "a", "learning_rate": 1e-6, "use_ema": False}
    assert train2(tmp_path / "b", **options) == 0
    a, b = weights(tmp_path / "a" / "transformer"), weights(tmp_path / "b" / "transformer")
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=0, atol=1e-5)


def test_class_folders_that_differ_between_training_and_validation_are_refused(
    train2: Callable[..., int], classes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(classes, other)
    (other / "light").rename(other / "bright")
    assert train2(tmp_path / "run", validation_data_dir=other) == 1
    assert "--validation_data_dir must have the 2 classes of the training images" in capfd.readouterr().err


def test_a_dry_run_describes_and_trains_nothing(
    train2: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train2(tmp_path / "run", dry_run=True) == 0
    out = capfd.readouterr().out
    assert re.search(r"^# base model: [\d,]+ parameters$", out, re.MULTILINE)
    assert "# training samples: 10" in out and "# classes: dark, light" in out
    assert not (tmp_path / "run").exists()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(True)
