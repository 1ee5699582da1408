"""What needs no latents needs no torch: describing, checking and merging a data set start in a fraction of a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ul_tokenizer.latents.writer import LatentWriter

ROOT = Path(__file__).parents[2]
# Runs a command line, then says on standard error which heavy libraries it has imported.
RUN = """
import sys
from ul_tokenizer.cli import app
try:
    app(sys.argv[1:])
finally:
    print("imported:", *sorted({"torch", "diffusers", "transformers"} & sys.modules.keys()), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents") / "data"
    header = {"latent_channels": 2, "latent_logsnr": 5.0, "dtype": "float16", "class_names": ["a", "b"]}
    with LatentWriter(folder, header, shard_samples=3) as writer:
        writer.append([f"{n}.jpg" for n in range(7)], torch.randn(7, 2, 3, 3), [{"label": n % 2} for n in range(7)])
    return folder


def run(*words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, *map(str, words)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert done.stderr.splitlines()[-1] == "imported:"
    return done


def test_info(data: Path) -> None:
    found = json.loads(run("latents", "info", data, "--json").stdout)
    assert found.keys() == {"results", "skipped", "totals"} and found["totals"]["samples"] == 7
    (facts,) = found["results"]
    assert facts["shapes"] == {"2×3×3": 7} and facts["columns"] == ["label"] and facts["class_names"] == ["a", "b"]
    assert 0 < facts["rounding_rms"] < 1e-3


def test_verify_and_merge(data: Path, tmp_path: Path) -> None:
    assert "whole" in run("latents", "verify", data).stderr
    run("latents", "merge", data, "-o", tmp_path / "merged")
    shard = next((tmp_path / "merged").glob("*.safetensors"))
    shard.unlink()
    done = run("latents", "verify", tmp_path / "merged", "--json", status=1)
    assert json.loads(done.stdout)["results"] == [{"file": shard.name, "reason": "it is missing"}]
