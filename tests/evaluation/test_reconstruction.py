"""Figures of reconstructions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from tests.evaluation.conftest import make_pipeline, moved
from ul_tokenizer.evaluation.labelled_images import LabelledImages, to_rgb_floats
from ul_tokenizer.evaluation.metrics import psnr_of_mean_mse
from ul_tokenizer.evaluation.reconstruction import evaluate_reconstruction
from ul_tokenizer.evaluation.reference import Reference
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.presets import build_prior


@pytest.fixture(scope="module")
def autoencoder() -> UnifiedLatentsAutoencoder:
    vae: UnifiedLatentsAutoencoder = make_pipeline().vae
    return vae


def test_figures_do_not_depend_on_the_batch_size(
    autoencoder: UnifiedLatentsAutoencoder, reference: Reference, test: Path
) -> None:
    prior = moved(build_prior("ul-tiny-f8"))
    images = LabelledImages(test)
    one, many = (
        dataclasses.asdict(evaluate_reconstruction(autoencoder, reference, images, prior, batch_size=size))
        for size in (7, 60)
    )
    del one["seconds"], many["seconds"]
    assert one == pytest.approx(many, rel=1e-3)
    assert 0 < one["bits_per_pixel"] < 24
    assert one["frechet_distance"] > one["floor"] > 0


def test_an_exact_autoencoder_is_at_distance_zero(
    autoencoder: UnifiedLatentsAutoencoder, reference: Reference, test: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = LabelledImages(test)
    monkeypatch.setattr("ul_tokenizer.evaluation.reconstruction._reconstruct", lambda *_: images.images)
    quality = evaluate_reconstruction(autoencoder, reference, images)
    assert quality.frechet_distance < 1e-3 * quality.floor
    assert (quality.accuracy, quality.psnr_of_mean_mse, quality.mean_psnr) == (1.0, None, None)
    assert quality.bits_per_pixel is None


def test_psnr_is_that_of_the_8_bit_pictures(
    autoencoder: UnifiedLatentsAutoencoder, reference: Reference, test: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = LabelledImages(test)
    darker = (images.images.int() - 10).clamp(min=0).to(torch.uint8)
    monkeypatch.setattr("ul_tokenizer.evaluation.reconstruction._reconstruct", lambda *_: darker)
    quality = evaluate_reconstruction(autoencoder, reference, images)
    expected = psnr_of_mean_mse(to_rgb_floats(images.images), to_rgb_floats(darker))
    assert quality.psnr_of_mean_mse == pytest.approx(expected, abs=1e-4)


def test_another_autoencoder_has_no_bits(reference: Reference, test: Path) -> None:
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()
    quality = evaluate_reconstruction(vae, reference, LabelledImages(test), moved(build_prior("ul-tiny-f8")))
    assert quality.bits_per_pixel is None
    assert quality.psnr_of_mean_mse is not None and quality.psnr_of_mean_mse > 0


def test_an_empty_batch_is_refused(autoencoder: UnifiedLatentsAutoencoder, reference: Reference, test: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluate_reconstruction(autoencoder, reference, LabelledImages(test), batch_size=0)
