"""The recipes of ul-emoji: small enough networks, and, scaled down, a pipeline of captions and classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from ul_tokenizer import UnifiedLatentsPipeline
from ul_tokenizer.models.presets import build_autoencoder, build_base, build_prior
from ul_tokenizer.training.command import Target, run_command
from ul_tokenizer.training.fresh_text import build_text_model, full_config
from ul_tokenizer.training.recipes import find_config

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 220)}
SHAPES = ("square", "stripe")
SMALLER: dict[str, Any] = {
    "max_train_steps": 3,
    "train_batch_size": 2,
    "num_validation_images": 2,
    "checkpointing_steps": 2,
    "validation_steps": 3,
    "logging_steps": 1,
    "lr_warmup_steps": 1,
    "prior_min_hold_steps": 1,
    "prior_ramp_steps": 1,
}


def recipe(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(find_config(name).read_text(encoding="utf-8"))
    return config


def count(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares and stripes in three colours, with captions and labels, in the form of the data recipe."""
    root = tmp_path_factory.mktemp("emoji")
    for number, part in enumerate(("train", "validation")):
        (root / part).mkdir()
        rows = []
        for n, (colour, shape) in enumerate((colour, shape) for colour in COLOURS for shape in SHAPES):
            pixels = np.full((64, 64, 3), 255, np.uint8)
            pixels[16 + number : 48, 16:48] = COLOURS[colour]
            if shape == "stripe":
                pixels[28:36] = COLOURS[colour]
            Image.fromarray(pixels).save(root / part / f"{n}.png")
            caption = f"{colour} {shape}: {colour}, {shape}, simple"
            rows.append({"file_name": f"{n}.png", "caption": caption, "label": SHAPES.index(shape), "vendor": "none"})
        (root / part / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_all_weights_fit_into_20_mb_in_half_precision() -> None:
    stage1, stage2 = recipe("ul-emoji"), recipe("ul-emoji-base")
    text = stage2["text_encoder_config"]
    base = {**stage2["base_config"], "cross_attention_dim": text["dim"], "num_class_embeds": 27}
    models = [
        build_autoencoder(stage1["preset"], stage1["autoencoder_config"]),
        build_prior(stage1["preset"], stage1.get("prior_config")),
        build_base(stage2["preset"], base),
        build_text_model(full_config(text, text["vocab_size"])),
    ]
    assert 10e6 < 2 * sum(map(count, models)) < 19e6


def test_scaled_down_twins_give_a_pipeline_of_captions_and_classes_with_guidance(
    emoji: Path, flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    data = {"train_data_dir": emoji / "train", "validation_data_dir": emoji / "validation"}
    for name, target, changes in (
        ("ul-emoji", "autoencoder", {"preset": "ul-tiny-f8"}),
        ("ul-emoji-base", "base", {"preset": "ul-base-tiny", "pretrained_autoencoder": tmp_path / "ul-emoji"}),
    ):
        config = recipe(name)
        smaller = {key: value for key, value in SMALLER.items() if key in config}
        smaller |= {"base_config": {}} if target == "base" else {}
        words = flags(**data, output_dir=tmp_path / name, **smaller, **changes)
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        which: Target = "base" if target == "base" else "autoencoder"
        assert run_command(which, ["--config", name, *words]) == 0
    pipeline = UnifiedLatentsPipeline.from_pretrained(tmp_path / "ul-emoji-base")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.transformer.config.num_class_embeds == 2
    assert pipeline.text_encoder.config.dim == pipeline.transformer.config.cross_attention_dim == 128
    assert pipeline.tokenizer.tokenize("Red square") == ["▁red", "▁square"]
    options: Any = {
        "num_inference_steps": 2,
        "guidance_scale": 2.0,
        "output_type": "pt",
        "return_dict": False,
    }
    (both,) = pipeline([1], prompt="red apple", generator=torch.Generator().manual_seed(0), **options)
    (alone,) = pipeline(prompt="", generator=torch.Generator().manual_seed(0), **options)
    assert both.shape == alone.shape == (1, 3, 64, 64) and both.isfinite().all() and alone.isfinite().all()
