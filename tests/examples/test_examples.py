"""Example scripts run as their first lines say."""

from __future__ import annotations

import math
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from PIL import Image

from ul_tokenizer import LatentDataset, LogSNRScheduler, UnifiedLatentsPipeline
from ul_tokenizer.diffusion.schedule import alpha_sigma
from ul_tokenizer.latents.writer import LatentWriter
from ul_tokenizer.models.presets import build_autoencoder

ROOT = Path(__file__).parents[2]


def run(*words: object) -> str:
    """What Python prints for the name of an example, or for its own words, such as -m."""
    first, *others = map(str, words)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, first if first == "-m" else str(ROOT / "examples" / first), *others]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


TINY = ("--batch-size", 4, "--width", 64, "--layers", 1)


def write_latents(folder: Path, names: list[str], latents: list[torch.Tensor], autoencoder: str) -> None:
    """A latent data set with a class for each tensor (N, c, h, w)."""
    channels = latents[0].shape[1]
    header = {"latent_channels": channels, "latent_logsnr": 5.0, "dtype": "float16", "class_names": names}
    with LatentWriter(folder, header | {"autoencoder": autoencoder}) as writer:
        for label, z in enumerate(latents):
            writer.append([f"{label}-{i}" for i in range(len(z))], z, [{"label": label}] * len(z))


def test_a_foreign_generator_trains_samples_and_decodes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    build_autoencoder("ul-tiny-f8").save_pretrained(tmp_path / "ae")
    write_latents(tmp_path / "latents", ["a", "b"], [torch.randn(8, 4, 4, 4) for _ in range(2)], str(tmp_path / "ae"))
    out = run("train_dit_on_latents.py", tmp_path / "latents", "-o", tmp_path / "dit", "--steps", 6, *TINY)
    assert "step 1: loss" in out and "trained on 16 latents" in out  # an epoch and a half
    network = DiTTransformer2DModel.from_pretrained(tmp_path / "dit")
    assert (network.config.in_channels, network.config.num_embeds_ada_norm) == (4, 2)
    assert LogSNRScheduler.from_pretrained(tmp_path / "dit" / "scheduler").config.logsnr_max == 5.0
    with Image.open(tmp_path / "dit" / "samples.png") as picture:
        assert picture.size == (2 * 32, 4 * 32)


def test_samples_of_the_foreign_generator_have_the_noise_that_the_decoder_expects() -> None:
    """A perfect network for a single latent: its samples are this latent with noise of log-SNR 5."""
    script = SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "train_dit_on_latents.py")))
    scheduler, z_clean = LogSNRScheduler(), torch.tensor([0.5, -1.0]).reshape(1, 2, 1, 1)

    class Perfect(torch.nn.Module):
        config = SimpleNamespace(sample_size=64, in_channels=2, num_embeds_ada_norm=1)

        def forward(self, z: torch.Tensor, level: torch.Tensor, labels: torch.Tensor, return_dict: bool) -> tuple:
            logsnr = (5 - level * 15 / 1000).reshape(-1, 1, 1, 1)
            alpha, sigma = alpha_sigma(logsnr)
            return ((alpha * z - z_clean) / sigma,)

    torch.manual_seed(0)
    z_0 = script.sample(Perfect(), scheduler, torch.zeros(4, dtype=torch.long), guidance=1.0)
    alpha, sigma = alpha_sigma(torch.tensor(5.0))
    noise = (z_0 - alpha * z_clean) / sigma
    assert torch.allclose(noise.std(dim=(0, 2, 3)), torch.ones(2), atol=0.05)
    assert noise.mean(dim=(0, 2, 3)).abs().max() < 0.05


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_train_a_foreign_generator_whose_samples_belong_to_their_classes(tmp_path: Path) -> None:
    """Samples of an untrained network are nearest to the right class by chance; those of a trained one mostly."""
    pipe, classes, names = UnifiedLatentsPipeline.from_pretrained("ul-fashion"), 5, ["a", "b", "c", "d", "e"]
    pipe.set_progress_bar_config(disable=True)
    labels = torch.arange(classes).repeat_interleave(48)
    generator = torch.Generator().manual_seed(0)
    (z,) = pipe(labels.tolist(), num_inference_steps=8, output_type="latent", generator=generator, return_dict=False)
    write_latents(tmp_path / "latents", names, list(z.split(48)), "ul-fashion")
    means = torch.stack([part.mean(0) for part in z.split(48)])

    script = SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "train_dit_on_latents.py")))
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", 2, "--num_machines", 1]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", 0]
    small = ("--steps", 200, "--batch-size", 24, "--width", 128, "--layers", 3, "--learning-rate", 2e-3)
    run(*launch, ROOT / "examples" / "train_dit_on_latents.py", tmp_path / "latents", "-o", tmp_path / "dit", *small)

    def share_of_right_classes(network: DiTTransformer2DModel) -> float:
        torch.manual_seed(0)
        wanted = torch.arange(classes).repeat(20)
        samples = script.sample(network.eval(), LogSNRScheduler(), wanted)
        distances = (samples[:, None] - means).flatten(2).norm(dim=2)
        return float((distances.argmin(1) == wanted).float().mean())

    untrained = script.make_network(LatentDataset(tmp_path / "latents"), width=128, layers=3)
    assert share_of_right_classes(untrained) < 0.35
    assert share_of_right_classes(DiTTransformer2DModel.from_pretrained(tmp_path / "dit")) > 0.6


def test_the_python_blocks_of_the_page_on_generators_run_one_after_another() -> None:
    page = (ROOT / "docs" / "how-to" / "latents-in-your-generator.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    decoded = []
    for block in blocks:
        exec(block, names)
        decoded += [names["pictures"].shape] if "pictures =" in block else []
    assert decoded == [(4, 3, 64, 64)] * 3
    alpha, sigma = alpha_sigma(torch.tensor(5.0))
    t_0, unit = names["t_0"], math.hypot(1 - names["t_0"], names["t_0"])  # z_t / unit is z_0
    assert math.isclose((1 - t_0) / unit, float(alpha), rel_tol=1e-6)
    assert math.isclose(t_0 / unit, float(sigma), rel_tol=1e-6)
