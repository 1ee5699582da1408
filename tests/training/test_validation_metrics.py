"""Metrics at validation: what is measured, of which weights, where it is logged and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ul_tokenizer.evaluation.measures.kernel_distance import kernel_distance
from ul_tokenizer.evaluation.measures.metrics import ssim
from ul_tokenizer.evaluation.nets.foreign import MissingFeatureNetError
from ul_tokenizer.latents.manifest import make_header
from ul_tokenizer.latents.writer import LatentWriter
from ul_tokenizer.media.pixels import to_uint8
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.training import validation_metrics
from ul_tokenizer.training.base_validation import HeldOutLatents, draw_samples
from ul_tokenizer.training.command import run_command
from ul_tokenizer.training.engine.accelerator import make_accelerator
from ul_tokenizer.training.parsing import parse_arguments
from ul_tokenizer.training.stage1 import Stage1
from ul_tokenizer.training.stage1_arguments import Stage1Arguments
from ul_tokenizer.training.stage2 import Stage2
from ul_tokenizer.training.stage2_arguments import Stage2Arguments
from ul_tokenizer.training.validation import validate_autoencoder
from ul_tokenizer.training.validation_metrics import FeatureDistance, ValidationMetrics

Train = Callable[..., int]
Flags = Callable[..., list[str]]
Logged = Callable[[Path], list[dict[str, Any]]]
CPU = torch.device("cpu")
STAGE1_ALWAYS = {"validation/latent_gap_db", "validation/bits_per_pixel"}
PSNRS = {"validation/psnr_1_step", "validation/psnr_1_steps", "validation/mean_of_psnr_1_step"}


class TinyNet:
    """Features are means over the quarters of a picture; it notes what it got."""

    name, dim, metric = "tiny", 12, "FD (tiny)"

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def facts(self) -> dict[str, Any]:
        return {"name": self.name}

    def __call__(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8 and images.ndim == 4
        self.seen.append(images)
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> TinyNet:
    net = TinyNet()
    monkeypatch.setattr(validation_metrics, "load_feature_net", lambda name, weights, device: net)
    return net


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    model = build_autoencoder("ul-tiny-f8", {"temporal_compression_ratio": 4})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    build_prior("ul-tiny-f8").save_pretrained(folder / "prior")
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders, of dark and of light pictures."""
    folder = tmp_path_factory.mktemp("classes")
    for name, level in (("dark", 20), ("light", 220)):
        (folder / name).mkdir()
        for n in range(6):
            Image.new("RGB", (16, 16), (level + n, level, level)).save(folder / name / f"{n}.png")
    return folder


@pytest.fixture
def base_flags(autoencoder: Path, classes: Path, smallest_flags: Flags) -> Flags:
    def make(output_dir: Path, **changes: Any) -> list[str]:
        data = {"train_data_dir": classes, "pretrained_autoencoder": autoencoder, "preset": "ul-base-tiny"}
        return smallest_flags(output_dir, **{"validation_fraction": 0.2, **data, **changes})

    return make


def fresh_state() -> None:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def validations(lines: list[dict[str, Any]]) -> Iterator[dict[str, float]]:
    for line in lines:
        if any(name.startswith("validation/") for name in line):
            yield {name: value for name, value in line.items() if name != "step"}


# ---------------------------------------------------------------- what is logged


def test_todays_figures_are_logged_if_no_metrics_are_named(train: Train, logged: Logged, tmp_path: Path) -> None:
    assert train(tmp_path) == 0
    (measured,) = validations(logged(tmp_path))
    assert set(measured) == PSNRS | STAGE1_ALWAYS


def test_the_named_metrics_are_logged_for_both_numbers_of_steps(
    train: Train, logged: Logged, net: TinyNet, tmp_path: Path
) -> None:
    names = {"validation_metrics": "psnr, ssim,kid", "validation_inference_steps": 3}
    assert train(tmp_path, **names, num_validation_images=4) == 0
    (measured,) = validations(logged(tmp_path))
    new = {f"validation/{name}_{steps}" for name in ("ssim", "kid") for steps in ("1_step", "3_steps")}
    assert set(measured) == new | STAGE1_ALWAYS | {name.replace("1_steps", "3_steps") for name in PSNRS}
    assert all(math.isfinite(value) for value in measured.values())


