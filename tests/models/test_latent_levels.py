"""Decoders that take z_0 at several noise levels, for models of a single stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

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
    build_prior("ul-tiny-f8").save_pretrained(tmp_path / "model" / "prior")
    assert main([str(tmp_path / "model"), "-o", str(tmp_path / "pipeline")]) == 0
    assert main([str(tmp_path / "model"), "-o", str(tmp_path / "pipeline")]) == 1
    assert "must be empty, it holds files." in capsys.readouterr().err
    pipe = UnifiedLatentsPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    ends: list[float] = []
    told: list[float | None] = []
    decode = pipe.vae.decode
    pipe.vae.decode = lambda *args, **options: told.append(options.get("latent_logsnr")) or decode(*args, **options)

    for level in (None, 1.0):
        z = pipe(latent_logsnr=level, num_inference_steps=64, generator=seeded(), output_type="latent").images
        pipe(latent_logsnr=level, num_inference_steps=2, generator=seeded())
        ends.append(float(z.std()))
    assert told == [None, 1.0]
    # A fresh prior predicts v = 0: z at the end is noise that was scaled from λ = −10 on, with its angle kept.
    assert ends[0] == pytest.approx(ends[1], rel=0.35) and ends[0] != ends[1]
    with pytest.raises(ValueError, match=r"latent_logsnr must be from -2.0 to 5.0, got 6.0."):
        pipe(latent_logsnr=6.0)


def test_a_pipeline_of_two_stages_refuses_a_level(tmp_path: Path) -> None:
    build_autoencoder("ul-tiny-f8", {"sample_size": 32}).save_pretrained(tmp_path / "model")
    build_prior("ul-tiny-f8").save_pretrained(tmp_path / "model" / "prior")
    assert main([str(tmp_path / "model"), "-o", str(tmp_path / "pipeline")]) == 0
    pipe = UnifiedLatentsPipeline.from_pretrained(tmp_path / "pipeline")
    with pytest.raises(ValueError, match=r"latent_logsnr must be None for a model of two stages, got 3.0."):
        pipe(latent_logsnr=3.0)
