"""Any autoencoder, through the same calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from tests.evaluation.autoencoders import save
from tests.evaluation.conftest import make_pipeline, moved
from ul_tokenizer.evaluation.autoencoders import AnyAutoencoder, load_any_autoencoder
from ul_tokenizer.evaluation.subjects import AutoencoderSubject
from ul_tokenizer.media.pixels import to_float, to_uint8
from ul_tokenizer.models.presets import build_autoencoder, build_prior

SIDE = 32


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Five smooth random images, (5, 3, 32, 32) uint8."""
    noise = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, size=(SIDE, SIDE), mode="bilinear")
    return (smooth * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def clips(images: Tensor) -> Tensor:
    """Two clips of nine frames, (2, 3, 9, 32, 32) uint8."""
    return torch.stack([images[:2].roll(shift, -1) for shift in range(9)], dim=2)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ours")
    moved(build_autoencoder("ul-tiny-f8")).save_pretrained(folder)
    moved(build_prior("ul-tiny-f8")).save_pretrained(folder / "prior")
    return folder


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderTiny", "AutoencoderDC", "AutoencoderRAE", "VQModel"])
def test_any_autoencoder_of_images_returns_images(name: str, images: Tensor, tmp_path: Path) -> None:
    subject = AutoencoderSubject(load_any_autoencoder(str(save(name, tmp_path))))
    result = subject.reconstruct(images, range(5))
    assert result.pixels.shape == images.shape and result.pixels.dtype == torch.uint8
    assert result.is_finite.all()
    facts = subject.facts()
    assert (facts["type"], facts["num_inference_steps"]) == (name, None)
    assert facts["parameters"]["total"] > 0
    flops = subject.flops((3, SIDE, SIDE))
    assert flops is not None and min(sum(kinds.values()) for kinds in flops.values()) > 0


@pytest.mark.parametrize(("name", "frames"), [("AutoencoderKLWan", 9), ("AutoencoderKLLTXVideo", 9)])
def test_autoencoders_of_clips_take_clips(name: str, frames: int, clips: Tensor, tmp_path: Path) -> None:
    subject = AutoencoderSubject(load_any_autoencoder(str(save(name, tmp_path))))
    assert subject.autoencoder.takes_clips
    assert subject.reconstruct(clips[:, :, :frames], range(2)).pixels.shape == (2, 3, frames, SIDE, SIDE)


def test_the_pixels_of_kl_are_those_of_diffusers(images: Tensor, tmp_path: Path) -> None:
    folder = save("AutoencoderKL", tmp_path)
    subject = AutoencoderSubject(load_any_autoencoder(str(folder), latent="mode"))
    model = AutoencoderKL.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = model.decode(model.encode(to_float(images)).latent_dist.mode()).sample
    found = subject.reconstruct(images, range(5)).pixels
    assert (found.int() - to_uint8(expected).int()).abs().max() <= 1  # at the edge of rounding


def test_an_autoencoder_of_the_unit_range_gets_it(images: Tensor, tmp_path: Path) -> None:
    any_one = load_any_autoencoder(str(save("AutoencoderRAE", tmp_path)))
    x = to_float(images)
    with torch.inference_mode():
        latents = any_one.encode(x, [])
        assert torch.equal(latents, any_one.model.encode(x / 2 + 0.5).latent)
        expected = 2 * any_one.model.decode(latents).sample - 1
        assert torch.equal(any_one.decode(latents, [], None, None), expected)


def test_noise_depends_on_the_samples_number_alone(images: Tensor, ours: Path) -> None:
    subject = AutoencoderSubject(load_any_autoencoder(str(ours)), 2)
    together, alone = subject.reconstruct(images, range(5)), subject.reconstruct(images[3:4], [3])
    assert (together.pixels[3].int() - alone.pixels[0].int()).abs().max() <= 1
    assert torch.allclose(together.bits[3], alone.bits[0], rtol=1e-4)
    other = subject.reconstruct(images[3:4], [4])
    assert not torch.equal(other.pixels, alone.pixels)


def test_steps_of_ours_are_those_asked_for_or_the_configs(images: Tensor, ours: Path) -> None:
    loaded = load_any_autoencoder(str(ours))
    default = loaded.model.config.num_inference_steps
    assert AutoencoderSubject(loaded).facts()["num_inference_steps"] == default
    one, many = (AutoencoderSubject(loaded, steps).reconstruct(images, range(5)).pixels for steps in (1, 3))
    assert not torch.equal(one, many)


def test_bits_are_the_priors_bound_or_a_nominal_rate(images: Tensor, ours: Path, tmp_path: Path) -> None:
    subject = AutoencoderSubject(load_any_autoencoder(str(ours)))
    assert subject.kind_of_bits == "bound by the prior"
    assert (subject.reconstruct(images, range(5)).bits > 0).all()
    kl = AutoencoderSubject(load_any_autoencoder(str(save("AutoencoderKL", tmp_path))))
    assert kl.kind_of_bits == "nominal, 16 bits per latent value"
    assert kl.reconstruct(images, range(5)).bits.tolist() == [16.0 * 4 * 16 * 16] * 5
    vq = AutoencoderSubject(load_any_autoencoder(str(save("VQModel", tmp_path))))
    assert vq.kind_of_bits == "nominal, all codes equally likely"
    assert vq.reconstruct(images, range(5)).bits.tolist() == [4.0 * 16 * 16] * 5


def test_odd_sizes_are_padded_and_cut_again(images: Tensor, ours: Path) -> None:
    subject = AutoencoderSubject(load_any_autoencoder(str(ours)))
    odd = images[:, :, :27, :30]
    padded = torch.nn.functional.pad(odd.float(), (0, 2, 0, 5), mode="replicate").to(torch.uint8)
    results = [subject.reconstruct(pixels, range(5)) for pixels in (odd, padded)]
    assert torch.equal(results[0].pixels, results[1].pixels[:, :, :27, :30])
    assert torch.equal(results[0].bits, results[1].bits)


def test_models_of_images_take_clips_frame_by_frame_with_one_noise(clips: Tensor, ours: Path) -> None:
    subject = AutoencoderSubject(load_any_autoencoder(str(ours)))
    still = clips[:, :, :1].expand(-1, -1, 4, -1, -1)
    result = subject.reconstruct(still, range(2))
    assert result.pixels.shape == still.shape
    assert (result.pixels.int() - result.pixels[:, :, :1].int()).abs().max() <= 1
    frame = subject.reconstruct(still[:, :, 0], range(2))
    assert torch.allclose(result.bits, 4 * frame.bits, rtol=1e-4)


def test_reconstructions_that_are_not_finite_are_told(images: Tensor, ours: Path) -> None:
    loaded = load_any_autoencoder(str(ours))
    loaded.model.decoder.conv_out.bias.data.fill_(torch.nan)
    assert not AutoencoderSubject(loaded).reconstruct(images, range(5)).is_finite.any()


def test_a_model_that_returns_another_size_is_refused(images: Tensor, tmp_path: Path) -> None:
    subject = AutoencoderSubject(load_any_autoencoder(str(save("AutoencoderRAE", tmp_path))))
    larger = torch.nn.functional.interpolate(images.float(), size=(64, 64)).to(torch.uint8)
    with pytest.raises(ValueError, match=r"model must return the size that it is given, got 32×32 for 64×64 from"):
        subject.reconstruct(larger, range(5))


def test_the_autoencoder_of_a_pipeline_is_taken(tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path)
    assert load_any_autoencoder(str(tmp_path)).is_ours


def test_what_is_no_autoencoder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    unet = save("UNet2DModel", tmp_path)
    with pytest.raises(ValueError, match=r"model must be an autoencoder, got \S+, a UNet2DModel\.$"):
        load_any_autoencoder(str(unet))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"model must be an autoencoder, got \S+, which has no config.json\.$"):
        load_any_autoencoder(str(tmp_path / "empty"))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"_class_name": "NoSuchClass"}))
    with pytest.raises(ValueError, match=r"model \S+ can't be loaded: .*NoSuchClass[^.]*\.$"):
        load_any_autoencoder(str(tmp_path / "odd"))
    (tmp_path / "odd" / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"must hold a JSON object, which it doesn't\.$"):
        load_any_autoencoder(str(tmp_path / "odd"))


def test_a_model_in_memory_is_measured_too(images: Tensor) -> None:
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()
    assert AutoencoderSubject(AnyAutoencoder("mine", tiny)).reconstruct(images, range(5)).is_finite.all()
