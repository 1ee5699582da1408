"""PSNR, SSIM, MS-SSIM and gradient energy of 8-bit pixels; PSNR, sharpness and flicker of pixels in [−1, 1].

SSIM compares two windows x and y of a channel, weighted by a Gaussian, by

    luminance (2μ_xμ_y + C₁) / (μ_x² + μ_y² + C₁)  and  contrast (2σ_xy + C₂) / (σ_x² + σ_y² + C₂)

It is the mean of their product over all windows that lie in the picture, and over the channels (Wang et al. 2004). It
equals scikit-image's with Gaussian weights and without the sample covariance. MS-SSIM (Wang et al. 2003) multiplies
powers of the mean contrast at five scales, and of the mean of the product at the coarsest one. It equals torchmetrics',
whose borders at the coarsest scale are reflected.

Everything is in float64, because the variance is a small difference of large numbers, and channel by channel, because
one channel's sums stay in the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PEAK_TO_PEAK = 2.0  # of pixels in [−1, 1]
PEAK = 255.0  # of 8-bit pixels
RADIUS, SIGMA = 5, 1.5  # of the Gaussian window
C_1, C_2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # finest scale first
SSIM_MIN_SIDE = 2 * RADIUS + 1
MS_SSIM_MIN_SIDE = 2 * RADIUS * 2 ** (len(SCALE_WEIGHTS) - 1) + 1  # torchmetrics refuses sides below 176

# ---------------------------------------------------------------- 8-bit pixels


def squared_errors(reference: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared error of each image.

    Args:
        reference: (B, 3, H, W), uint8 or floats in the range 0 to 255, which are not clamped.
        reconstruction: the same shape; the dtype may be the other one.

    Returns:
        (B,), float64, on the scale 0 to 255²; NaN for an image with NaN.

    Raises:
        ValueError: another shape or dtype, or shapes that differ.
    """
    return _per_image(lambda x, y: (x - y).square().mean(), reference, reconstruction)


def psnr(mse: Tensor) -> Tensor:
    """PSNR in dB of mean squared errors of any shape, on the scale 0 to 255²; infinite for 0."""
    return 10 * (PEAK**2 / mse.double()).log10()


