"""Example scripts run as their first lines say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from PIL import Image

from ul_tokenizer import LatentDataset
from ul_tokenizer.latents.writer import LatentWriter
from ul_tokenizer.models.presets import build_autoencoder

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_foreign_generator_trains_samples_and_decodes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    build_autoencoder("ul-tiny-f8").save_pretrained(tmp_path / "ae")
    header = {"latent_channels": 4, "latent_logsnr": 5.0, "dtype": "float16", "class_names": ["a", "b"]}
    with LatentWriter(tmp_path / "latents", header) as writer:
        for n in range(4):
            z = 3 * torch.randn(4, 4, 4, 4) + 1
            writer.append([f"{n}-{i}" for i in range(4)], z, [{"label": i % 2} for i in range(4)])
    small = ("--steps", 6, "--batch-size", 4, "--width", 64, "--layers", 1, "--num-samples", 3, "--sampling-steps", 2)
    out = run(
        "train_dit_on_latents.py",
        tmp_path / "latents",
        "-o",
        tmp_path / "dit",
        *small,
        "--autoencoder",
        tmp_path / "ae",
    )
    assert "step 1: loss" in out and "trained on 16 latents" in out  # an epoch and a half
    assert DiTTransformer2DModel.from_pretrained(tmp_path / "dit").config.in_channels == 4
    assert DDPMScheduler.from_pretrained(tmp_path / "dit" / "scheduler").config.clip_sample is False
    saved = json.loads((tmp_path / "dit" / "latent_statistics.json").read_text())
    statistics = LatentDataset(tmp_path / "latents").statistics
    assert saved == {"mean": statistics.mean.tolist(), "std": statistics.std.tolist()}
    with Image.open(tmp_path / "dit" / "samples.png") as picture:
        assert picture.size == (3 * 32, 32)


def test_the_cells_of_the_notebook_run_from_above_to_below(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples" / "images", tmp_path / "images")
    notebook = json.loads((ROOT / "examples" / "latent_dataset.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    script = tmp_path / "cells.py"
    script.write_text("\n".join(cells), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "6 samples" in done.stdout and done.stdout.count("flipped") >= 3
    shown = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(shown[2:]) and not any(output["output_type"] == "error" for outputs in shown for output in outputs)
