"""Claims about the bundled weights, on photographs that they never saw."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsTransformer
from ul_tokenizer.evaluation.metrics import psnr_of_mean_mse
from ul_tokenizer.media.images import read_image
from ul_tokenizer.media.pixels import frame_to_float
from ul_tokenizer.models.latent_normalization import normalize_latents
from ul_tokenizer.training.validation import flicker

IMAGES = Path(__file__).parent.parent / "examples" / "images"


@pytest.fixture(scope="module")
def autoencoder() -> UnifiedLatentsAutoencoder:
    return UnifiedLatentsAutoencoder.from_pretrained("ul-photo-f8").eval()


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """128×128 crops on a grid over the demo's photographs, (12, 3, 128, 128)."""
    photos = [frame_to_float(read_image(path)) for path in sorted(IMAGES.glob("*.jpg"))]
    return torch.stack([p[:, y : y + 128, x : x + 128] for p in photos for y in (64, 192) for x in (96, 288)])


def generators(seed: int, count: int = 12) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


@pytest.fixture(scope="module")
def latents(autoencoder: UnifiedLatentsAutoencoder, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        return autoencoder.encode(pixels).latent_dist.sample(generators(100))


def decoded(autoencoder: UnifiedLatentsAutoencoder, latents: Tensor, steps: int) -> Tensor:
    with torch.inference_mode():
        return autoencoder.decode(latents, num_inference_steps=steps, generator=generators(0)).sample


def test_one_step_has_the_highest_psnr_and_it_is_a_faithful_picture(
    autoencoder: UnifiedLatentsAutoencoder, pixels: Tensor, latents: Tensor
) -> None:
    psnr = {steps: psnr_of_mean_mse(pixels, decoded(autoencoder, latents, steps)) for steps in (1, 2, 4, 8)}
    assert max(psnr, key=lambda steps: psnr[steps]) == 1, psnr
    assert psnr[1] > 23, psnr


def test_the_latent_is_used_another_images_costs_eight_decibels(
    autoencoder: UnifiedLatentsAutoencoder, pixels: Tensor, latents: Tensor
) -> None:
    own = psnr_of_mean_mse(pixels, decoded(autoencoder, latents, 1))
    other = psnr_of_mean_mse(pixels, decoded(autoencoder, latents.roll(4, 0), 1))  # another photograph's
    assert own - other > 8


def test_the_latent_holds_less_than_a_bit_per_pixel_and_more_than_nothing(
    autoencoder: UnifiedLatentsAutoencoder, pixels: Tensor
) -> None:
    prior = UnifiedLatentsTransformer.from_pretrained("ul-photo-f8", subfolder="prior").eval()
    bits = autoencoder.bits(pixels, prior, generator=torch.Generator().manual_seed(0)) / 128**2
    assert 0.05 < float(bits.mean()) < 1


def test_latents_are_near_unit_scale_and_the_config_leaves_them_so(
    autoencoder: UnifiedLatentsAutoencoder, pixels: Tensor
) -> None:
    with torch.inference_mode():
        latent = autoencoder.encode(pixels).latent
    assert normalize_latents(autoencoder, latent) is latent
    assert abs(float(latent.mean())) < 0.2
    assert 0.4 < float(latent.std()) < 1.1


def test_a_whole_photograph_decodes_as_well_as_its_crops_in_tiles_from_the_start(
    autoencoder: UnifiedLatentsAutoencoder, pixels: Tensor, latents: Tensor
) -> None:
    crops = psnr_of_mean_mse(pixels, decoded(autoencoder, latents, 1))
    photos = torch.stack([frame_to_float(read_image(path)) for path in sorted(IMAGES.glob("*.jpg"))])
    with torch.inference_mode():
        z = autoencoder.encode(photos).latent_dist.sample(generators(100, 3))
        tiled = psnr_of_mean_mse(photos, decoded_photos(autoencoder, z))
        autoencoder.disable_tiling()
        whole = psnr_of_mean_mse(photos, decoded_photos(autoencoder, z))
        autoencoder.enable_tiling()
    assert tiled > crops - 0.5
    assert tiled > whole  # attention that was trained on 64 tokens gets worse over 3,000, which is why they are tiled


def decoded_photos(autoencoder: UnifiedLatentsAutoencoder, z: Tensor) -> Tensor:
    return autoencoder.decode(z, num_inference_steps=1, generator=generators(0, 3)).sample


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_next_to_nothing(
    autoencoder: UnifiedLatentsAutoencoder, pixels: Tensor, latents: Tensor, dtype: torch.dtype
) -> None:
    half = UnifiedLatentsAutoencoder.from_pretrained("ul-photo-f8", torch_dtype=dtype).eval()
    psnr = psnr_of_mean_mse(pixels, decoded(half, latents.to(dtype), 1))
    assert psnr > psnr_of_mean_mse(pixels, decoded(autoencoder, latents, 1)) - 0.2


# ---------------------------------------------------------------- ul-video


def test_the_video_model_keeps_motion_and_needs_its_own_latent() -> None:
    """Of two pixels a frame: better than the mean of each four frames, which is what a model without motion gives."""
    vae = UnifiedLatentsAutoencoder.from_pretrained("ul-video").eval()
    photos = [frame_to_float(read_image(path)) for path in sorted(IMAGES.glob("*.jpg"))]
    clips = torch.stack([torch.stack([p[:, 100:164, 100 + k : 164 + k] for k in range(0, 24, 2)], 1) for p in photos])
    with torch.inference_mode():
        z = vae.encode(clips).latent_dist.sample(generators(0, 3))
        own, other = (vae.decode(latent, generator=generators(5, 3)).sample for latent in (z, z.roll(1, 0)))
    assert z.shape == (3, 64, 3, 8, 8)
    still = clips.unflatten(2, (3, 4)).mean(3, keepdim=True).expand(-1, -1, -1, 4, -1, -1).flatten(2, 3)
    assert psnr_of_mean_mse(clips, own) > psnr_of_mean_mse(clips, still) + 4
    assert psnr_of_mean_mse(clips, own) > psnr_of_mean_mse(clips, other) + 6
    assert flicker(clips, own) < 0.7 * clips.diff(dim=2).abs().mean() / 2
