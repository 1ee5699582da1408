"""What a distillation trains, logs, saves and refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.presets import build_autoencoder
from ul_tokenizer.models.repository import MissingTeacherError, load_prior, load_teacher
from ul_tokenizer.publish.cards import model_card
from ul_tokenizer.training.command import run_command
from ul_tokenizer.training.distill import Distillation, load_models
from ul_tokenizer.training.distill_arguments import DistillArguments
from ul_tokenizer.training.engine.accelerator import make_accelerator
from ul_tokenizer.training.estimate.stages import plan_distillation
from ul_tokenizer.training.parsing import parse_arguments
from ul_tokenizer.training.recipes import find_config

Distill = Callable[..., int]
Flags = Callable[..., list[str]]
Logged = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, Tensor]]
WEIGHTS = "diffusion_pytorch_model.safetensors"
SMALLEST: dict[str, Any] = {
    "resolution": 16,
    "scale_min": 1.0,
    "train_batch_size": 4,
    "max_train_steps": 2,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "teacher_inference_steps": 4,
    "logging_steps": 1,
    "validation_steps": 1000,
    "checkpointing_steps": 1000,
    "num_validation_images": 2,
}


@pytest.fixture
def distill_flags(autoencoder: Path, images: Path, flags: Flags) -> Flags:
    def make(output_dir: Path, **changes: Any) -> list[str]:
        defaults = {"pretrained_model_name_or_path": autoencoder, "train_data_dir": images, "output_dir": output_dir}
        arguments = {**SMALLEST, **defaults, **changes}
        return flags(**{name: value for name, value in arguments.items() if value is not None})

    return make


@pytest.fixture
def distill(distill_flags: Flags) -> Distill:
    """Distils in this process; returns the exit status."""

    def run(output_dir: Path, **changes: Any) -> int:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        return run_command("distill", distill_flags(output_dir, **changes))

    return run


def last(lines: list[dict[str, Any]], name: str) -> float:
    return float(next(line[name] for line in reversed(lines) if name in line))


def same_weights(one: Path, other: Path, prefix: str = "") -> bool:
    first, second = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first if name.startswith(prefix)
    )


# ---------------------------------------------------------------- what is learned


@pytest.fixture
def smooth(tmp_path: Path) -> Path:
    """A teacher whose images change with the number of steps, and smoothly with the noise."""
    torch.manual_seed(0)
    model = build_autoencoder("ul-tiny-f8", {"dropout": 0.0})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "smooth")
    return tmp_path / "smooth"


def test_a_students_steps_come_close_to_the_teachers_many_if_it_learned_where_they_start(
    distill: Distill, logged: Logged, smooth: Path, tmp_path: Path
) -> None:
    changes = {"pretrained_model_name_or_path": smooth, "num_validation_images": 4, "train_batch_size": 8}
    assert distill(tmp_path / "start", max_train_steps=1, learning_rate=1e-9, **changes) == 0
    changes |= {"validation_steps": 60, "learning_rate": 3e-3, "ema_decay": 0.9, "logging_steps": 1000}
    assert distill(tmp_path / "run", max_train_steps=60, **changes) == 0
    assert distill(tmp_path / "noise", max_train_steps=60, start_fraction=1.0, **changes) == 0
    start, end, from_noise = (logged(tmp_path / name) for name in ("start", "run", "noise"))
    for name in ("validation/psnr_teacher", "validation/sharpness_teacher"):
        assert last(start, name) == last(end, name)  # for the teacher stays as it is
    assert last(end, "validation/psnr_to_teacher_1_step") > last(start, "validation/psnr_to_teacher_1_step") + 3
    two_steps = "validation/psnr_to_teacher_2_steps"
    assert last(end, two_steps) > last(end, "validation/psnr_to_teacher_1_step") + 0.5
    assert last(end, two_steps) > last(from_noise, two_steps) + 1  # whose second step learned nothing


def test_what_the_log_says_of_a_student_is_what_its_decode_gives(
    distill: Distill, distill_flags: Flags, logged: Logged, tmp_path: Path
) -> None:
    assert distill(tmp_path / "run", validation_metrics="psnr,ssim", use_ema=False) == 0
    measured = {name for line in logged(tmp_path / "run") for name in line if name.startswith("validation/")}
    columns = ("1_step", "2_steps", "teacher")
    each = {f"validation/{metric}_{column}" for metric in ("psnr", "ssim", "sharpness") for column in columns}
    assert measured == each | {f"validation/psnr_to_teacher_{steps}" for steps in ("1_step", "2_steps")}
    args = parse_arguments(DistillArguments, distill_flags(tmp_path / "again"))
    AcceleratorState._reset_state(True)
    stage = Distillation(args)
    stage.prepare(make_accelerator(args))
    assert stage._held_out is not None
    student = UnifiedLatentsAutoencoder.from_pretrained(tmp_path / "run")
    one_step = stage._held_out.decoded(student, 1)
    mse = (one_step.clamp(-1, 1) - stage._held_out.of_teacher).square().mean()
    psnr = float(10 * (4 / mse).log10())
    assert last(logged(tmp_path / "run"), "validation/psnr_to_teacher_1_step") == pytest.approx(psnr, abs=1e-3)


def test_moments_log_the_gap_between_both_networks_and_train_the_auxiliary_one(
    distill: Distill, logged: Logged, weights: Weights, tmp_path: Path
) -> None:
    assert distill(tmp_path, objective="moments", num_inference_steps=2, checkpointing_steps=1) == 0
    lines = [line for line in logged(tmp_path) if "loss" in line]
    assert lines[0]["moment_gap"] == 0 < lines[1]["moment_gap"]  # the auxiliary network starts as the teacher
    assert {"grad_norm/decoder", "grad_norm/auxiliary"} <= set(lines[1])
    assert not any(name.startswith("grad_norm/encoder") for name in lines[1])
    assert [line["starts_from_noise"] for line in lines] == [0.5, 0.5]
    first, second = (weights(tmp_path / f"checkpoint-{step}") for step in (1, 2))
    of_models = (name for name in first if not name.startswith("optimizer"))
    changed = {name.split(".")[0] for name in of_models if not torch.equal(first[name], second[name])}
    assert {"autoencoder/decoder", "auxiliary/decoder"} <= changed
    assert all(name.endswith("/decoder") for name in changed)


# ---------------------------------------------------------------- what is saved


@pytest.fixture
def distilled(distill: Distill, tmp_path: Path) -> Path:
    assert distill(tmp_path / "distilled", num_inference_steps=2, learning_rate=0.01, objective="pairs") == 0
    return tmp_path / "distilled"


def test_a_repository_holds_both_decoders_with_one_encoder_and_one_prior(distilled: Path, autoencoder: Path) -> None:
    assert same_weights(distilled / "teacher", autoencoder) and same_weights(distilled / "prior", autoencoder / "prior")
    assert same_weights(distilled, autoencoder, "encoder") and not same_weights(distilled, autoencoder, "decoder")
    student = UnifiedLatentsAutoencoder.from_pretrained(distilled)
    teacher = UnifiedLatentsAutoencoder.from_pretrained(distilled, subfolder="teacher")
    original = UnifiedLatentsAutoencoder.from_pretrained(autoencoder)
    assert (student.config.num_inference_steps, student.config.dropout) == (2, 0.0)
    ignored = {"_name_or_path", "_diffusers_version"}
    assert {k: v for k, v in teacher.config.items() if k not in ignored} == {
        k: v for k, v in original.config.items() if k not in ignored
    }
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latent = student.encode(x).latent
        assert torch.equal(latent, teacher.encode(x).latent)
        z, noise = student.encode(x).latent_dist.mode(), torch.randn(1, 3, 16, 16)
        mean = original.decode(z, noise=noise, num_inference_steps=1).sample
        assert torch.equal(load_teacher(str(distilled)).decode(z, noise=noise).sample, mean)  # its default is one step
        assert student.bits(x, load_prior(str(distilled))).shape == (1,)


def test_a_student_decodes_in_its_own_number_of_steps_and_takes_more_than_it_was_trained_for(distilled: Path) -> None:
    student = UnifiedLatentsAutoencoder.from_pretrained(distilled)
    z, noise = torch.randn(1, 4, 2, 2), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        images = {n: student.decode(z, noise=noise, num_inference_steps=n).sample for n in (None, 1, 2, 7, 30)}
    assert torch.equal(images[None], images[2]) and not torch.equal(images[2], images[1])
    assert all(image.shape == (1, 3, 16, 16) and image.isfinite().all() for image in images.values())


def test_the_teacher_can_be_left_out_and_a_model_without_a_prior_distilled(
    distill: Distill, autoencoder: Path, tmp_path: Path
) -> None:
    shutil.copytree(autoencoder, tmp_path / "alone", ignore=shutil.ignore_patterns("prior"))
    changes = {"pretrained_model_name_or_path": tmp_path / "alone", "save_teacher": False}
    assert distill(tmp_path / "run", **changes) == 0
    assert not (tmp_path / "run" / "prior").exists() and not (tmp_path / "run" / "teacher").exists()
    with pytest.raises(MissingTeacherError, match=r"run has no teacher: there is no teacher/config\.json in it\.$"):
        load_teacher(str(tmp_path / "run"))


def test_a_distilled_model_is_distilled_further_from_its_first_teacher(
    distill: Distill, distilled: Path, autoencoder: Path, tmp_path: Path
) -> None:
    student, teacher = load_models(DistillArguments(pretrained_model_name_or_path=str(distilled), dry_run=True))
    weights = load_file(distilled / WEIGHTS)
    assert all(torch.equal(weights[name], tensor) for name, tensor in student.state_dict().items())
    original = load_file(autoencoder / WEIGHTS)
    assert all(torch.equal(original[name], tensor) for name, tensor in teacher.state_dict().items())
    changes = {"pretrained_model_name_or_path": distilled, "objective": "moments", "num_inference_steps": 2}
    assert distill(tmp_path / "further", **changes) == 0
    assert same_weights(tmp_path / "further" / "teacher", autoencoder)


def test_the_card_of_a_student_names_the_command_that_distils(distilled: Path) -> None:
    card = str(model_card(distilled, "me/student", None))
    assert "-m ul_tokenizer.train distill --config config.yaml" in card


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("objective", ["pairs", "moments"])
def test_a_resumed_run_ends_with_the_same_weights(
    distill: Distill, weights: Weights, tmp_path: Path, objective: str
) -> None:
    changes = {"objective": objective, "dropout": 0.1, "num_inference_steps": 2, "checkpointing_steps": 2}
    assert distill(tmp_path / "whole", max_train_steps=4, **changes) == 0
    assert distill(tmp_path / "parts", max_train_steps=2, **changes) == 0
    assert distill(tmp_path / "parts", max_train_steps=4, resume_from_checkpoint="latest", **changes) == 0
    whole, parts = (weights(tmp_path / run / "checkpoint-4") for run in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("objective", ["pairs", "moments"])
def test_levels_and_noise_do_not_depend_on_the_number_of_micro_batches(
    distill: Distill, logged: Logged, tmp_path: Path, objective: str
) -> None:
    changes = {"objective": objective, "max_train_steps": 1, "num_inference_steps": 2}
    assert distill(tmp_path / "one", **changes) == 0
    assert distill(tmp_path / "two", train_batch_size=2, gradient_accumulation_steps=2, **changes) == 0
    one, two = (last(logged(tmp_path / name), "loss") for name in ("one", "two"))
    assert one > 0 and one == pytest.approx(two, rel=1e-4)


@pytest.mark.parametrize("name", ["ul-photo-f8-distilled", "ul-photo-f8-moments"])
def test_a_scaled_down_twin_of_each_recipe_trains(distill: Distill, tmp_path: Path, name: str) -> None:
    """The recipes themselves, for two steps of the bundled model at a small resolution."""
    small = {"resolution": 16, "validation_resolution": 16, "num_validation_images": 2, "train_batch_size": 2}
    recipe = yaml.safe_load(find_config(name).read_text(encoding="utf-8"))
    changes = {**recipe, **small, "max_train_steps": 2, "pretrained_model_name_or_path": "ul-photo-f8"}
    changes.pop("output_dir")
    assert distill(tmp_path / "run", **changes) == 0
    student = UnifiedLatentsAutoencoder.from_pretrained(tmp_path / "run")
    assert student.config.num_inference_steps == recipe["num_inference_steps"]
    assert same_weights(tmp_path / "run", tmp_path / "run" / "teacher", "encoder")
    assert (tmp_path / "run" / "teacher").is_dir() and (tmp_path / "run" / "prior").is_dir()


# ---------------------------------------------------------------- what is refused


def test_a_model_without_a_decoder_schedule_is_refused_in_a_sentence(
    distill: Distill, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).save_pretrained(tmp_path / "kl")
    assert distill(tmp_path / "run", pretrained_model_name_or_path=tmp_path / "kl") == 1
    (message,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert f"{tmp_path / 'kl'} can't be distilled, because its decoder has no noise schedule: " in message
    assert message.endswith("must be the config of a UnifiedLatentsAutoencoder, got one of 'AutoencoderKL'.")


def test_a_video_model_and_sizes_that_do_not_fit_are_refused_in_a_sentence(
    distill: Distill, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    build_autoencoder("ul-tiny-f8", {"temporal_compression_ratio": 4}).save_pretrained(tmp_path / "video")
    assert distill(tmp_path / "run", pretrained_model_name_or_path=tmp_path / "video") == 1
    words = f"must be an autoencoder of images, got {tmp_path / 'video'}, which is one of videos.\n"
    assert capfd.readouterr().err.endswith(f"error: --pretrained_model_name_or_path {words}")
    assert distill(tmp_path / "run", validation_resolution=20) == 1
    words = "--validation_resolution must be a multiple of 8 for this model, got 20."
    assert capfd.readouterr().err.endswith(f"error: {words}\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained_model_name_or_path": None}, "--pretrained_model_name_or_path must name the model to distil, got"),
        ({"train_data_dir": None}, "one of --train_data_dir and --dataset_name is needed, got none."),
        ({"num_inference_steps": 4}, "--teacher_inference_steps must be above --num_inference_steps, 4, got 4."),
        ({"start_fraction": 0.2}, "--start_fraction must be from 0.5 to 1, got 0.2."),
        ({"autoencoder_preset": "ul-none"}, "--autoencoder_preset must be one of ul-imagenet512, "),
        ({"objective": "gan"}, "must be one of pairs, moments, got 'gan'"),
    ],
)
def test_illegal_arguments_end_with_status_2_and_one_sentence(
    distill: Distill, tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        distill(tmp_path, **changes)
    assert exit.value.code == 2
    shown = capfd.readouterr().err
    assert message in shown and shown.count("\n") == 1


def test_a_plan_counts_the_passes_of_the_teacher_and_of_both_trained_networks() -> None:
    plans = {}
    for objective, steps in (("pairs", 4), ("pairs", 8), ("moments", 4)):
        options: Any = {"objective": objective, "teacher_inference_steps": steps, "resolution": 16}
        args = DistillArguments(pretrained_model_name_or_path="x", dry_run=True, **options)
        plans[objective, steps] = plan_distillation(args, build_autoencoder("ul-tiny-f8"))
    of_teacher = (plans["pairs", 8].extra_flops - plans["pairs", 4].extra_flops) / 4
    once = plans["pairs", 4].extra_flops - 4 * of_teacher  # encoding images and embedding latents
    assert plans["moments", 4].extra_flops == once + of_teacher
    assert plans["moments", 4].cost.flops == 2 * plans["pairs", 4].cost.flops
    assert of_teacher < plans["pairs", 4].cost.forward_flops < 1.2 * of_teacher  # which embeds latents
    assert plans["moments", 4].weights.trained == 2 * plans["pairs", 4].weights.trained


def test_a_dry_run_needs_neither_the_model_nor_data(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--pretrained_model_name_or_path", "nowhere", "--resolution", "16", "--dry_run"]
    assert run_command("distill", [*words, "--autoencoder_preset", "ul-tiny-f8"]) == 0
    shown = capfd.readouterr().out
    assert "# FLOPs per sample for the frozen encoder and the teacher: " in shown and "latent_dataset" not in shown
    assert "GPU-hours" in shown
    assert run_command("distill", words) == 1
    assert "needs --autoencoder_preset, because the model nowhere is not on this machine." in capfd.readouterr().err
