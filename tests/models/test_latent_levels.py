"""Decoders that take z_0 at several noise levels, for models of a single stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conversion.export_onnx import export
from conversion.prior_to_pipeline import main
from ul_tokenizer import UnifiedLatentsAutoencoder
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline

Z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> UnifiedLatentsAutoencoder:
    torch.manual_seed(0)
    model = build_autoencoder("ul-tiny-f8", {"latent_logsnr_min": -2.0, "sample_size": 32}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@torch.no_grad()
def test_the_decoder_is_told_the_level_and_none_means_the_cleanest(model: UnifiedLatentsAutoencoder) -> None:
    default, clean, noisy = (
        model.decode(Z, generator=seeded(), latent_logsnr=level).sample for level in (None, 5.0, 0.0)
    )
    assert torch.equal(default, clean)
    assert (clean - noisy).abs().mean() > 1e-3


@torch.no_grad()
def test_what_calls_the_decoder_without_a_level_means_the_cleanest(model: UnifiedLatentsAutoencoder) -> None:
    """As the distillation and the benchmarks do."""
    clip = Z.unsqueeze(2)
    default, clean, noisy = (
        model.decoder.embed_latents(clip, None if level is None else torch.full((2,), level))
        for level in (None, 5.0, 0.0)
    )
    assert torch.equal(default, clean)
    assert not torch.allclose(default, noisy)


@torch.no_grad()
def test_a_stream_decodes_at_the_cleanest_level(model: UnifiedLatentsAutoencoder) -> None:
    clip = Z.unsqueeze(2)
    streamed = torch.cat(list(model.decode_stream([clip], generator=seeded())), dim=2)
    torch.testing.assert_close(streamed, model.decode(clip, generator=seeded()).sample)


@pytest.mark.parametrize("level", [-2.5, 5.5])
def test_a_level_out_of_range_is_refused(model: UnifiedLatentsAutoencoder, level: float) -> None:
    with pytest.raises(ValueError, match=rf"latent_logsnr must be from -2.0 to 5.0, got {level}."):
        model.decode(Z, latent_logsnr=level)


def test_a_decoder_of_one_level_refuses_others() -> None:
    plain = build_autoencoder("ul-tiny-f8")
    with pytest.raises(ValueError, match=r"latent_logsnr must be 5.0, the only level of this decoder, got 4.0."):
        plain.decode(Z, latent_logsnr=4.0)
    assert not any("level" in name for name in plain.state_dict())


def test_a_range_without_levels_is_refused_and_so_is_an_export(
    model: UnifiedLatentsAutoencoder, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"latent_logsnr_min must be below latent_logsnr, 5.0, got 5.0."):
        build_autoencoder("ul-tiny-f8", {"latent_logsnr_min": 5.0})
    with pytest.raises(ValueError, match="only decoders of one latent level can be exported"):
        export(model, tmp_path)


def test_the_prior_of_a_single_stage_generates_at_the_level_that_is_asked_for(
    model: UnifiedLatentsAutoencoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "model")
    prior = build_prior("ul-tiny-f8")
    for parameter in prior.parameters():
        parameter.data.zero_()  # so that it predicts v = 0
    prior.save_pretrained(tmp_path / "model" / "prior")
    assert main([str(tmp_path / "model"), "-o", str(tmp_path / "pipeline")]) == 0
    assert main([str(tmp_path / "model"), "-o", str(tmp_path / "pipeline")]) == 1
    assert "must be empty, it holds files." in capsys.readouterr().err
    pipe = UnifiedLatentsPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    told: list[float | None] = []
    decode = pipe.vae.decode

    def noted(z: Tensor, **options: Any) -> Any:
        told.append(options.get("latent_logsnr"))
        return decode(z, **options)

    pipe.vae.decode = noted
    z_1 = torch.randn(1, 4, 4, 4, generator=seeded())
    for level in (None, 1.0):
        sampled: dict[str, Any] = {"latent_logsnr": level, "num_inference_steps": 3, "return_dict": False}
        (z,) = pipe(**sampled, generator=seeded(), output_type="latent")
        pipe(**sampled, generator=seeded())
        # With v = 0, each step turns z by an angle: z_s = cos(φ_t − φ_s) z_t with tan φ = σ/α.
        logsnrs = torch.linspace(-10, 5.0 if level is None else level, 4)
        torch.testing.assert_close(z, z_1 * (-0.5 * logsnrs).exp().atan().diff().cos().prod())
    assert told == [None, 1.0]
    with pytest.raises(ValueError, match=r"latent_logsnr must be from -2.0 to 5.0, got 6.0."):
        pipe(latent_logsnr=6.0)


def test_a_pipeline_of_two_stages_refuses_a_level(tmp_path: Path) -> None:
    build_autoencoder("ul-tiny-f8", {"sample_size": 32}).save_pretrained(tmp_path / "model")
    build_prior("ul-tiny-f8").save_pretrained(tmp_path / "model" / "prior")
    assert main([str(tmp_path / "model"), "-o", str(tmp_path / "pipeline")]) == 0
    pipe = UnifiedLatentsPipeline.from_pretrained(tmp_path / "pipeline")
    with pytest.raises(ValueError, match=r"latent_logsnr must be None for a model of two stages, got 3.0."):
        pipe(latent_logsnr=3.0)
