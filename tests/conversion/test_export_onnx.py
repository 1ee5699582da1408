"""Encoder and decoder step as ONNX graphs that onnxruntime runs to the same end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ul_tokenizer import UnifiedLatentsAutoencoder

pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytestmark = pytest.mark.slow  # one export takes about 20 seconds


@pytest.fixture(scope="module")
def exported(repository: Path, script: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "onnx"
    assert script("export_onnx").main([str(repository), "-o", str(output)]) == 0
    return output


def test_the_encoder_gives_torchs_latents_at_any_size(exported: Path, repository: Path) -> None:
    session = onnxruntime.InferenceSession(str(exported / "encoder.onnx"))
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(repository)
    for shape in ((1, 3, 16, 16), (3, 3, 40, 24), (2, 3, 128, 64)):
        x = torch.rand(shape) * 2 - 1
        with torch.no_grad():
            expected = autoencoder.encode(x).latent.numpy()
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_the_described_loop_gives_torchs_pictures(
    exported: Path, repository: Path, script: Callable[[str], ModuleType], steps: int
) -> None:
    session = onnxruntime.InferenceSession(str(exported / "decoder.onnx"))
    description = json.loads((exported / "decoding.json").read_text())
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(repository)
    z, noise = torch.randn(2, 4, 3, 5), torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        expected = autoencoder.decode(z, num_inference_steps=steps, noise=noise).sample.numpy()

    def denoise(x: Any, logsnr: Any, z_0: Any) -> Any:
        return session.run(None, {"x_t": x, "logsnr": logsnr, "z_0": z_0})[0]

    pictures = script("export_onnx").decode(denoise, description, z.numpy(), noise.numpy(), steps)
    np.testing.assert_allclose(pictures, expected, atol=1e-4)


def test_a_graph_that_differs_from_torch_is_seen(
    exported: Path, repository: Path, script: Callable[[str], ModuleType]
) -> None:
    other = UnifiedLatentsAutoencoder.from_pretrained(repository)
    with torch.no_grad():
        other.encoder.conv_in.weight *= 1.1
    with pytest.raises(ValueError, match="must agree with torch"):
        script("export_onnx").check(other, exported)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_the_encoder_compiles_ahead_of_time(
    repository: Path, script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(repository)
    assert script("export_onnx").compile_encoder(autoencoder, tmp_path / "encoder.pt2", 32) < 1e-4


def test_an_existing_folder_and_an_unknown_model_are_refused(
    exported: Path, script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    export = script("export_onnx").main
    assert export(["ul-photo-f8", "-o", str(exported)]) == 1
    assert export(["nothing", "-o", str(tmp_path / "new")]) == 1
    said = capsys.readouterr().err
    assert "must be a new folder" in said and "neither a bundled name" in said
    assert list(tmp_path.iterdir()) == []