def ssim(reference: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity of each image, (B,), at most 1.

    Arguments, result and errors are those of `squared_errors`; sides must be at least 11.
    """
    return _per_image(_ssim_of_image, reference, reconstruction, SSIM_MIN_SIDE)


def ms_ssim(reference: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity at five scales of each image, (B,), 0 to 1.

    Arguments, result and errors are those of `squared_errors`; sides must be at least `MS_SSIM_MIN_SIDE`, 161.
    """
    return _per_image(_ms_ssim_of_image, reference, reconstruction, MS_SSIM_MIN_SIDE)


def gradient_energy(images: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels of each image, (B,): horizontal neighbours plus vertical ones.

    Arguments, result and errors are those of `squared_errors` for a single batch. The energy of a reconstruction over
    that of its original is its sharpness: below 1 where detail is lost, above 1 where noise or edges are added.
    """
    return _per_image(lambda x, _: _energy(x, -1) + _energy(x, -2), images, images)


def _energy(x: Tensor, dim: int) -> Tensor:
    differences = x.diff(dim=dim)
    return differences.square().sum() / max(differences.numel(), 1)  # 0 for a picture of one row or column


def _per_image(
    function: Callable[[Tensor, Tensor], Tensor], reference: Tensor, reconstruction: Tensor, min_side: int = 1
) -> Tensor:
    """Calls a function on pairs of images (3, H, W) in float64."""
    _check(reference, reconstruction, min_side)
    values = torch.empty(len(reference), dtype=torch.float64, device=reference.device)
    for index, (x, y) in enumerate(zip(reference, reconstruction, strict=True)):
        values[index] = function(x.detach().double(), y.detach().to(x.device).double())
    return values


def _check(reference: Tensor, reconstruction: Tensor, min_side: int) -> None:
    for name, images in (("reference", reference), ("reconstruction", reconstruction)):
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"{name} must have the shape (B, 3, H, W), got {tuple(images.shape)}.")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"{name} must be in uint8 or floating point, got {images.dtype}.")
    if reference.shape != reconstruction.shape:
        shapes = tuple(reference.shape), tuple(reconstruction.shape)
        raise ValueError(f"reconstruction must have the reference's shape {shapes[0]}, got {shapes[1]}.")
    height, width = reference.shape[-2:]
    if min(height, width) < min_side:
        raise ValueError(f"reference must have sides of at least {min_side} pixels, got {height}×{width}.")


def _ssim_of_image(x: Tensor, y: Tensor) -> Tensor:
    similarity, _ = _means(x, y)
    return similarity


def _ms_ssim_of_image(x: Tensor, y: Tensor) -> Tensor:
    value = x.new_ones(())
    for weight in SCALE_WEIGHTS[:-1]:
        _, contrast = _means(x, y)
        value = value * contrast.clamp(min=0) ** weight
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    padding = (RADIUS,) * 4
    similarity, _ = _means(F.pad(x, padding, mode="reflect"), F.pad(y, padding, mode="reflect"))
    return value * similarity.clamp(min=0) ** SCALE_WEIGHTS[-1]


def _means(x: Tensor, y: Tensor) -> Tensor:
    """Means (2,) of similarity and of contrast over all windows and channels of pictures (C, H, W)."""
    return torch.stack([_means_of_channel(*channels) for channels in zip(x, y, strict=True)]).mean(0)


def _means_of_channel(x: Tensor, y: Tensor) -> Tensor:
    # Only the sum of the variances is needed, so four pictures are filtered instead of five.
    μ_x, μ_y, squares, products = _filtered(torch.stack([x, y, x * x + y * y, x * y]))
    μ_xy, μ_squares = μ_x * μ_y, μ_x.square() + μ_y.square()
    luminance = (2 * μ_xy + C_1) / (μ_squares + C_1)
    contrast = (2 * (products - μ_xy) + C_2) / (squares - μ_squares + C_2)
    return torch.stack([(luminance * contrast).mean(), contrast.mean()])


def _filtered(pictures: Tensor) -> Tensor:
    """Gaussian means of all windows in pictures (…, H, W), as (…, H − 10, W − 10)."""
    # On a CPU, shifted sums are many times as fast as torch's convolution in float64.
    weights = _gaussian_weights()
    for dim in (-2, -1):
        windows = pictures.shape[dim] - 2 * RADIUS
        mean = pictures.narrow(dim, 0, windows) * weights[0]
        for shift, weight in enumerate(weights[1:], 1):
            mean.add_(pictures.narrow(dim, shift, windows), alpha=weight)
        pictures = mean
    return pictures


def _gaussian_weights() -> list[float]:
    weights = [math.exp(-(distance**2) / (2 * SIGMA**2)) for distance in range(-RADIUS, RADIUS + 1)]
    return [weight / math.fsum(weights) for weight in weights]


# ---------------------------------------------------------------- pixels in [−1, 1]


def mean_squared_errors(reference: Tensor, reconstruction: Tensor) -> Tensor:
    """MSE per sample (B,), of pixels (B, …) in [−1, 1]; the reconstruction is clamped to that range first."""
    difference = reconstruction.float().clamp(-1, 1) - reference.float()
    return difference.square().flatten(1).mean(1)


def psnr_of_mean_mse(reference: Tensor, reconstruction: Tensor) -> float:
    """PSNR in dB of the mean MSE of all samples; arguments as in `mean_squared_errors`.

    It is dominated by the worst samples, so it is the stricter mean.
    """
    return _psnr(float(mean_squared_errors(reference, reconstruction).mean()))


def mean_psnr(reference: Tensor, reconstruction: Tensor) -> float:
    """Mean over samples of their PSNR in dB; arguments as in `mean_squared_errors`."""
    errors = mean_squared_errors(reference, reconstruction).tolist()
    return sum(map(_psnr, errors)) / len(errors)


def _psnr(mse: float) -> float:
    return 10 * math.log10(PEAK_TO_PEAK**2 / mse) if mse > 0 else math.inf


def sharpness(reference: Tensor, reconstruction: Tensor) -> float:
    """Gradient energy of all reconstructions (B, 3, H, W) over that of their originals, for pixels in [−1, 1].

    The reconstruction is clamped to that range first; NaN if all originals are flat.
    """
    again, source = (float(gradient_energy(x.float()).sum()) for x in (reconstruction.clamp(-1, 1), reference))
    return again / source if source > 0 else math.nan


def flicker(source: Tensor, reconstruction: Tensor) -> float:
    """Mean absolute difference between the frame-to-frame changes of two clips.

    Args:
        source: (B, C, T, H, W) in [−1, 1].
        reconstruction: the same shape and range.

    Returns:
        a fraction of the range of pixel values, 0 to 2.
    """
    changes = [clip[:, :, 1:] - clip[:, :, :-1] for clip in (source, reconstruction)]
    return float((changes[0] - changes[1]).abs().mean()) / 2
