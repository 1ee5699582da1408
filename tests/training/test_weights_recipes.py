"""The recipes in examples/configs/weights: each is planned without data, and each model's chain trains, scaled down."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from conversion.bundle_weights import MAX_BYTES
from conversion.image_to_video import main as image_to_video
from ul_tokenizer import UnifiedLatentsPipeline
from ul_tokenizer.media.videos import VideoWriter
from ul_tokenizer.models.presets import build_autoencoder, build_base, build_prior
from ul_tokenizer.models.repository import load_autoencoder, load_prior
from ul_tokenizer.training.command import Target, run_command

FOLDER = Path(__file__).parents[2] / "examples" / "configs" / "weights"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SMALLER: dict[str, Any] = {
    "resolution": 16,
    "validation_resolution": 16,
    "num_validation_images": 2,
    "train_batch_size": 2,
    "max_train_steps": 2,
    "lr_warmup_steps": 1,
    "validation_steps": 2,
    "checkpointing_steps": 2,
    "logging_steps": 1,
    "prior_min_hold_steps": 1,
    "prior_hold_gap_db": -100.0,
    "prior_ramp_steps": 1,
    "cached_crops": 2,
    "validation_metrics": "psnr",
}


def read(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return config


def target_of(name: str) -> Target:
    config = read(name)
    if "objective" in config:
        return "distill"
    return "base" if "pretrained_autoencoder" in config else "autoencoder"


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Trains the twin of a recipe, which differs in `SMALLER` and in what is given; returns its folder."""
    monkeypatch.chdir(tmp_path)  # recipes start from runs/

    def run(name: str, **data: Any) -> Path:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        config = read(name)
        changes = {key: value for key, value in SMALLER.items() if key in config}
        twin = tmp_path / f"{name}.yaml"
        twin.write_text(yaml.safe_dump({**config, **changes, **data}), encoding="utf-8")
        assert run_command(target_of(name), ["--config", str(twin)]) == 0
        return tmp_path / str(config["output_dir"])

    return run


def write_images(folder: Path, side: int, classes: int = 0) -> Path:
    for n in range(8):
        place = folder / str(n % classes) if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        cells = np.random.default_rng(n).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC).save(place / f"{n}.png")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_planned_without_data_or_earlier_phases(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(target_of(name), ["--config", str(FOLDER / f"{name}.yaml"), "--dry_run"]) == 0
    assert "FLOP" in capfd.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_can_be_resumed_and_writes_to_a_folder_of_its_own_name(name: str) -> None:
    config = read(name)
    assert config["resume_from_checkpoint"] == "latest" and config["checkpointing_steps"] <= 1000
    assert config["output_dir"] == f"runs/{name}"


def test_each_model_is_small_enough_to_be_bundled() -> None:
    photo, prior, fashion, base, video = (
        read(name)
        for name in (
            "ul-photo-f8-1-small-crops",
            "ul-photo-f8-4-prior",
            "ul-fashion-1-more-bits",
            "ul-fashion-3-base",
            "ul-video-1-camera",
        )
    )
    student = build_autoencoder(photo["preset"], photo["autoencoder_config"]).decoder  # beside its teacher
    models = {
        "photo": [build_autoencoder(photo["preset"]), student, build_base(prior["preset"], prior["base_config"])],
        "fashion": [
            build_autoencoder(fashion["preset"], fashion["autoencoder_config"]),
            build_prior(fashion["preset"], fashion["prior_config"]),
            build_base(base["preset"], {**base["base_config"], "num_class_embeds": 10}),
        ],
        "video": [build_autoencoder(video["preset"]), build_prior(video["preset"], video["prior_config"])],
    }
    sizes = {name: 2 * sum(w.numel() for part in parts for w in part.parameters()) for name, parts in models.items()}
    assert all(1e6 < size < MAX_BYTES for size in sizes.values()), sizes


@pytest.mark.slow
def test_the_chain_of_photographs_ends_in_a_student_with_the_prior_of_phase_4(
    train: Callable[..., Path], tmp_path: Path
) -> None:
    data = {
        "train_data_dir": str(write_images(tmp_path / "train", 32)),
        "validation_data_dir": str(write_images(tmp_path / "validation", 32)),
    }
    runs = [train(name, **data) for name in NAMES if name.startswith("ul-photo-f8-")]
    assert [run.name[:13] for run in runs] == [f"ul-photo-f8-{phase}" for phase in range(1, 6)]
    assert [load_autoencoder(str(run)).config.num_inference_steps for run in runs] == [1] * 5
    trained, before, after = (load_prior(str(run)).state_dict() for run in (runs[2], runs[3], runs[4]))
    assert any(not trained[key].equal(before[key]) for key in trained)
    assert all(before[key].equal(after[key]) for key in before)
    encoders = [load_autoencoder(str(run)).encoder.state_dict() for run in runs[2:]]
    assert all(one[key].equal(encoders[0][key]) for one in encoders for key in one)
    assert (runs[4] / "teacher").is_dir()


@pytest.mark.slow
def test_the_chain_of_fashion_ends_in_a_pipeline_with_the_decoder_of_phase_2(
    train: Callable[..., Path], tmp_path: Path
) -> None:
    data = {
        "train_data_dir": str(write_images(tmp_path / "train", 32, classes=2)),
        "validation_data_dir": str(write_images(tmp_path / "validation", 32, classes=2)),
    }
    first, second, third = (train(name, **data) for name in NAMES if name.startswith("ul-fashion-"))
    pipeline = UnifiedLatentsPipeline.from_pretrained(third)
    assert pipeline.transformer.config.num_class_embeds == 2
    vae, one, two = pipeline.vae, load_autoencoder(str(first)), load_autoencoder(str(second))
    encoder, decoder = vae.encoder.state_dict(), vae.decoder.state_dict()
    assert all(encoder[key].equal(one.encoder.state_dict()[key]) for key in encoder)
    assert all(decoder[key].equal(two.decoder.state_dict()[key]) for key in decoder)
    assert any(not decoder[key].equal(one.decoder.state_dict()[key]) for key in decoder)


@pytest.mark.slow
def test_the_chain_of_videos_starts_from_the_image_weights_and_uses_the_camera(
    train: Callable[..., Path], tmp_path: Path
) -> None:
    data = {"train_data_dir": str(write_images(tmp_path / "train", 64))}
    data |= {"validation_data_dir": str(write_images(tmp_path / "validation", 64))}
    train("ul-photo-f8-1-small-crops", **data).rename(tmp_path / "runs" / "ul-photo-f8-3-large-crops")
    assert image_to_video(["runs/ul-photo-f8-3-large-crops", "-o", "runs/ul-video-0-start"]) == 0
    for part in ("train", "validation"):
        (tmp_path / "clips" / part).mkdir(parents=True)
        for n in range(2):
            with VideoWriter(tmp_path / "clips" / part / f"{n}.mp4", 10) as writer:
                for frame in range(12):
                    writer.write(np.full((48, 64, 3), 40 + 5 * frame + 60 * n, np.uint8))
        data[f"{part}_video_dir"] = str(tmp_path / "clips" / part)
    for name in ("ul-video-1-camera", "ul-video-2-lower-rate"):
        assert read(name)["pan_motion"] == "camera"
        last = [json.loads(line) for line in (train(name, **data) / "metrics.jsonl").read_text().splitlines()][-1]
        assert last["step"] == 2
    assert list(load_prior("runs/ul-video-2-lower-rate").config.block_out_channels) == [192]
