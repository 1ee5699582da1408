"""An encoder that starts from a pretrained one of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, AutoencoderKL

from ul_tokenizer import UnifiedLatentsAutoencoder
from ul_tokenizer.models.repository import load_prior


def kl(**changes: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        **{
            "block_out_channels": (32, 64, 64, 96),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
            "latent_channels": 4,
            **changes,
        }
    ).eval()


def dc(down: str = "stride_conv", layers: tuple[int, ...] = (1, 2, 1, 1)) -> AutoencoderDC:
    torch.manual_seed(0)
    widths = (32, 64, 64, 64)
    return AutoencoderDC(
        latent_channels=8,
        attention_head_dim=32,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=((), (), (), ()),
        decoder_qkv_multiscales=((), (), (), ()),
        upsample_block_type="interpolate",
        downsample_block_type=down,
    ).eval()


def initialise(script: Callable[[str], ModuleType], source: Any, preset: str = "ul-small-f8") -> Any:
    return script("init_from_autoencoder").initialise(source, preset)


def test_widths_and_convolutions_of_equal_grids_are_taken_over(script: Callable[[str], ModuleType]) -> None:
    source = kl()
    model, taken = initialise(script, source)
    assert model.config.encoder_block_out_channels == (64, 64, 96)
    for stage, (block, resnet) in ((0, (0, 1)), (1, (0, 0)), (1, (1, 1)), (2, (0, 1))):
        theirs, ours = source.encoder.down_blocks[stage + 1].resnets[resnet], model.encoder.stages[stage].blocks[block]
        assert torch.equal(ours.conv_1.weight, theirs.conv1.weight)
        assert torch.equal(ours.conv_2.bias, theirs.conv2.bias)
    assert {"conv_in.weight", "stages.0.downsample.weight"} <= set(taken)


def test_the_way_in_is_the_others_linear_path(script: Callable[[str], ModuleType]) -> None:
    """First convolution, halving and shortcut, without biases, equal ours on patches of 2."""
    source = kl()
    model, _ = initialise(script, source)
    x = torch.randn(1, 3, 16, 16)
    down = source.encoder.down_blocks[0].downsamplers[0].conv.weight[:, :, :2, :2]
    widen = source.encoder.down_blocks[1].resnets[0].conv_shortcut.weight
    with torch.no_grad():
        expected = F.conv2d(F.conv2d(F.conv2d(x, source.encoder.conv_in.weight, padding=1), down, stride=2), widen)
        found = F.conv2d(F.pixel_unshuffle(x, 2), model.encoder.conv_in.weight, padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_step_between_stages_is_halving_and_widening(script: Callable[[str], ModuleType]) -> None:
    source = kl()
    model, _ = initialise(script, source)
    h = torch.randn(1, 64, 8, 8)
    down = source.encoder.down_blocks[2].downsamplers[0].conv.weight[:, :, :2, :2]
    widen = source.encoder.down_blocks[3].resnets[0].conv_shortcut.weight
    with torch.no_grad():
        expected = F.conv2d(F.conv2d(h, down, stride=2), widen)
        found = F.conv2d(h, model.encoder.stages[1].downsample.weight, stride=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("down", ["stride_conv", "pixel_unshuffle"])
@pytest.mark.parametrize("layers", [(1, 2, 1, 1), (0, 2, 1, 1)])  # the published ones have none in the first stage
def test_an_autoencoder_dc_gives_its_convolutions(
    script: Callable[[str], ModuleType], down: str, layers: tuple[int, ...]
) -> None:
    source = dc(down, layers)
    model, taken = initialise(script, source)
    assert model.config.encoder_block_out_channels == (64, 64, 64)
    assert model.config.encoder_layers_per_block == (2, 1, 1)
    theirs = source.encoder.down_blocks[1][0]
    assert torch.equal(model.encoder.stages[0].blocks[0].conv_1.weight, theirs.conv1.weight)
    assert "stages.1.blocks.0.conv_2.weight" in taken
    assert model.encode(torch.rand(1, 3, 32, 32)).latent.isfinite().all()


@pytest.mark.parametrize("down", ["stride_conv", "pixel_unshuffle"])
def test_a_halving_of_an_autoencoder_dc_is_linear_and_kept_where_it_stays_within_its_pixels(
    script: Callable[[str], ModuleType], down: str
) -> None:
    source = dc(down)
    model, _ = initialise(script, source)
    theirs = source.encoder.down_blocks[1][2]
    pixels = torch.zeros(1, 64, 8, 8)
    pixels[:, :, 2:4, 4:6] = torch.randn(1, 64, 2, 2)  # one pair of rows and columns
    with torch.no_grad():
        theirs.conv.bias.zero_()
        expected = theirs(pixels)[:, :, 1, 2]
        found = F.conv2d(pixels, model.encoder.stages[0].downsample.weight, stride=2)[:, :, 1, 2]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("down", ["stride_conv", "pixel_unshuffle"])
def test_the_way_into_a_published_autoencoder_dc_is_exact(script: Callable[[str], ModuleType], down: str) -> None:
    source = dc(down, (0, 2, 1, 1))
    model, _ = initialise(script, source)
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        source.encoder.conv_in.conv.bias.zero_()
        found = F.conv2d(F.pixel_unshuffle(x, 2), model.encoder.conv_in.weight, padding=1)
        torch.testing.assert_close(found, source.encoder.conv_in(x), rtol=1e-4, atol=1e-5)


def test_the_command_writes_what_stage_1_goes_on_from(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kl().save_pretrained(tmp_path / "vae")
    main = script("init_from_autoencoder").main
    assert main([str(tmp_path / "vae"), "-o", str(tmp_path / "start")]) == 0
    assert "copied" in capsys.readouterr().out
    model = UnifiedLatentsAutoencoder.from_pretrained(tmp_path / "start")
    assert load_prior(str(tmp_path / "start")).config.in_channels == model.config.latent_channels
    model.train()
    loss = model(torch.rand(1, 3, 32, 32), noise=torch.randn(1, 3, 32, 32)).sample.square().mean()
    loss.backward()
    assert model.encoder.conv_in.weight.grad is None or model.encoder.conv_in.weight.grad.isfinite().all()


def test_what_is_wrong_is_one_sentence(
    script: Callable[[str], ModuleType], tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shallow = kl(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    shallow.save_pretrained(tmp_path / "shallow")
    main = script("init_from_autoencoder").main
    for source, expected in (
        (repository, "must be one of AutoencoderKL"),
        (tmp_path / "shallow", "needs an encoder with 4 resolutions"),
        (tmp_path, "can't be loaded"),
    ):
        assert main([str(source), "-o", str(tmp_path / "out")]) == 1
        said = capsys.readouterr().err
        assert expected in said
        assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
