"""Another implementation's components, by a map of names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsTransformer

RULES = {
    "encoder": {"rename": [["^down_blocks\\.(\\d+)\\.resnets", r"stages.\1.blocks"]], "drop": ["num_batches_tracked$"]},
    "decoder": {},
    "prior": {},
}


@pytest.fixture
def theirs(repository: Path) -> dict[str, dict[str, Tensor]]:
    """Our weights as another implementation would have named them."""
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(repository)
    prior = UnifiedLatentsTransformer.from_pretrained(repository, subfolder="prior")
    encoder = {
        name.replace("stages.", "down_blocks.").replace(".blocks.", ".resnets."): weight
        for name, weight in autoencoder.encoder.state_dict().items()
    }
    encoder = {name: w.contiguous() for name, w in encoder.items()}
    renames = [["^down_blocks\\.(\\d+)\\.downsample", r"stages.\1.downsample"]]
    RULES["encoder"]["rename"] = [["^down_blocks\\.(\\d+)\\.resnets", r"stages.\1.blocks"], *renames]
    encoder["norm.num_batches_tracked"] = torch.zeros(1)
    return {"encoder": encoder, "decoder": autoencoder.decoder.state_dict(), "prior": prior.state_dict()}


def write_rules(folder: Path, rules: Any = RULES) -> Path:
    path = folder / "map.json"
    path.write_text(rules if isinstance(rules, str) else json.dumps(rules))
    return path


def as_flax(weights: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    """Names by slashes, kernels HWIO and (in, out), scales of norms."""
    tree = {}
    for name, weight in weights.items():
        stem, _, leaf = name.rpartition(".")
        array = weight.numpy()
        if leaf == "weight" and weight.ndim >= 2:
            leaf, array = "kernel", np.moveaxis(array, (0, 1), (-1, -2))
        elif leaf == "weight":
            leaf = "scale"
        tree["/".join(["params", *stem.split("."), leaf] if stem else ["params", leaf])] = array
    return tree


def assert_equal_outputs(folder: Path, repository: Path) -> None:
    one, other = (UnifiedLatentsAutoencoder.from_pretrained(path) for path in (folder, repository))
    x, noise = torch.rand(1, 3, 32, 24) * 2 - 1, torch.randn(1, 3, 32, 24)
    with torch.no_grad():
        assert torch.equal(one(x, noise=noise).sample, other(x, noise=noise).sample)
    here, there = (UnifiedLatentsTransformer.from_pretrained(path, subfolder="prior") for path in (folder, repository))
    assert all(torch.equal(weight, there.state_dict()[key]) for key, weight in here.state_dict().items())


@pytest.mark.parametrize("form", ["folders", "files", "npz", "one file"])
def test_components_come_over_with_equal_outputs(
    theirs: dict[str, dict[str, Tensor]],
    repository: Path,
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    form: str,
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for part, weights in theirs.items():
        if form == "folders":
            (source / part).mkdir()
            save_file(weights, source / part / "diffusion_pytorch_model.safetensors")
        elif form == "files":
            save_file(weights, source / f"{part}.safetensors")
        elif form == "npz":
            np.savez(str(source / f"{part}.npz"), **dict[str, Any](as_flax(weights)))
    if form == "one file":
        source = tmp_path / "all.safetensors"
        save_file({f"{part}.{k}": w for part, weights in theirs.items() for k, w in weights.items()}, source)
    arguments = [source, "--map", write_rules(tmp_path), "--like", "ul-tiny-f8", "-o", tmp_path / "ours"]
    assert script("from_split_components").main(list(map(str, arguments))) == 0
    assert_equal_outputs(tmp_path / "ours", repository)


def test_every_name_without_a_place_is_reported_and_nothing_written(
    theirs: dict[str, dict[str, Tensor]],
    repository: Path,
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    theirs["encoder"]["extra.weight"] = torch.zeros(2)
    theirs["decoder"] = dict(theirs["decoder"])
    theirs["decoder"].pop("conv_in.bias")
    theirs["decoder"]["conv_in.weight"] = torch.zeros(1, 2)
    for part, weights in theirs.items():
        save_file({key: weight.clone() for key, weight in weights.items()}, tmp_path / f"{part}.safetensors")
    words = [tmp_path, "--map", write_rules(tmp_path), "--like", str(repository), "-o", tmp_path / "ours"]
    main = script("from_split_components").main
    assert main(list(map(str, words))) == 1
    said = capsys.readouterr()
    for line in (
        "unmapped: encoder.extra.weight → extra.weight",
        "missing: decoder.conv_in.bias",
        "misshapen: decoder.conv_in.weight → conv_in.weight: (1, 2), not",
        "dropped: encoder.norm.num_batches_tracked",
    ):
        assert line in said.out
    assert "nothing was written" in said.err
    assert not (tmp_path / "ours").exists()
    assert main([*map(str, words), "--partial"]) == 1
    assert UnifiedLatentsAutoencoder.from_pretrained(tmp_path / "ours").config.latent_channels == 4


@pytest.mark.parametrize(
    "rules", ["{", "[]", '{"middle": {}}', '{"encoder": {"rename": [["(", ""]]}}', '{"encoder": {"x": 1}}']
)
def test_a_map_that_is_none_is_one_sentence(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str], rules: str
) -> None:
    words = [tmp_path, "--map", write_rules(tmp_path, rules), "--like", "ul-tiny-f8", "-o", tmp_path / "ours"]
    assert script("from_split_components").main(list(map(str, words))) == 1
    said = capsys.readouterr().err
    assert "is not a map of names" in said and said.count("\n") == 1


def test_an_empty_source_is_named(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [tmp_path, "--map", write_rules(tmp_path), "--like", "ul-tiny-f8", "-o", tmp_path / "ours"]
    assert script("from_split_components").main(list(map(str, words))) == 1
    assert "holds none of encoder, decoder, prior" in capsys.readouterr().err
