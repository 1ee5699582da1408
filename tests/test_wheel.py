"""The wheel holds what the package needs: bundled weights, their manifest, and the templates of cards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = """
import sys
import torch
import ul_tokenizer
from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsPipeline
from ul_tokenizer.publish.cards import model_card
from ul_tokenizer.models.repository import load_prior
from ul_tokenizer.pretrained import ROOT

assert ul_tokenizer.__file__.startswith(sys.argv[1]), ul_tokenizer.__file__
vae = UnifiedLatentsAutoencoder.from_pretrained("ul-photo-f8")
x = torch.rand(1, 3, 64, 64)
print(float(vae.bits(x, load_prior("ul-photo-f8"), generator=torch.Generator().manual_seed(0))))
print(UnifiedLatentsPipeline.from_pretrained("ul-fashion")(class_labels=[7], num_inference_steps=1).images[0].size)
assert "What it is" in str(model_card(ROOT / "ul-photo-f8", "me/model"))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed into a folder of its own; its dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = folder / "source"  # a build must not lean on, or leave, anything in the tree
    shutil.copytree(ROOT / "ul_tokenizer", source / "ul_tokenizer", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    subprocess.run([*pip, "wheel", "--no-deps", str(source), "-w", str(folder)], check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def run(site: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "HF_HOME": str(site.parent / "empty")}
    command = [sys.executable, "-c", code, str(site)]
    return subprocess.run(command, cwd=site.parent, env=environment, capture_output=True, text=True, timeout=300)


def test_the_bundled_models_load_offline_from_an_installed_wheel(installed: Path) -> None:
    done = run(installed, CODE)
    assert done.returncode == 0, done.stderr[-2000:]
    bits, size = done.stdout.splitlines()
    assert float(bits) > 0
    assert size == "(32, 32)"


def test_the_command_line_works_there(installed: Path) -> None:
    done = run(installed, "import sys; from ul_tokenizer.cli import app; sys.argv[1:] = ['hub', 'list']; app()")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ul-photo-f8" in done.stdout and "ul-fashion" in done.stdout


def test_training_starts_from_an_installed_wheel_by_the_name_of_a_recipe(installed: Path) -> None:
    photos = Path(__file__).parent.parent / "examples" / "images"
    words = ["train", "autoencoder", "--config", "ul-photo-f8", "--dry_run", "--train_data_dir", str(photos)]
    code = f"import runpy, sys; sys.argv = {words}; runpy.run_module('ul_tokenizer.train', run_name='__main__')"
    done = run(installed, code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "output_dir: runs/ul-photo-f8" in done.stdout and "# decoder: " in done.stdout


def test_damaged_weights_are_seen(installed: Path) -> None:
    weights = installed / "ul_tokenizer" / "pretrained" / "ul-photo-f8" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        done = run(
            installed, "from ul_tokenizer import UnifiedLatentsAutoencoder as A; A.from_pretrained('ul-photo-f8')"
        )
        assert "is damaged: its sha256 differs from the manifest" in done.stderr
    finally:
        weights.write_bytes(content)
