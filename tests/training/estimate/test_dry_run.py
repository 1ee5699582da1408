"""`--dry_run`: what a run needs, without data, trained models or memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.text_models import save_text_encoder
from ul_tokenizer.models.presets import build_autoencoder
from ul_tokenizer.training.command import Target, run_command
from ul_tokenizer.training.estimate import networks
from ul_tokenizer.training.estimate.networks import make_base, make_frozen_autoencoder
from ul_tokenizer.training.estimate.stages import estimate_autoencoder, estimate_base, plan_base
from ul_tokenizer.training.estimate.text import plan_text
from ul_tokenizer.training.recipes import find_config, recipe_names, stage_of
from ul_tokenizer.training.stage1_arguments import Stage1Arguments
from ul_tokenizer.training.stage2_arguments import Stage2Arguments

DryRun = Callable[..., str]
TINY_BASE: dict[str, Any] = {"preset": "ul-base-tiny", "autoencoder_preset": "ul-tiny-f8"}


@pytest.fixture
def dry_run(flags: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]) -> DryRun:
    """Runs a command with `--dry_run`; returns what it prints, or its error."""

    def run(target: Target, status: int = 0, **arguments: Any) -> str:
        capfd.readouterr()
        assert run_command(target, flags(dry_run=True, **arguments)) == status
        captured = capfd.readouterr()
        return captured.err if status else captured.out

    return run


def number(pattern: str, text: str) -> float:
    found = re.search(pattern.replace("@", r"([\d,.]+)"), text)
    assert found, f"{pattern!r} not in:\n{text}"
    return float(found[1].replace(",", ""))


def test_the_papers_stage_1_is_planned_without_data(dry_run: DryRun) -> None:
    shown = dry_run(
        "autoencoder",
        preset="ul-imagenet512",
        resolution=512,
        mixed_precision="bf16",
        train_batch_size=16,
        gradient_accumulation_steps=8,
        max_train_steps=400_000,
        dry_run_gpus=8,
    )
    assert "# sample: 3 × 512 × 512 pixels, a latent of 32 × 32 × 32" in shown
    assert number("# FLOPs per sample: @ G forward", shown) == pytest.approx(1249, rel=0.02)
    assert number("and @ GB for averages", shown) == pytest.approx(4 * 0.264, rel=0.05)
    assert 20 <= number(r"left free: @, or \d+ with", shown) <= 24
    assert 90 <= number(r"left free: \d+, or @ with", shown) <= 125
    assert "# global batch 1,024 = 8 GPUs × 16 (--train_batch_size) × 8 (--gradient_accumulation_steps)" in shown
    assert number("# @ images/s", shown) == pytest.approx(8 * 105, rel=0.03)
    assert number(": @ GPU-hours", shown) == pytest.approx(1100, rel=0.03)


@pytest.mark.parametrize("name", recipe_names())
def test_every_bundled_recipe_is_planned_without_data(name: str, dry_run: DryRun) -> None:
    config = yaml.safe_load(find_config(name).read_text(encoding="utf-8"))
    shown = dry_run(stage_of(config), config=name)
    assert "GPU-hours" in shown
    assert ("clips/s" in shown) == ("video" in name)
    if "video" in name:
        assert "a latent of 16 × 2 × " in shown  # 8 frames


def test_nothing_larger_than_a_few_numbers_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of a billion weights are planned on a laptop."""
    largest = 0

    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                    largest = max(largest, tensor.numel())
            return result

    args = Stage1Arguments(preset="ul-imagenet512", resolution=512, dry_run=True)
    with Allocations():
        estimate_autoencoder(args)
    assert largest < 100_000


def test_a_base_model_is_planned_by_the_preset_of_its_autoencoder(dry_run: DryRun) -> None:
    shown = dry_run(
        "base",
        preset="ul-base-imagenet512-medium",
        pretrained_autoencoder="runs/not-there",
        autoencoder_preset="ul-imagenet512",
        resolution=512,
        mixed_precision="bf16",
        train_batch_size=128,
    )
    assert "# sample: a latent of 32 × 32 × 32; 1000 classes" in shown
    assert number("forward, @ G with the backward", shown) == pytest.approx(492, rel=0.03)
    assert number("for the frozen encoder: @ G", shown) == pytest.approx(274, rel=0.02)
    assert number("# @ images/s", shown) == pytest.approx(989e12 * 0.4 / (492e9 + 274e9), rel=0.05)


