"""What a stage-1 run trains, logs and leaves behind."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ul_tokenizer.evaluation.measures.metrics import psnr_of_mean_mse
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.training.engine.accelerator import make_accelerator
from ul_tokenizer.training.engine.loop import Trainer
from ul_tokenizer.training.engine.start import Start
from ul_tokenizer.training.parsing import parse_arguments
from ul_tokenizer.training.stage1 import PARTS, Stage1
from ul_tokenizer.training.stage1_arguments import Stage1Arguments
from ul_tokenizer.training.validation import validate_autoencoder

Train = Callable[..., int]
Flags = Callable[..., list[str]]
Logged = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, Tensor]]


def make_stage(flags: Flags, tmp_path: Path, **changes: Any) -> Stage1:
    return Stage1(parse_arguments(Stage1Arguments, flags(tmp_path, **changes)))


def part_of(name: str) -> str:
    """Which part a tensor of a checkpoint belongs to."""
    return "prior" if name.startswith("prior") else name.split("/")[1].split(".")[0]


# ---------------------------------------------------------------- what is trained


@pytest.mark.parametrize("part", PARTS)
def test_training_only_one_part_leaves_the_others_bit_equal(
    train: Train, logged: Logged, weights: Weights, tmp_path: Path, part: str
) -> None:
    changes = {"train_only": part, "checkpointing_steps": 1, "learning_rate": 0.1, "adam_weight_decay": 0.1}
    assert train(tmp_path, **changes) == 0
    first, second = (weights(tmp_path / f"checkpoint-{step}") for step in (1, 2))
    changed = {part_of(name) for name in first if "/" in name and not torch.equal(first[name], second[name])}
    assert changed - {n for n in changed if n.isdigit()} == {part}
    assert {name for line in logged(tmp_path) for name in line if name.startswith("grad_norm/")} == {
        f"grad_norm/{part}"
    }


def test_frozen_parts_are_in_evaluation_mode_and_trained_ones_are_not(smallest_flags: Flags, tmp_path: Path) -> None:
    args = parse_arguments(Stage1Arguments, smallest_flags(tmp_path, train_only="decoder", max_train_steps=1))
    accelerator = make_accelerator(args)
    stage = Stage1(args)
    modes: dict[str, bool] = {}
    forward = stage.model.forward
    parts = dict(stage.model.named_children())

    def spy(*inputs: Any) -> Any:
        modes.update({name: part.training for name, part in parts.items()})
        return forward(*inputs)

    stage.model.forward = spy
    Trainer(args, stage, accelerator, Start(None, {"step": 0})).run()
    assert modes == {"encoder": False, "decoder": True, "prior": False}


def test_a_saved_run_can_be_fine_tuned(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "first", autoencoder_config={"dropout": 0.125}) == 0
    changes = {"pretrained_model_name_or_path": tmp_path / "first", "train_only": "decoder", "preset": "ul-small-f8"}
    assert train(tmp_path / "second", **changes) == 0
    first, second = (load_file(tmp_path / f / "diffusion_pytorch_model.safetensors") for f in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first if name.startswith("encoder"))
    assert not all(torch.equal(first[name], second[name]) for name in first if name.startswith("decoder"))
    assert UnifiedLatentsAutoencoder.from_pretrained(tmp_path / "second").config.dropout == 0.125


def test_fine_tuning_keeps_the_priors_full_weight_and_may_change_the_config(
    train: Train, logged: Logged, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "first") == 0
    first = {"pretrained_model_name_or_path": tmp_path / "first"}
    assert train(tmp_path / "second", **first, autoencoder_config={"decoder_logsnr_max": 11.0}) == 0
    assert [line["prior_weight"] for line in logged(tmp_path / "second") if "loss" in line] == [1.0, 1.0]
    assert UnifiedLatentsAutoencoder.from_pretrained(tmp_path / "second").config.decoder_logsnr_max == 11.0
    assert train(tmp_path / "third", **first, autoencoder_config={"colour": 1}) == 1
    assert "no config key 'colour'" in capfd.readouterr().err


def test_a_fresh_prior_of_another_size_can_be_trained_for_a_finished_autoencoder(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path / "first") == 0
    changes = {"pretrained_model_name_or_path": tmp_path / "first", "fresh_prior": True, "train_only": "prior"}
    assert train(tmp_path / "second", **changes, prior_config={"block_out_channels": [48]}) == 0
    prior = UnifiedLatentsTransformer.from_pretrained(tmp_path / "second", subfolder="prior")
    assert tuple(prior.config.block_out_channels) == (48,)
    first, second = (load_file(tmp_path / f / "diffusion_pytorch_model.safetensors") for f in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_prior_follows_the_latents_of_the_autoencoder_and_a_contradiction_is_one_sentence(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    latents = {"latent_channels": 8, "latent_logsnr": 6.0}
    assert train(tmp_path / "eight", autoencoder_config=latents) == 0
    assert train(tmp_path / "six", autoencoder_config=latents, prior_config={"in_channels": 6}) == 1
    words = "error: --prior_config must have the in_channels of the autoencoder's latents, 8, got 6."
    assert words in capfd.readouterr().err


@pytest.mark.parametrize(
    "variant",
    [
        {"latent_cost": "normal", "kl_weight": 0.01},
        {"reconstruction": "mse"},
        {"autoencoder_config": {"learned_variance": True}},
        {"autoencoder_config": {"latent_logsnr": 10.0}},
        {"latent_logsnr_bias": 1.0, "autoencoder_config": {"latent_logsnr_min": -3.0}},
    ],
)
def test_each_variant_of_the_objective_trains_resumes_and_saves_a_model(
    train: Train, logged: Logged, tmp_path: Path, variant: dict[str, Any]
) -> None:
    assert train(tmp_path, **variant, checkpointing_steps=1, max_train_steps=1) == 0
    assert train(tmp_path, **variant, checkpointing_steps=1, max_train_steps=2, resume_from_checkpoint="latest") == 0
    last = [line for line in logged(tmp_path) if "loss" in line][-1]
    assert last["step"] == 2
    assert ("latent_kl_bits_per_pixel" in last) is ("latent_cost" in variant)
    vae = UnifiedLatentsAutoencoder.from_pretrained(tmp_path)
    assert vae.config.items() >= variant.get("autoencoder_config", {}).items()
    assert vae.decode(vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist.sample()).sample.isfinite().all()


def test_variants_that_exclude_each_other_are_refused_in_one_sentence(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, latent_cost="normal", autoencoder_config={"learned_variance": True}) == 1
    assert "--latent_cost normal needs an encoder without learned_variance, got one with it." in capfd.readouterr().err
    assert train(tmp_path, latent_logsnr_bias=1.0) == 1
    assert "--latent_logsnr_bias needs a latent_logsnr_min in --autoencoder_config, got none." in capfd.readouterr().err
    both = {"learned_variance": True, "latent_logsnr_min": -3.0}
    assert train(tmp_path, latent_logsnr_bias=1.0, autoencoder_config=both) == 1
    assert "--latent_logsnr_bias needs an encoder without learned_variance" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        train(tmp_path, latent_logsnr_bias=1.0, latent_cost="normal")
    assert "--latent_logsnr_bias needs --latent_cost prior, got normal." in capfd.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        train(tmp_path, kl_weight=0.5)
    assert "--kl_weight needs --latent_cost normal, got prior." in capfd.readouterr().err


def public_config(model: UnifiedLatentsAutoencoder) -> dict[str, Any]:
    """The config without what diffusers itself enters at any saving."""
    return {key: value for key, value in model.config.items() if not key.startswith("_")}


def normalization(folder: Path) -> list[Any]:
    config = UnifiedLatentsAutoencoder.from_pretrained(folder).config
    return [config[key] for key in ("scaling_factor", "shift_factor", "latents_mean", "latents_std")]


def test_saving_encodes_nothing_and_leaves_the_config_of_the_model_as_it_is(
    smallest_flags: Flags, tmp_path: Path
) -> None:
    stage = make_stage(smallest_flags, tmp_path)
    before, passes = public_config(stage.autoencoder), []
    stage.autoencoder.encoder.register_forward_hook(lambda *_: passes.append(1))
    stage.save(tmp_path / "model")
    assert (public_config(stage.autoencoder), passes) == (before, [])
    assert normalization(tmp_path / "model") == [1.0, 0.0, (0.0,) * 4, (1.0,) * 4]


def test_fine_tuning_drops_the_statistics_of_the_latents_that_the_model_had_before(
    train: Train, smallest_flags: Flags, tmp_path: Path
) -> None:
    stage = make_stage(smallest_flags, tmp_path)
    stage.autoencoder.register_to_config(latents_mean=[1.0] * 4, latents_std=[2.0] * 4, scaling_factor=0.5)
    stage.save(tmp_path / "first")
    assert normalization(tmp_path / "first") == [0.5, 0.0, (1.0,) * 4, (2.0,) * 4]
    assert train(tmp_path / "second", pretrained_model_name_or_path=tmp_path / "first") == 0
    assert normalization(tmp_path / "second") == [1.0, 0.0, (0.0,) * 4, (1.0,) * 4]


def test_a_model_that_is_not_there_is_one_sentence(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    assert train(tmp_path / "run", pretrained_model_name_or_path=tmp_path / "empty") == 1
    error = capfd.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error and "empty" in error


@pytest.mark.parametrize("flag", ["resolution", "validation_resolution"])
def test_a_size_that_the_networks_do_not_divide_is_one_sentence(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], flag: str
) -> None:
    assert train(tmp_path, **{flag: 20}) == 1
    assert f"error: --{flag} must be a multiple of 8" in capfd.readouterr().err


def test_without_a_warm_up_the_prior_has_its_full_weight_from_the_first_step(
    train: Train, logged: Logged, tmp_path: Path
) -> None:
    assert train(tmp_path / "off", prior_warmup=False) == 0
    assert train(tmp_path / "on", prior_hold_weight=0.25) == 0
    assert [line["prior_weight"] for line in logged(tmp_path / "off") if "loss" in line] == [1.0, 1.0]
    assert [line["prior_weight"] for line in logged(tmp_path / "on") if "loss" in line] == [0.25, 0.25]


def test_the_priors_weight_rises_once_a_validation_finds_the_latent_read(
    train: Train, logged: Logged, tmp_path: Path
) -> None:
    changes = {"max_train_steps": 6, "validation_steps": 2, "prior_min_hold_steps": 3, "prior_hold_gap_db": -100.0}
    assert train(tmp_path, **changes, prior_hold_weight=0.0, prior_ramp_steps=4) == 0
    assert [line["prior_weight"] for line in logged(tmp_path) if "loss" in line] == [0, 0, 0, 0, 0, 0.25]


@pytest.mark.parametrize("workers", [0, 2])
def test_bf16_and_gradient_checkpointing_train(train: Train, logged: Logged, tmp_path: Path, workers: int) -> None:
    changes = {"mixed_precision": "bf16", "gradient_checkpointing": True, "dataloader_num_workers": workers}
    assert train(tmp_path, **changes) == 0
    assert logged(tmp_path)[0]["loss"] > 0
    assert load_file(tmp_path / "diffusion_pytorch_model.safetensors")["encoder.conv_in.weight"].dtype == torch.float32


def test_a_limit_ends_the_hold_and_a_long_hold_is_warned_of(
    train: Train, logged: Logged, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {"prior_min_hold_steps": 1, "prior_hold_gap_db": 100.0, "prior_ramp_steps": 2, "prior_hold_weight": 0.1}
    changes |= {"max_train_steps": 8, "validation_steps": 4}
    assert train(tmp_path / "limited", **changes, prior_max_hold_steps=5) == 0
    weights = [line["prior_weight"] for line in logged(tmp_path / "limited") if "prior_weight" in line]
    assert weights == pytest.approx([0.1] * 6 + [0.55, 1.0])
    warnings = [line for line in capfd.readouterr().err.splitlines() if "the prior's weight is still held" in line]
    assert len(warnings) == 1 and "at step 4" in warnings[0] and "100 dB" in warnings[0]


# ---------------------------------------------------------------- averages


def test_the_averaged_weights_are_saved_and_the_trained_ones_go_on(
    train: Train, weights: Weights, tmp_path: Path
) -> None:
    assert train(tmp_path, max_train_steps=3, learning_rate=0.01, validation_steps=1) == 0
    root = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    prior = load_file(tmp_path / "prior" / "diffusion_pytorch_model.safetensors")
    checkpoint = weights(tmp_path / "checkpoint-3")
    for name, tensor in root.items():
        assert torch.equal(tensor, checkpoint[f"autoencoder_ema/{name}"])
    assert all(torch.equal(tensor, checkpoint[f"prior_ema/{name}"]) for name, tensor in prior.items())
    assert not torch.equal(root["encoder.conv_in.weight"], checkpoint["autoencoder/encoder.conv_in.weight"])


def test_the_averaged_weights_are_validated(
    train: Train, logged: Logged, weights: Weights, smallest_flags: Flags, tmp_path: Path
) -> None:
    assert train(tmp_path, max_train_steps=3, learning_rate=0.01) == 0
    stage = make_stage(smallest_flags, tmp_path)
    stage.autoencoder.load_state_dict(load_file(tmp_path / "diffusion_pytorch_model.safetensors"))
    stage.prior.load_state_dict(load_file(tmp_path / "prior" / "diffusion_pytorch_model.safetensors"))
    stage.model.eval()
    metrics, _ = stage.validate(Accelerator(cpu=True), 3)
    line = logged(tmp_path)[-1]
    assert {f"validation/{name}": pytest.approx(value, abs=1e-4) for name, value in metrics.items()} | {
        "step": 3
    } == line


def test_without_averages_the_trained_weights_are_saved(train: Train, weights: Weights, tmp_path: Path) -> None:
    assert train(tmp_path, use_ema=False) == 0
    root, checkpoint = weights(tmp_path / "checkpoint-2"), load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(root[f"autoencoder/{name}"], tensor) for name, tensor in checkpoint.items())
    assert not [name for name in root if "_ema" in name]


def test_the_result_loads_as_an_autoencoder_with_its_prior(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path) == 0
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(tmp_path)
    prior = UnifiedLatentsTransformer.from_pretrained(tmp_path, subfolder="prior")
    assert autoencoder.bits(torch.zeros(1, 3, 16, 16), prior).shape == (1,)


# ---------------------------------------------------------------- logs


def test_every_line_of_the_log_has_all_terms_gradients_and_speed(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path, validation_steps=1) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    training, validation = ([line for line in lines if name in line] for name in ("loss", "validation/psnr_1_step"))
    assert [line["step"] for line in training] == [line["step"] for line in validation] == [1, 2]
    assert set(training[0]) == {
        "step",
        "loss",
        "prior_bits_per_pixel",
        "terminal_kl_bits_per_pixel",
        "decoder_loss_bits_per_pixel",
        "prior_weight",
        "grad_norm",
        "grad_norm/encoder",
        "grad_norm/decoder",
        "grad_norm/prior",
        "images_per_second",
        "learning_rate",
        "nonfinite_steps",
        "skipped_images",
    }
    assert {"validation/latent_gap_db", "validation/bits_per_pixel"} <= set(validation[0])
    parts = sum(training[0][f"grad_norm/{part}"] ** 2 for part in PARTS)
    assert training[0]["grad_norm"] ** 2 == pytest.approx(parts, rel=1e-5)


def test_each_validation_leaves_a_picture(train: Train, tmp_path: Path) -> None:
    assert train(tmp_path, validation_steps=1) == 0
    pictures = sorted((tmp_path / "samples").glob("*.png"))
    assert [path.stem for path in pictures] == ["step-0000001", "step-0000002"]
    assert Image.open(pictures[0]).size == (2 * 18, 3 * 18)


@pytest.mark.filterwarnings("ignore:.*no supported trackers")
@pytest.mark.parametrize("tracker", ["nonsense", "comet_ml"])
def test_a_tracker_that_is_not_there_is_one_sentence(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], tracker: str
) -> None:
    assert train(tmp_path, report_to=tracker) == 1
    assert tracker in capfd.readouterr().err.strip().splitlines()[-1]


def test_a_log_file_gets_lines_with_the_time_left_and_no_progress_bar(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path) == 0
    error = capfd.readouterr().err
    assert "step 1/2: loss " in error and " left\n" in error and "\r" not in error


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_progress_bar_with_messages_above_it(
    train: Train, make_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    assert train(tmp_path / "a-folder-with-a-name-longer-than-half-of-a-line") == 0
    printed = terminal.getvalue()
    assert "training" in printed and "2/2" in printed and "loss " in printed
    assert "step 1/2: loss" not in printed  # the bar shows the loss
    message = f"Trained to step 2: {tmp_path / 'a-folder-with-a-name-longer-than-half-of-a-line'}\n"
    assert message in printed  # in one piece, although it is longer than a line


def test_a_lost_latent_is_warned_of(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tmp_path / "alive") == 0
    assert "posterior collapse" not in capfd.readouterr().err
    # The encoder's last layer at zero is what a collapse is: the latent is noise alone, and the prior knows that.
    forward = UnifiedLatentsAutoencoder._encode_clip
    monkeypatch.setattr(UnifiedLatentsAutoencoder, "_encode_clip", lambda self, x: 0 * forward(self, x))
    monkeypatch.setattr(UnifiedLatentsAutoencoder, "bits", lambda self, x, *_, **__: torch.zeros(len(x)))
    assert train(tmp_path / "dead") == 0
    assert "warning: posterior collapse at step 2" in capfd.readouterr().err


# ---------------------------------------------------------------- data


def test_held_out_images_are_never_drawn_in_training(
    smallest_flags: Flags, make_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_images(tmp_path / "images", 20)
    stage = make_stage(smallest_flags, tmp_path, train_data_dir=folder, validation_fraction=0.2)
    names: dict[str, set[str]] = {}
    for kind, dataset in (("training", stage.dataset), ("held-out", stage._held_out)):
        read: list[str] = []
        source = dataset.source
        original = source.read
        with monkeypatch.context() as patch:
            patch.setattr(source, "read", lambda i, _=None, s=source, o=original, r=read: (r.append(s.id(i)), o(i))[1])
            for n in range(3 * len(source)):
                dataset[n]
        names[kind] = set(read)
    assert len(names["training"]) == 16 and len(names["held-out"]) == 4
    assert not names["training"] & names["held-out"]


def test_the_split_does_not_depend_on_the_seed(smallest_flags: Flags, tmp_path: Path) -> None:
    splits = [make_stage(smallest_flags, tmp_path, seed=seed)._held_out for seed in (0, 1)]
    assert [split.source.id(0) for split in splits] == [splits[0].source.id(0)] * 2


def test_an_unreadable_held_out_image_is_named_and_replaced(
    train: Train, make_images: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, held_out = make_images(tmp_path / "images"), make_images(tmp_path / "held-out", 2)
    (held_out / "bad.png").write_bytes(b"bad")
    changes = {"train_data_dir": folder, "validation_data_dir": held_out, "num_validation_images": 9}
    assert train(tmp_path / "run", **changes) == 0
    assert capfd.readouterr().err.count("skipped in validation: bad.png: ") == 1


def test_the_gap_is_what_decoding_with_the_next_images_latent_costs() -> None:
    class Identity:
        """Its latents are the pixels; what it decodes is a tenth off."""

        def encode(self, x: Tensor) -> Any:
            return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda generators: x))

        def decode(self, z: Tensor, **options: Any) -> Any:
            return SimpleNamespace(sample=0.9 * z)

        def bits(self, x: Tensor, prior: Any, generator: Any) -> Tensor:
            return torch.full((len(x),), 32.0)

    pixels = torch.stack([torch.full((3, 8, 8), value) for value in (-1.0, 0.5, 1.0)])
    fake: Any = Identity()
    metrics, _ = validate_autoencoder(fake, fake, pixels, 2, 1, torch.device("cpu"))
    costs = {name: psnr_of_mean_mse(pixels, 0.9 * z) for name, z in (("own", pixels), ("next", pixels.roll(1, 0)))}
    assert metrics["latent_gap_db"] == pytest.approx(costs["own"] - costs["next"]) and metrics["latent_gap_db"] > 10
    assert metrics["bits_per_pixel"] == 0.5


def test_psnrs_do_not_depend_on_the_batch_size_of_a_validation(smallest_flags: Flags, tmp_path: Path) -> None:
    stage = make_stage(smallest_flags, tmp_path, num_validation_images=5)
    stage.model.eval()
    torch.nn.init.normal_(stage.autoencoder.decoder.conv_out.weight, std=0.1)  # it starts at zero
    models, pixels = (stage.autoencoder, stage.prior), stage._fixed_pixels()
    whole, parts = (validate_autoencoder(*models, pixels, size, 2, torch.device("cpu"))[0] for size in (5, 2))
    psnrs = [name for name in whole if "psnr" in name or "gap" in name]
    assert [whole[name] for name in psnrs] == pytest.approx([parts[name] for name in psnrs], abs=1e-4)
    assert whole["psnr_1_step"] != whole["psnr_2_steps"]
