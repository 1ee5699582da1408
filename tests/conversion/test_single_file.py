"""One safetensors file with its config inside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsTransformer


@pytest.fixture
def file(repository: Path, script: Callable[[str], ModuleType], tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    assert script("to_safetensors_single_file").main([str(repository), "-o", str(path)]) == 0
    return path


def test_it_loads_with_equal_outputs(file: Path, repository: Path) -> None:
    one, other = UnifiedLatentsAutoencoder.from_single_file(file), UnifiedLatentsAutoencoder.from_pretrained(repository)
    x, noise = torch.rand(1, 3, 32, 24) * 2 - 1, torch.randn(1, 3, 32, 24)
    with torch.no_grad():
        outputs = [model(x, noise=noise).sample for model in (one, other)]
    assert all(torch.equal(weight, other.state_dict()[key]) for key, weight in one.state_dict().items())
    # Weights lie elsewhere in the file, and some kernels round by where numbers lie.
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-6)
    assert not one.training
    assert UnifiedLatentsAutoencoder.from_single_file(file, torch_dtype=torch.float16).dtype == torch.float16


def test_the_prior_has_a_file_of_its_own(repository: Path, script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    assert script("to_safetensors_single_file").main([str(repository), "--prior", "-o", str(path)]) == 0
    there = UnifiedLatentsTransformer.from_pretrained(repository, subfolder="prior").state_dict()
    here = UnifiedLatentsTransformer.from_single_file(path).state_dict()
    assert all(torch.equal(weight, here[key]) for key, weight in there.items())
    with pytest.raises(ValueError, match="must be the config of a UnifiedLatentsAutoencoder"):
        UnifiedLatentsAutoencoder.from_single_file(path)


def test_other_and_damaged_files_are_one_sentence(file: Path, tmp_path: Path) -> None:
    weights = load_file(file)
    save_file(weights, tmp_path / "plain.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:100])
    huge = json.dumps({"_class_name": "UnifiedLatentsAutoencoder", "latent_channels": 10**12})
    save_file(weights, tmp_path / "huge.safetensors", metadata={"ul_tokenizer.config": huge})
    expected = {
        "plain": "config in its metadata",
        "cut": "can't be read",
        "huge": "latent_channels",
        "none": "can't be read",
    }
    for name, text in expected.items():
        with pytest.raises(ValueError, match=text) as error:
            UnifiedLatentsAutoencoder.from_single_file(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(error.value)


def test_a_name_that_is_no_safetensors_file_is_refused(
    repository: Path, script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("to_safetensors_single_file").main([str(repository), "-o", str(tmp_path / "x.bin")]) == 1
    assert "must be a .safetensors file" in capsys.readouterr().err