def test_stored_latents_need_no_encoder() -> None:
    given: dict[str, Any] = {**TINY_BASE, "resolution": 16, "dry_run": True}
    on_the_fly = estimate_base(Stage2Arguments(**given))
    stored = estimate_base(
        Stage2Arguments(**given, cache_latents=True, center_crop=True, random_flip=False, scale_min=1)
    )
    assert "for the frozen encoder" in on_the_fly and "for the frozen encoder" not in stored


def test_clips_are_planned_by_their_number_of_latent_frames(dry_run: DryRun) -> None:
    clips = {**TINY_BASE, "resolution": 16, "class_conditional": False, "num_context_latents": 2}
    shown = dry_run("base", **clips, dry_run_latent_frames=5)
    assert "a latent of 4 × 5 × 2 × 2; 2 given latent frames" in shown and "clips/s" in shown
    error = dry_run("base", 1, **clips)
    assert error == "error: --dry_run with --num_context_latents 2 needs more --dry_run_latent_frames, got None.\n"


def test_a_model_on_this_machine_wins_over_the_preset(dry_run: DryRun, tmp_path: Path) -> None:
    build_autoencoder("ul-tiny-f8", {"latent_channels": 6}).save_pretrained(tmp_path / "vae")
    shown = dry_run("base", **TINY_BASE, pretrained_autoencoder=tmp_path / "vae", resolution=16)
    assert "# sample: a latent of 6 × 2 × 2" in shown


def test_fine_tuning_is_planned_by_the_model_or_the_preset(dry_run: DryRun) -> None:
    bundled = dry_run("autoencoder", pretrained_model_name_or_path="ul-photo-f8")
    missing = dry_run("autoencoder", pretrained_model_name_or_path="runs/not-there", preset="ul-tiny-f8", resolution=16)
    assert "a latent of 16 × 8 × 8" in bundled and "a latent of 4 × 2 × 2" in missing


def test_nothing_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    for loader in ("load_autoencoder", "load_prior", "load_other"):
        monkeypatch.setattr(networks, loader, lambda name, *_, **__: pytest.fail(f"{name} was loaded"))
    args = Stage1Arguments(
        preset="ul-tiny-f8", resolution=16, pretrained_model_name_or_path="someone/model", dry_run=True
    )
    assert "# sample: " in estimate_autoencoder(args)
    base = Stage2Arguments(**TINY_BASE, pretrained_vae="someone/vae", resolution=16, dry_run=True)
    assert "# sample: " in estimate_base(base)


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        (
            "base",
            {"preset": "ul-base-tiny", "pretrained_autoencoder": "runs/not-there"},
            "--dry_run needs --autoencoder_preset, because the autoencoder runs/not-there is not on this machine.",
        ),
        (
            "autoencoder",
            {"preset": "ul-imagenet512", "resolution": 500},
            "--resolution must be a multiple of 16 for these networks, got 500.",
        ),
    ],
)
def test_what_can_not_be_planned_is_said_in_a_sentence(
    target: Target, arguments: dict[str, Any], message: str, dry_run: DryRun
) -> None:
    assert dry_run(target, 1, **arguments) == f"error: {message}\n"


def test_an_unknown_autoencoder_preset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--autoencoder_preset must be one of ul-imagenet512, .*, got ul-huge"):
        Stage2Arguments(autoencoder_preset="ul-huge", dry_run=True)


def test_a_run_still_needs_data_and_an_autoencoder() -> None:
    with pytest.raises(ValueError, match=r"one of --train_data_dir.* is needed"):
        Stage1Arguments()
    with pytest.raises(ValueError, match="one of --pretrained_autoencoder and --pretrained_vae is needed"):
        Stage2Arguments(**TINY_BASE, latent_dataset="latents")


def test_the_plan_says_what_does_not_fit(dry_run: DryRun) -> None:
    large = {"preset": "ul-imagenet512", "resolution": 512, "train_batch_size": 64, "dry_run_gpu": "rtx4090"}
    shown = dry_run("autoencoder", **large)
    assert re.search(r"# warning: --train_batch_size 64 does not fit; use \d", shown)
    assert "# warning: not even one sample fits on a GeForce RTX 4090" in dry_run(
        "autoencoder", **{**large, "resolution": 2048}
    )