def test_without_psnr_in_the_list_none_is_logged_and_the_warm_up_still_gets_its_gap(
    train: Train, logged: Logged, tmp_path: Path
) -> None:
    assert train(tmp_path, validation_metrics="ssim") == 0
    (measured,) = validations(logged(tmp_path))
    assert set(measured) == {"validation/ssim_1_step", "validation/ssim_1_steps"} | STAGE1_ALWAYS


def test_no_further_metrics_are_needed(train: Train, logged: Logged, tmp_path: Path) -> None:
    assert train(tmp_path, validation_metrics="null") == 0
    (measured,) = validations(logged(tmp_path))
    assert set(measured) == STAGE1_ALWAYS


def test_metrics_change_neither_the_training_nor_the_figures_that_were_there(
    train: Train, logged: Logged, net: TinyNet, tmp_path: Path
) -> None:
    changes = {"max_train_steps": 4, "validation_steps": 2}
    assert train(tmp_path / "without", **changes) == 0
    assert train(tmp_path / "with", **changes, validation_metrics="psnr,ssim,kid") == 0
    without, with_metrics = (logged(tmp_path / name) for name in ("without", "with"))
    assert len(without) == len(with_metrics) == 6
    for line, other in zip(without, with_metrics, strict=True):
        assert line == {name: value for name, value in other.items() if "ssim" not in name and "kid" not in name}


# ---------------------------------------------------------------- what is measured


def make_stage(flags: list[str]) -> Stage1:
    return Stage1(parse_arguments(Stage1Arguments, flags))


def test_ssim_and_kid_compare_the_reconstructions_in_8_bits(
    smallest_flags: Flags, net: TinyNet, tmp_path: Path
) -> None:
    stage = make_stage(smallest_flags(tmp_path, validation_metrics="ssim,kid", num_validation_images=5))
    pixels = stage._fixed_pixels()
    again = (pixels * 0.5).clamp(-1, 1) + 0.01
    measured = stage.metrics.of_reconstructions(pixels, again, batch_size=2)
    rounded = to_uint8(pixels), to_uint8(again)
    assert measured["ssim"] == pytest.approx(float(ssim(*rounded).mean()), rel=1e-12)
    assert measured["kid"] == pytest.approx(kernel_distance(net(rounded[0]), net(rounded[1])).mean, rel=1e-9)
    assert abs(measured["kid"]) > 1e-3
    assert [len(batch) for batch in net.seen[1:7]] == [2, 2, 1] * 2  # after the check of the size


def test_exact_reconstructions_have_an_ssim_of_1_and_a_distance_below_that_of_others(
    smallest_flags: Flags, net: TinyNet, tmp_path: Path
) -> None:
    stage = make_stage(smallest_flags(tmp_path, validation_metrics="ssim,kid", num_validation_images=8))
    pixels = stage._fixed_pixels()
    same, other = (stage.metrics.of_reconstructions(pixels, again, 8) for again in (pixels, -pixels))
    assert same["ssim"] == pytest.approx(1) and other["ssim"] < 0.9
    assert same["kid"] < 0 < other["kid"]  # the unbiased estimate of equal sets is below 0


def test_clips_are_measured_frame_by_frame(smallest_flags: Flags, net: TinyNet, tmp_path: Path) -> None:
    changes = {"num_frames": 4, "autoencoder_config": {"temporal_compression_ratio": 4}, "num_validation_images": 3}
    stage = make_stage(smallest_flags(tmp_path, **changes, validation_metrics="ssim,kid"))
    clips = stage._fixed_pixels()
    assert clips.shape == (3, 3, 4, 16, 16)
    measured = stage.metrics.of_reconstructions(clips, 0.5 * clips, batch_size=2)
    frames = to_uint8(torch.cat([clip.transpose(0, 1) for clip in clips]))
    halves = to_uint8(torch.cat([0.5 * clip.transpose(0, 1) for clip in clips]))
    assert measured["ssim"] == pytest.approx(float(ssim(frames, halves).mean()), rel=1e-12)
    assert torch.equal(torch.cat(net.seen[1:3]), frames)


