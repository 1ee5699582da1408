"""LPIPS: the adapter around the library, with a small network in its place."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor, nn

from tests.evaluation.nets.test_feature_nets import module, noise
from ul_tokenizer.evaluation.nets.feature_nets import MissingFeatureNetError
from ul_tokenizer.evaluation.nets.perceptual import LPIPS, load_lpips
from ul_tokenizer.files import sha256_of

__all__ = ["module"]  # a fixture

STAND_IN = """
    import torch

    class LPIPS(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert not verbose
            print("this would be in the way")
            self.conv = torch.nn.Conv2d(3, 4, 3)
            if net == "vgg":
                raise OSError("no route to host")
        def forward(self, a, b):
            return (self.conv(a) - self.conv(b)).square().mean((1, 2, 3), keepdim=True)
"""
TORCHVISION = """
    class _Weights:
        url = "https://example.com/alexnet.pth"
    class AlexNet_Weights:
        IMAGENET1K_V1 = _Weights
    class VGG16_Weights:
        IMAGENET1K_V1 = _Weights
"""


class Distance(nn.Module):
    """Counts its calls; the distance of two images is the mean of their squared difference."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.batches: list[int] = []

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.batches.append(len(a))
        assert a.min() >= -1 and a.max() <= 1
        return (self.scale * (a - b)).square().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def stand_in(module: Callable[..., None], tmp_path: Path) -> None:
    module("lpips", "")
    module("lpips.__init__", STAND_IN)
    module("torchvision", "")
    module("torchvision.__init__", "")
    module("torchvision.models", TORCHVISION)
    (tmp_path / "modules" / "lpips.py").unlink()
    linear = tmp_path / "modules" / "lpips" / "weights" / "v0.1"
    linear.mkdir(parents=True)
    (linear / "alex.pth").write_bytes(b"linear layers")
    backbone = tmp_path / "torch" / "hub" / "checkpoints" / "alexnet.pth"
    backbone.parent.mkdir(parents=True)
    backbone.write_bytes(b"backbone")


def test_distances_are_of_pairs_in_blocks_without_gradients() -> None:
    distance = Distance()
    lpips = LPIPS(distance, "alex", "cpu", {})
    first, second = noise(5, 512), noise(5, 512, seed=1)
    values = lpips(first, second)
    expected = ((first.double() - second.double()) / 127.5).square().mean((1, 2, 3))
    assert values.dtype == torch.float64 and not values.requires_grad and not values.is_inference()
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=0)
    assert distance.batches == [2, 2, 1]  # memory stays bounded at any size
    assert float(lpips(first[:1], first[:1])) == 0


@pytest.mark.usefixtures("stand_in")
def test_lpips_is_loaded_quietly_and_hashes_both_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lpips = load_lpips()
    assert capsys.readouterr() == ("", "")
    assert lpips(noise(2, 32), noise(2, 32, seed=1)).shape == (2,)
    facts: dict[str, Any] = json.loads(json.dumps(lpips.facts()))
    assert (facts["name"], facts["net"]) == ("lpips", "alex")
    assert facts["backbone_sha256"] == sha256_of(tmp_path / "torch" / "hub" / "checkpoints" / "alexnet.pth")
    assert facts["weights_sha256"] != facts["backbone_sha256"]


@pytest.mark.usefixtures("stand_in")
def test_a_failed_download_is_one_sentence() -> None:
    with pytest.raises(
        MissingFeatureNetError, match=r"LPIPS \(vgg\) needs weights that could not be downloaded \(no r"
    ):
        load_lpips("vgg")


@pytest.mark.usefixtures("stand_in")
def test_offline_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load_lpips()  # its backbone is there
    (tmp_path / "torch" / "hub" / "checkpoints" / "alexnet.pth").unlink()
    with pytest.raises(MissingFeatureNetError, match=r"alexnet.pth, and HF_HUB_OFFLINE forbids the download: put http"):
        load_lpips()


def test_a_missing_package_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(MissingFeatureNetError, match=r"LPIPS \(alex\) needs lpips, .*'ul_tokenizer\[eval\]' \(PSNR"):
        load_lpips()


def test_a_torchvision_of_another_build_is_named(module: Callable[..., None]) -> None:
    module("lpips", "raise RuntimeError('operator torchvision::nms does not exist')")
    with pytest.raises(MissingFeatureNetError, match=r"LPIPS \(alex\) needs lpips, .*torchvision::nms does not exist"):
        load_lpips()


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ValueError, match="net must be one of alex, vgg, got 'squeeze'"):
        load_lpips("squeeze")


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (noise(1, 32).float(), noise(1, 32), "reference must be uint8"),
        (noise(1, 32), noise(1, 32)[:, :1], "reconstruction must be uint8"),
        (noise(1, 32), noise(2, 32), r"reconstruction must have the shape of reference, \(1, 3, 32, 32\), got \(2"),
        (noise(1, 30), noise(1, 30), "reference must have at least 31 pixels a side, got 30×30"),
    ],
)
def test_bad_pairs_are_refused(first: Tensor, second: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LPIPS(Distance(), "alex", "cpu", {})(first, second)