def test_the_configuration_can_be_read_again_and_has_no_plan_in_it(dry_run: DryRun, tmp_path: Path) -> None:
    shown = dry_run("autoencoder", preset="ul-tiny-f8", resolution=16, dry_run_gpus=4, dry_run_gpu="a100")
    config = yaml.safe_load(shown)
    assert config["resolution"] == 16 and not [key for key in config if key.startswith("dry_run")]
    assert "# 4 × A100 SXM with 80 GB, at 40% of 20 TFLOP/s in fp32 (NVIDIA A100" in shown
    (tmp_path / "config.yaml").write_text(shown)
    again = dry_run("autoencoder", config=tmp_path / "config.yaml", dry_run_gpus=4, dry_run_gpu="a100")
    assert again == shown


def test_given_data_are_checked_and_planned_for(dry_run: DryRun, images: Path) -> None:
    shown = dry_run("autoencoder", preset="ul-tiny-f8", resolution=16, train_data_dir=images, num_validation_images=2)
    assert "# training images: " in shown and "# FLOPs per sample: " in shown
    error = dry_run("autoencoder", 1, preset="ul-tiny-f8", resolution=16, train_data_dir=images / "not-there")
    assert "not-there" in error and error.count("\n") == 1


# ---------------------------------------------------------------- text encoders

TEXT: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 16}


def text_arguments(**changes: Any) -> Stage2Arguments:
    given = {**TINY_BASE, "resolution": 16, "dry_run": True, "text_encoder_config": {**TEXT, "vocab_size": 100}}
    return Stage2Arguments(**{**given, **changes})


def test_a_fresh_text_encoder_is_counted_with_its_weights_and_flops() -> None:
    shown = estimate_base(text_arguments())
    embeddings = 100 * 32 + 16 * 32 + 2 * 32
    block = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    assert number("text encoder: @ parameters, trained", shown) == embeddings + 2 * block
    products = 2 * 16 * 2 * (4 * 32 * 32 + 2 * 32 * 64)  # of the linear layers; attention adds a little
    attention = 2 * 2 * 2 * 16 * 16 * 32
    assert number("; @ G FLOPs for a text of 16 tokens", shown) == pytest.approx((products + attention) / 1e9, rel=0.02)
    assert "texts of 16 tokens" in shown


def test_a_trained_text_encoder_costs_a_step_more_than_a_frozen_one_and_a_cached_one_nothing() -> None:
    plans = {}
    cached = {"train_text_encoder": False, "cache_text_embeddings": True}
    for name, changes in (("trained", {}), ("frozen", {"train_text_encoder": False}), ("cached", cached)):
        args = text_arguments(**changes)
        frozen, text = make_frozen_autoencoder(args), plan_text(args)
        assert text is not None
        plans[name] = text, plan_base(args, frozen, make_base(args, frozen, text.width), text)
    flops = plans["trained"][0].flops()
    trained, frozen_plan, cached_plan = (plans[name][1] for name in ("trained", "frozen", "cached"))
    assert trained.flops_per_sample - cached_plan.flops_per_sample == 3 * flops
    assert frozen_plan.flops_per_sample - cached_plan.flops_per_sample == flops
    assert trained.cost.activations > frozen_plan.cost.activations == cached_plan.cost.activations
    weights = plans["trained"][0].weights
    assert trained.weights.trained - frozen_plan.weights.trained == weights
    assert frozen_plan.weights.frozen - trained.weights.frozen == weights


@pytest.mark.parametrize("kind", ["clip-text", "t5", "bert"])
def test_a_text_encoder_on_this_machine_is_counted_and_another_one_said_to_be_missing(
    kind: str, tmp_path: Path
) -> None:
    folder = save_text_encoder(tmp_path / "text", kind)
    args = text_arguments(text_encoder_config=None, text_encoder=str(folder))
    plan = plan_text(args)
    assert plan is not None and plan.weights > 500 and plan.width and plan.flops() > 8 * plan.tokens * plan.width**2
    assert number("text encoder: @ parameters, frozen", estimate_base(args)) == plan.weights
    elsewhere = estimate_base(text_arguments(text_encoder_config=None, text_encoder="someone/encoder"))
    assert "text encoder: not counted, because it is not on this machine" in elsewhere