def test_a_reconstruction_that_is_not_finite_is_never_averaged_away(
    smallest_flags: Flags, net: TinyNet, tmp_path: Path
) -> None:
    stage = make_stage(smallest_flags(tmp_path, validation_metrics="ssim,kid", num_validation_images=4))
    pixels = stage._fixed_pixels()
    again = pixels.clone()
    again[3, 0, 0, 0] = math.nan
    measured = stage.metrics.of_reconstructions(pixels, again, 2)
    assert set(measured) == {"ssim", "kid"} and all(math.isnan(value) for value in measured.values())


def test_many_images_are_compared_in_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, int]] = []

    def spy(a: Tensor, b: Tensor, **options: int) -> Any:
        calls.append(options)
        return kernel_distance(a, b, subsets=1, subset_size=len(a))

    monkeypatch.setattr(validation_metrics, "kernel_distance", spy)
    for count in (1000, 1001):
        images = torch.zeros(count, 3, 2, 2).split(500)
        FeatureDistance(TinyNet(), images)(images)
    assert [call["subsets"] for call in calls] == [1, 100]


def test_the_averaged_weights_are_measured(
    train: Train, logged: Logged, smallest_flags: Flags, net: TinyNet, tmp_path: Path
) -> None:
    changes = {"max_train_steps": 3, "learning_rate": 0.01, "validation_metrics": "ssim,kid"}
    assert train(tmp_path, **changes, num_validation_images=4) == 0
    (line,) = validations(logged(tmp_path))
    stage = make_stage(smallest_flags(tmp_path, **changes, num_validation_images=4))
    values = []
    for folder, root in ((tmp_path, True), (tmp_path / "checkpoint-3" / "autoencoder", False)):
        stage.autoencoder.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
        prior = folder / "prior" if root else folder.parent / "prior"
        stage.prior.load_state_dict(load_file(prior / "diffusion_pytorch_model.safetensors"))
        stage.model.eval()
        metrics, _ = stage.validate(Accelerator(cpu=True), 3)
        values.append([metrics["ssim_1_step"], metrics["kid_1_step"]])
    averaged, trained = values
    assert [line["validation/ssim_1_step"], line["validation/kid_1_step"]] == pytest.approx(averaged, abs=1e-9)
    assert averaged != pytest.approx(trained, abs=1e-6)


