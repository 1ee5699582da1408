"""What the training tests share: a folder of small images and the smallest run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.training.command import run_command
from ul_tokenizer.training.engine.accelerator import make_accelerator
from ul_tokenizer.training.parsing import parse_arguments
from ul_tokenizer.training.stage2 import Stage2
from ul_tokenizer.training.stage2_arguments import Stage2Arguments

RunCommand = Callable[..., int]
SMALLEST = {
    "preset": "ul-tiny-f8",
    "resolution": 16,
    "scale_min": 1.0,
    "train_batch_size": 2,
    "max_train_steps": 2,
    "lr_scheduler": "constant",
    "logging_steps": 1,
    "validation_steps": 1000,
    "checkpointing_steps": 1000,
    "num_validation_images": 2,
    "validation_inference_steps": 1,
}


def _make_images(folder: Path, count: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for n in range(count):
        colours = random.integers(0, 255, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((24, 20), Image.Resampling.BICUBIC).save(folder / f"{n}.png")
    return folder


def _flags(**arguments: Any) -> list[str]:
    """Command-line flags; booleans as --name and --no-name."""
    parts: list[str] = []
    for name, value in arguments.items():
        if isinstance(value, bool):
            parts.append(f"--{name}" if value else f"--no-{name}")
        else:
            parts += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return parts


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The networks are too small for more, which would fight over the cores; and so all processes round alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps its state in class attributes, and refuses to start with another precision."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def flags() -> Callable[..., list[str]]:
    return _flags


@pytest.fixture(scope="session")
def make_images() -> Callable[..., Path]:
    return _make_images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def smallest_flags(images: Path) -> Callable[..., list[str]]:
    def make(output_dir: Path, **changes: Any) -> list[str]:
        return _flags(**{**SMALLEST, "train_data_dir": images, "output_dir": output_dir, **changes})

    return make


@pytest.fixture(scope="session")
def train(smallest_flags: Callable[..., list[str]]) -> RunCommand:
    """Trains in this process; returns the exit status."""

    def run(output_dir: Path, **changes: Any) -> int:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        return run_command("autoencoder", smallest_flags(output_dir, **changes))

    return run


@pytest.fixture(scope="session")
def start(smallest_flags: Callable[..., list[str]]) -> Callable[..., subprocess.Popen[str]]:
    """Starts the example script as a process of its own."""

    def run(
        output_dir: Path, *launcher: str, code: str = "", new_group: bool = False, **changes: Any
    ) -> subprocess.Popen[str]:
        script = ["-c", code] if code else ["-m", "ul_tokenizer.train", "autoencoder"]
        command = [sys.executable, *launcher, *script, *smallest_flags(output_dir, **changes)]
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=new_group,
        )

    return run


@pytest.fixture(scope="session")
def logged() -> Callable[[Path], list[dict[str, Any]]]:
    """Lines of metrics.jsonl, without what differs from run to run."""

    def read(output_dir: Path) -> list[dict[str, Any]]:
        lines = (output_dir / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines]

    return read


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, Tensor]]:
    """All tensors below a folder: models, averages and the optimiser's moments."""

    def read(folder: Path) -> dict[str, Tensor]:
        tensors = {
            f"{path.parent.relative_to(folder)}/{name}": tensor
            for path in sorted(folder.rglob("*.safetensors"))
            for name, tensor in load_file(path).items()
        }
        if (folder / "optimizer.bin").exists():
            state = torch.load(folder / "optimizer.bin", weights_only=True)["state"]
            tensors |= {f"optimizer/{n}/{k}": tensor for n, moments in state.items() for k, tensor in moments.items()}
        assert tensors, f"no weights in {folder}"
        return tensors

    return read


# ---------------------------------------------------------------- stage 2

SMALLEST_BASE: dict[str, Any] = {
    "preset": "ul-base-tiny",
    "resolution": 16,
    "scale_min": 1.0,
    "random_flip": False,
    "center_crop": True,
    "train_batch_size": 4,
    "max_train_steps": 2,
    "lr_scheduler": "constant",
    "logging_steps": 1,
    "validation_steps": 1000,
    "checkpointing_steps": 1000,
    "num_validation_images": 2,
    "validation_inference_steps": 1,
    "validation_fraction": 0.2,
}


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh autoencoder that tells dark from light, with its prior."""
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    model = build_autoencoder("ul-tiny-f8")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    build_prior("ul-tiny-f8").save_pretrained(folder / "prior")
    return folder


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two class folders, of dark and of light pictures with some noise."""
    folder = tmp_path_factory.mktemp("classes")
    random = np.random.default_rng(0)
    for name, level in (("dark", 20), ("light", 220)):
        (folder / name).mkdir()
        for n in range(6):
            pixels = (level + random.integers(-20, 20, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{n}.png")
    return folder


@pytest.fixture
def run_flags(autoencoder: Path, classes: Path, flags: Callable[..., list[str]]) -> Callable[..., list[str]]:
    def make(output_dir: Path, **changes: Any) -> list[str]:
        defaults = {"pretrained_autoencoder": autoencoder, "train_data_dir": classes, "output_dir": output_dir}
        arguments = {**SMALLEST_BASE, **defaults, **changes}
        return flags(**{name: value for name, value in arguments.items() if value is not None})

    return make


@pytest.fixture
def train2(run_flags: Callable[..., list[str]]) -> Callable[..., int]:
    def run(output_dir: Path, **changes: Any) -> int:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        return run_command("base", run_flags(output_dir, **changes))

    return run


@pytest.fixture
def make_stage(run_flags: Callable[..., list[str]], tmp_path: Path) -> Callable[..., Stage2]:
    """Makes a stage and prepares it; `prepare=False` leaves that out."""

    def make(prepare: bool = True, **changes: Any) -> Stage2:
        args = parse_arguments(Stage2Arguments, run_flags(tmp_path, **changes))
        AcceleratorState._reset_state(True)
        stage = Stage2(args)
        if prepare:
            stage.prepare(make_accelerator(args))
        return stage

    return make
