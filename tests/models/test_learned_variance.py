"""Encoders that learn a variance beside the fixed noise of z_0 (the paper's Table 6 D)."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from conversion.export_onnx import export
from ul_tokenizer import UnifiedLatentsAutoencoder
from ul_tokenizer.latents.encoder import Encoder, Identity
from ul_tokenizer.models.any_autoencoder import encode_clean
from ul_tokenizer.models.latent_distribution import LatentDistribution
from ul_tokenizer.models.presets import build_autoencoder

SNR = math.exp(5.0)


def make_model(logvar: float | None = None, **config: Any) -> UnifiedLatentsAutoencoder:
    torch.manual_seed(0)
    model = build_autoencoder("ul-tiny-f8", {"learned_variance": True, **config}).eval()
    if logvar is not None:
        assert model.encoder.conv_out.bias is not None
        model.encoder.conv_out.bias.data[4:] = logvar
    return model


def pixels(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


class UnitGaussianPrior:
    """Knows N(0, I) perfectly, so v̂ = 0."""

    config = SimpleNamespace(latent_logsnr=5.0)

    def __call__(self, z_t: Tensor, logsnr: Tensor) -> Any:
        return SimpleNamespace(sample=torch.zeros_like(z_t))


def test_a_fresh_encoder_is_nearly_deterministic() -> None:
    distribution = make_model().encode(pixels(2, 3, 32, 32)).latent_dist
    assert distribution.latent.shape == distribution.std.shape == (2, 4, 4, 4)
    torch.testing.assert_close(distribution.std, torch.full_like(distribution.std, SNR**-0.5), rtol=0.05, atol=0)


def test_without_it_no_weight_and_no_latent_changes() -> None:
    plain, default = build_autoencoder("ul-tiny-f8", {"learned_variance": False}), build_autoencoder("ul-tiny-f8")
    assert plain.encoder.conv_out.weight.shape == default.encoder.conv_out.weight.shape
    distribution = default.encode(pixels(1, 3, 32, 32)).latent_dist
    assert distribution.latent_logvar is None
    assert distribution.std.shape == ()


def test_the_latent_has_both_noises() -> None:
    z, logvar = torch.zeros(1, 4, 200, 200), torch.tensor([-20.0, -3.0, 0.0, 1.0])[None, :, None, None]
    distribution = LatentDistribution(z, 5.0, logvar.expand_as(z))
    drawn = distribution.sample(torch.Generator().manual_seed(0)).std((0, 2, 3))
    expected = [math.sqrt((SNR * math.exp(v) + 1) / (SNR + 1)) for v in (-20.0, -3.0, 0.0, 1.0)]
    torch.testing.assert_close(drawn, torch.tensor(expected), rtol=0.02, atol=0)
    clean = distribution.sample_clean(torch.Generator().manual_seed(0)).std((0, 2, 3))
    torch.testing.assert_close(clean, logvar.flatten().mul(0.5).exp(), rtol=0.02, atol=1e-3)


def test_a_noisier_latent_holds_less_information() -> None:
    """The bits fall by ½ log₂(1 + σ_z² e⁵) a dimension, and rise by what the larger z costs this prior."""
    x, prior = pixels(4, 3, 64, 64), cast(Any, UnitGaussianPrior())
    bits = {v: make_model(v).bits(x, prior, 64, torch.Generator().manual_seed(0)).mean() for v in (-20.0, -2.0)}
    variance, dims = math.exp(-2.0), 4 * 8 * 8
    cost = 0.5 * variance * cost_of_z_squared() * dims / math.log(2)
    gain = 0.5 * math.log2(1 + variance * SNR) * dims
    assert bits[-2.0] - bits[-20.0] == pytest.approx(cost - gain, rel=0.05)


def cost_of_z_squared() -> float:
    """∫ α² σ² dλ: with v̂ = 0, α² ‖v‖² = α² ‖α ε − σ z‖² holds that much of z²."""
    logsnr = torch.linspace(-10, 5, 20_001).double()
    return float(torch.trapezoid(torch.sigmoid(logsnr) * torch.sigmoid(-logsnr), logsnr))


@pytest.mark.parametrize("tiled", [False, True])
def test_a_saved_model_and_a_tiled_one_encode_alike(tmp_path: Path, tiled: bool) -> None:
    model, x = make_model(-1.0), pixels(1, 3, 32, 32)
    model.save_pretrained(tmp_path)
    loaded = UnifiedLatentsAutoencoder.from_pretrained(tmp_path)
    if tiled:
        loaded.enable_tiling(32, 32)
    ours, theirs = model.encode(x).latent_dist, loaded.encode(x).latent_dist
    assert torch.equal(ours.mean, theirs.mean)
    assert torch.equal(ours.std, theirs.std)


def test_a_stream_yields_the_distribution_of_the_whole_clip() -> None:
    model = make_model(-1.0, temporal_compression_ratio=2)
    clip = pixels(1, 3, 12, 32, 32)
    whole = model.encode(clip).latent_dist
    model.encode_chunk_frames = 4
    streamed = torch.cat(list(model.encode_stream([clip])), dim=2)
    torch.testing.assert_close(streamed, whole.mode())


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"learned_variance": 1}, "learned_variance must be true or false, got 1."),
        (
            {"temporal_compression_ratio": 2, "temporal_downsample": "latents"},
            'learned_variance needs temporal_downsample="features", got "latents".',
        ),
    ],
)
def test_a_config_that_cannot_be_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace('"', ".")):
        make_model(**config)


def test_jobs_that_store_latents_refuse_it_in_one_sentence(tmp_path: Path) -> None:
    model = make_model()
    words = "latents are stored and given only of encoders without learned_variance, got one with it."
    with pytest.raises(ValueError, match=words):
        encode_clean(model, pixels(1, 3, 32, 32))
    with pytest.raises(ValueError, match=words):
        Encoder(model, Identity("x", None, "0"))
    with pytest.raises(ValueError, match="only deterministic encoders can be exported"):
        export(model, tmp_path)