def test_a_real_network_measures_alike_in_any_precision_of_the_training(smallest_flags: Flags, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    stage = make_stage(smallest_flags(tmp_path, validation_metrics="ssim,kid", num_validation_images=4))
    pixels = stage._fixed_pixels()
    alone = stage.metrics.of_reconstructions(pixels, 0.5 * pixels, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert stage.metrics.of_reconstructions(pixels, 0.5 * pixels, 4) == alone
    exact = stage.metrics.of_reconstructions(pixels, pixels, 4)
    assert exact["kid"] < 0 < alone["kid"] and exact["ssim"] > alone["ssim"]


def test_metrics_are_optional_from_python(smallest_flags: Flags, tmp_path: Path) -> None:
    stage = make_stage(smallest_flags(tmp_path))
    stage.model.eval()
    models, pixels = (stage.autoencoder, stage.prior), stage._fixed_pixels()
    assert "psnr_1_step" in validate_autoencoder(*models, pixels, 2, 1, CPU)[0]


# ---------------------------------------------------------------- stage 2


def test_samples_are_compared_with_decoded_held_out_latents(
    base_flags: Flags, logged: Logged, net: TinyNet, tmp_path: Path
) -> None:
    flags = base_flags(tmp_path, validation_metrics="kid", num_validation_images=6, validation_steps=1)
    assert run_command("base", flags) == 0
    first, second = validations(logged(tmp_path))
    assert first.keys() == second.keys() and math.isfinite(first["validation/kid"])
    assert {"validation/loss", "validation/bits_per_latent_dim", "validation/kid"} < first.keys()
    assert not any("psnr" in name for name in first)
    assert sum(map(len, net.seen)) == 6 + 2 * 6  # the reference once, samples at each validation
    fresh_state()
    args = parse_arguments(Stage2Arguments, flags)
    stage = Stage2(args)
    stage.prepare(make_accelerator(args))
    stage.transformer.load_state_dict(
        load_file(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    )  # the averages
    stage.model.eval()
    assert stage.validate(Accelerator(cpu=True), 2)[0]["kid"] == pytest.approx(second["validation/kid"], abs=1e-9)


def test_the_reference_shows_the_held_out_images(
    base_flags: Flags, tmp_path: Path, net: TinyNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = parse_arguments(Stage2Arguments, base_flags(tmp_path, validation_metrics="kid", num_validation_images=5))
    stage = Stage2(args)
    decoded: list[Tensor] = []

    def decode(z: Tensor, generators: list[torch.Generator]) -> Tensor:
        decoded.append(z)
        assert len(generators) == len(z)
        return torch.zeros(len(z), 3, 16, 16)

    monkeypatch.setattr(stage.autoencoder, "decode", decode)
    stage.prepare(make_accelerator(args))
    assert stage._held_out is not None
    z, clean = torch.cat(decoded), stage._held_out.latents
    alpha = 1 / math.sqrt(1 + math.exp(-5.0))
    noise = (z - alpha * clean) / math.sqrt(1 - alpha**2)
    assert 0.7 < float(noise.std()) < 1.3  # samples have the noise of z_0, and so has the reference
    assert not net.seen[0].float().std()


@pytest.fixture
def labelled_stage(base_flags: Flags, tmp_path: Path) -> Stage2:
    args = parse_arguments(Stage2Arguments, base_flags(tmp_path, num_validation_images=5))
    stage = Stage2(args)
    stage.prepare(make_accelerator(args))
    return stage


def test_a_sample_is_drawn_with_the_class_of_each_held_out_latent(
    labelled_stage: Stage2, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = labelled_stage
    asked: list[list[int] | None] = []
    null = stage.transformer.null_class_label
    assert null is not None
    latents = torch.zeros(5, 4, 2, 2)
    held_out = HeldOutLatents(latents, torch.tensor([1, null, 0, 0, null]))
    forward = stage.transformer.forward

    def spy(z: Tensor, logsnr: Tensor, class_labels: Tensor | None = None, **rest: Any) -> Any:
        asked.append(None if class_labels is None else class_labels.tolist())
        return forward(z, logsnr, class_labels, **rest)

    monkeypatch.setattr(stage.transformer, "forward", spy)
    stage.model.eval()
    samples = list(draw_samples(stage.pipeline(), held_out, 2, 1, 1.0))
    assert [len(sample) for sample in samples] == [2, 1, 2]
    assert asked == [[1, 0], [0], None]
    whole = torch.cat(list(draw_samples(stage.pipeline(), held_out, 5, 1, 1.0)))
    assert torch.allclose(torch.cat(samples), whole, atol=1e-5)
    assert whole.min() >= -1 and whole.max() <= 1


@pytest.mark.parametrize("given", [0, 1])
def test_of_clips_only_the_frames_after_the_context_are_compared(
    autoencoder: Path, smallest_flags: Flags, net: TinyNet, tmp_path: Path, given: int
) -> None:
    header = make_header(latent_channels=4, latent_logsnr=5.0, dtype="float32")
    with LatentWriter(tmp_path / "latents", header) as writer:
        writer.append([f"{n}" for n in range(8)], torch.randn(8, 4, 2, 2, 2))
    data = {"pretrained_autoencoder": autoencoder, "latent_dataset": tmp_path / "latents", "preset": "ul-base-tiny"}
    changes = {**data, "num_context_latents": given, "validation_metrics": "kid", "num_validation_images": 3}
    flags = smallest_flags(tmp_path / "run", **changes)
    index = flags.index("--train_data_dir")
    assert run_command("base", flags[:index] + flags[index + 2 :]) == 0
    frames = 4 * (2 - given)
    assert [len(batch) for batch in net.seen] == [2 * frames, frames] * 2


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("target", "value", "words"),
    [
        ("autoencoder", "psnr,fid", "must be one or more of psnr, ssim, ms_ssim, lpips, kid, separated by commas, or"),
        ("autoencoder", "", "got ''"),
        ("base", "psnr", "--validation_metrics must be kid, or null, got 'psnr'."),
    ],
)
def test_an_unknown_metric_is_one_sentence(
    smallest_flags: Flags,
    base_flags: Flags,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    target: Any,
    value: str,
    words: str,
) -> None:
    make = smallest_flags if target == "autoencoder" else base_flags
    with pytest.raises(SystemExit) as exit:
        run_command(target, make(tmp_path / "run", validation_metrics=value))
    error = capfd.readouterr().err
    assert exit.value.code == 2 and words in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_network_that_is_unknown_or_does_not_fit_is_one_sentence_before_the_training(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str], net: TinyNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(images: Tensor) -> Tensor:
        raise ValueError("images must have 28×28 pixels, got 16×16.")

    monkeypatch.setattr(TinyNet, "__call__", lambda _, images: refuse(images))
    assert train(tmp_path / "run", validation_metrics="kid") == 1
    words = "error: --validation_features tiny can't measure 16×16 pixels: images must have 28×28 pixels, got 16×16.\n"
    assert capfd.readouterr().err == words
    monkeypatch.undo()
    assert train(tmp_path / "run", validation_metrics="kid", validation_features="vgg") == 1
    error = capfd.readouterr().err
    assert error.startswith("error: --validation_features vgg: ") and "efficientnet-lite0" in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("target", ["autoencoder", "base"])
def test_a_missing_network_is_one_sentence_before_any_model_is_made(
    smallest_flags: Flags,
    base_flags: Flags,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    target: Any,
) -> None:
    def missing(name: str, weights: str | None, device: torch.device) -> Any:
        raise MissingFeatureNetError("it needs a package or --feature-weights.")

    monkeypatch.setattr(validation_metrics, "load_feature_net", missing)
    monkeypatch.setattr("ul_tokenizer.training.stage1._make_models", pytest.fail)
    monkeypatch.setattr("ul_tokenizer.training.stage2._load_autoencoder", pytest.fail)
    make = smallest_flags if target == "autoencoder" else base_flags
    assert run_command(target, make(tmp_path / "run", validation_metrics="kid")) == 1
    error = capfd.readouterr().err
    words = "--validation_features efficientnet-lite0: it needs a package or --validation_feature_weights."
    assert error == f"error: {words}\n"
    assert not (tmp_path / "run").exists()


def test_networks_are_loaded_only_for_the_metrics_that_need_them(
    smallest_flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("load_feature_net", "load_lpips"):
        monkeypatch.setattr(validation_metrics, name, pytest.fail)
    args = parse_arguments(Stage1Arguments, smallest_flags(tmp_path, validation_metrics="psnr,ssim"))
    assert ValidationMetrics(args, CPU).net is None


def test_the_flags_choose_the_network_and_its_weights(
    smallest_flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(validation_metrics, "load_feature_net", lambda *given: asked.append(given))
    monkeypatch.setenv("HOME", "/home/me")
    changes = {"validation_features": "inception", "validation_feature_weights": "~/inception.pth"}
    args = parse_arguments(Stage1Arguments, smallest_flags(tmp_path, **changes, validation_metrics="kid"))
    ValidationMetrics(args, CPU)
    assert asked == [("inception", "/home/me/inception.pth", CPU)]


def test_images_that_are_too_small_for_a_metric_are_refused_before_the_training(
    train: Train, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", validation_metrics="psnr,ms_ssim") == 1
    error = capfd.readouterr().err
    assert error.startswith("error: --validation_metrics ms_ssim can't measure 16×16 pixels: ")
    assert "161" in error and error.count("\n") == 1 and not (tmp_path / "run").exists()
    assert train(tmp_path / "larger", validation_metrics="ms_ssim", validation_resolution=168, dry_run=True) == 0


def test_the_names_in_the_list_are_read_once_and_kept_in_the_config(write_config: Callable[..., Path]) -> None:
    args = Stage1Arguments(train_data_dir="photos", validation_metrics="kid, psnr,kid")
    assert args.metric_names == ("kid", "psnr")
    again = parse_arguments(Stage1Arguments, ["--config", str(write_config(args.to_yaml()))])
    assert again.metric_names == args.metric_names


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write
