"""Figures of 8-bit pixels beside those of scikit-image and torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor

from ul_tokenizer.evaluation.measures.metrics import (
    MS_SSIM_MIN_SIDE,
    flicker,
    gradient_energy,
    mean_squared_errors,
    ms_ssim,
    psnr,
    sharpness,
    squared_errors,
    ssim,
)
from ul_tokenizer.media.pixels import to_float

Metric = Callable[[Tensor, Tensor], Tensor]
skimage = import_module("skimage.metrics")
torchmetrics = import_module("torchmetrics.functional.image")


def pictures(height: int, width: int, batch: int = 4) -> tuple[Tensor, Tensor]:
    """Pictures with structure, uint8, and reconstructions with errors of several kinds and strengths."""
    random = torch.Generator().manual_seed(height * width)
    coarse = 255 * torch.rand(batch, 3, 6, 6, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    reference = (smooth + 12 * torch.randn(smooth.shape, generator=random)).clamp(0, 255)
    noise = torch.tensor([2.0, 8.0, 30.0, 80.0])[:batch, None, None, None]
    errors = noise * torch.randn(smooth.shape, generator=random)
    return reference.byte(), (0.9 * smooth + 10 + errors).clamp(0, 255).byte()


def by_skimage(reference: Tensor, reconstruction: Tensor) -> list[float]:
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    pairs = zip(reference.double().numpy(), reconstruction.double().numpy(), strict=True)
    return [skimage.structural_similarity(x, y, channel_axis=0, **options) for x, y in pairs]


def by_torchmetrics(reference: Tensor, reconstruction: Tensor) -> Tensor:
    function = torchmetrics.multiscale_structural_similarity_index_measure
    return function(reconstruction.double(), reference.double(), data_range=255.0, reduction="none")


SIZES = [(64, 64), (11, 40), (123, 77)]


@pytest.mark.parametrize("size", SIZES)
def test_psnr_is_skimages(size: tuple[int, int]) -> None:
    reference, again = pictures(*size)
    expected = [skimage.peak_signal_noise_ratio(x.numpy(), y.numpy()) for x, y in zip(reference, again, strict=True)]
    assert psnr(squared_errors(reference, again)).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_ssim_is_skimages(size: tuple[int, int]) -> None:
    reference, again = pictures(*size)
    assert ssim(reference, again).tolist() == pytest.approx(by_skimage(reference, again), abs=1e-9)


@pytest.mark.parametrize("size", [(176, 176), (203, 190)])
def test_ms_ssim_is_torchmetrics(size: tuple[int, int]) -> None:
    reference, again = pictures(*size)
    values = ms_ssim(reference, again)
    assert torch.allclose(values, by_torchmetrics(reference, again).double(), rtol=0, atol=1e-6)
    assert values.min() < 0.6 and values.max() > 0.9  # the pictures tell good from bad


def test_ms_ssim_of_pictures_that_torchmetrics_refuses_is_made_of_its_parts() -> None:
    x, y = (picture.double() for picture in pictures(MS_SSIM_MIN_SIDE, MS_SSIM_MIN_SIDE + 3))
    expected, weights = torch.ones(4, dtype=torch.float64), (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    for scale, weight in enumerate(weights):
        part = torchmetrics.structural_similarity_index_measure(
            y, x, data_range=255.0, reduction="none", return_contrast_sensitivity=True
        )[0 if scale == 4 else 1]
        expected *= part**weight
        x, y = torch.nn.functional.avg_pool2d(x, 2), torch.nn.functional.avg_pool2d(y, 2)
    assert torch.allclose(ms_ssim(*pictures(MS_SSIM_MIN_SIDE, MS_SSIM_MIN_SIDE + 3)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("metric", [ssim, ms_ssim])
def test_reconstructions_with_the_opposite_structure_have_no_powers_of_negative_numbers(metric: Metric) -> None:
    reference, _ = pictures(176, 176)
    values = metric(reference, 255 - reference)
    assert values.isfinite().all() and (values < 0.3).all()
    assert metric is ssim or torch.allclose(values, by_torchmetrics(reference, 255 - reference).double(), atol=1e-6)


def test_almost_flat_bright_pictures_lose_no_digits() -> None:
    reference = torch.full((1, 3, 64, 64), 254, dtype=torch.uint8)
    again = reference + (torch.arange(64) % 2).to(torch.uint8)
    assert ssim(reference, again).tolist() == pytest.approx(by_skimage(reference, again), abs=1e-9)


@pytest.mark.parametrize("metric", [squared_errors, ssim, ms_ssim])
def test_a_metric_is_one_float64_per_image_whatever_the_batch_and_the_dtype(metric: Metric) -> None:
    reference, again = pictures(176, 180)
    values = metric(reference, again)
    assert values.dtype == torch.float64 and values.shape == (4,)
    assert torch.equal(values, torch.cat([metric(x[None], y[None]) for x, y in zip(reference, again, strict=True)]))
    assert torch.equal(values, metric(reference, again.float()))
    assert torch.equal(values, metric(reference.double(), again))
    assert metric(reference[:0], again[:0]).shape == (0,)


@pytest.mark.parametrize(("metric", "exact"), [(squared_errors, 0.0), (ssim, 1.0), (ms_ssim, 1.0)])
def test_of_equal_pictures_it_is_exact(metric: Metric, exact: float) -> None:
    reference, _ = pictures(176, 176)
    assert metric(reference, reference).tolist() == pytest.approx([exact] * 4, abs=1e-12)


def test_psnr_of_no_error_is_infinite_and_of_the_largest_one_zero() -> None:
    assert psnr(torch.tensor([0.0, 255.0**2])).tolist() == [math.inf, 0.0]


def test_squared_errors_agree_with_those_of_floats_in_minus_one_to_one() -> None:
    reference, again = pictures(64, 64)
    floats = mean_squared_errors(to_float(reference), to_float(again)).double()
    assert torch.allclose(squared_errors(reference, again) / 255**2, floats / 4, rtol=1e-5)


@pytest.mark.parametrize("metric", [squared_errors, ssim, ms_ssim])
def test_a_nan_spoils_its_own_image_only(metric: Metric) -> None:
    reference, again = (picture.float() for picture in pictures(176, 176))
    again[1, 2, 80, 90] = torch.nan
    assert metric(reference, again).isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("metric", "reference", "reconstruction", "sentence"),
    [
        (ssim, torch.zeros(1, 3, 10, 64), None, "sides of at least 11 pixels, got 10×64"),
        (ms_ssim, torch.zeros(1, 3, 512, 160), None, "sides of at least 161 pixels, got 512×160"),
        (squared_errors, torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9), r"shape \(1, 3, 8, 8\), got \(1, 3, 8, 9\)"),
        (squared_errors, torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8), r"got \(1, 3, 8, 8\)"),
        (ssim, torch.zeros(1, 16, 16, 3), None, r"reference must have the shape \(B, 3, H, W\), got \(1, 16, 16, 3\)"),
        (ssim, torch.zeros(3, 16, 16), None, r"\(B, 3, H, W\), got \(3, 16, 16\)"),
        (ssim, torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16).long(), "reconstruction .* got torch.int64"),
    ],
)
def test_pictures_without_a_figure_are_refused(
    metric: Metric, reference: Tensor, reconstruction: Tensor | None, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        metric(reference, reference if reconstruction is None else reconstruction)


def test_flicker_is_the_difference_of_changes() -> None:
    still = torch.zeros(1, 3, 4, 2, 2)
    assert flicker(still, still + 0.5) == 0
    shaking = still.clone()
    shaking[:, :, 1::2] = 1.0
    assert flicker(still, shaking) == 0.5


# ---------------------------------------------------------------- sharpness


def test_the_gradient_energy_is_the_mean_squared_step_across_plus_down() -> None:
    ramp = 2.0 * torch.arange(6.0)[None, :] + 3.0 * torch.arange(5.0)[:, None]
    picture = torch.stack([ramp, torch.zeros_like(ramp), ramp + 7])
    assert gradient_energy(picture[None]).tolist() == pytest.approx([2 / 3 * (4 + 9)])
    assert gradient_energy(torch.full((2, 3, 4, 4), 9, dtype=torch.uint8)).tolist() == [0.0, 0.0]
    assert gradient_energy(torch.arange(3.0).expand(1, 3, 1, 3)).tolist() == [1.0]  # a single row


def test_blurred_pictures_are_less_sharp_than_their_originals_and_noisy_ones_sharper() -> None:
    reference = to_float(pictures(24, 32)[0])
    blurred = torch.nn.functional.avg_pool2d(reference, 3, stride=1, padding=1, count_include_pad=False)
    noisy = 0.5 * reference + 0.3 * torch.randn(reference.shape, generator=torch.Generator().manual_seed(0))
    assert sharpness(reference, reference) == 1.0
    assert sharpness(reference, blurred) < 0.5 < 1.5 < sharpness(reference, noisy)
    assert sharpness(reference, 0.5 * reference) == pytest.approx(0.25)
    assert sharpness(reference.sign(), 3 * reference.sign()) == 1.0  # outside of the range, nothing is seen
    assert math.isnan(sharpness(torch.zeros(1, 3, 8, 8), reference[:1, :, :8, :8]))
