"""Our autoencoder inside pipelines that are not ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from torch import Tensor

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.latent_normalization import denormalize_latents, normalize_latents
from ul_tokenizer.models.presets import build_autoencoder, build_base
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler


def test_dit_generates_with_our_autoencoder() -> None:
    torch.manual_seed(0)
    autoencoder = build_autoencoder("ul-tiny-f8")
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=autoencoder.config.latent_channels,
        out_channels=autoencoder.config.latent_channels,
        num_layers=1,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    pipeline = DiTPipeline(transformer.eval(), autoencoder.eval(), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline([1, 2], num_inference_steps=2, output_type="np", generator=torch.manual_seed(0)).images
    assert images.shape == (2, 32, 32, 3)
    assert (images >= 0).all() and (images <= 1).all() and images.std() > 0


def test_image_to_image_pipelines_retrieve_z_0_or_its_mean() -> None:
    autoencoder = build_autoencoder("ul-tiny-f8").eval()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        encoded = autoencoder.encode(x)
    z_0 = retrieve_latents(encoded, torch.Generator().manual_seed(0))
    alpha, sigma = 0.99665, 0.08181
    torch.testing.assert_close(
        retrieve_latents(encoded, sample_mode="argmax"), alpha * encoded.latent, rtol=1e-4, atol=1e-5
    )
    noise = (z_0 - alpha * encoded.latent) / sigma
    assert 0.5 < float(noise.std()) < 1.6


# ---------------------------------------------------------------- normalisation


def with_config(config: dict[str, Any]) -> UnifiedLatentsAutoencoder:
    """An autoencoder that decodes from fixed noise, whoever calls it."""
    torch.manual_seed(0)
    autoencoder = build_autoencoder("ul-tiny-f8", config).eval()
    with torch.no_grad():  # a fresh decoder takes no notice of its latents
        for parameter in autoencoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    decode, noise = autoencoder.decode, torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    autoencoder.decode = lambda z, return_dict=True, **_: decode(z, return_dict=return_dict, noise=noise)
    return autoencoder


def picture_of_dit(autoencoder: UnifiedLatentsAutoencoder, latents: Tensor) -> Any:
    """What diffusers' `DiTPipeline` shows for latents at the end of its loop."""
    options: Any = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "sample_size": 2}
    transformer = DiTTransformer2DModel(in_channels=4, out_channels=4, num_embeds_ada_norm=1000, **options)
    pipeline = DiTPipeline(transformer.eval(), autoencoder, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.step = lambda *_, **__: SimpleNamespace(prev_sample=latents)
    return pipeline([1, 2], guidance_scale=1.0, num_inference_steps=1, output_type="np").images


def picture_of_ours(autoencoder: UnifiedLatentsAutoencoder, latents: Tensor) -> Any:
    pipeline = UnifiedLatentsPipeline(build_base("ul-base-tiny", {"sample_size": 2}), LogSNRScheduler(), autoencoder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler.step = lambda *_, **__: (latents,)  # type: ignore[method-assign, assignment]
    return pipeline(num_images_per_prompt=2, num_inference_steps=1, output_type="np", return_dict=False)[0]


@pytest.mark.parametrize("config", [{}, {"scaling_factor": 0.5}], ids=["identity", "scaled"])
def test_dit_and_our_pipeline_decode_the_same_picture_from_the_same_latents(config: dict[str, Any]) -> None:
    latents = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(2))
    autoencoder = with_config(config)
    np.testing.assert_allclose(
        picture_of_ours(autoencoder, latents), picture_of_dit(autoencoder, latents), rtol=0, atol=1e-6
    )


def test_the_identity_leaves_latents_untouched() -> None:
    latents = torch.randn(2, 4, 2, 2)
    autoencoder = build_autoencoder("ul-tiny-f8")
    assert normalize_latents(autoencoder, latents) is latents
    assert denormalize_latents(autoencoder, latents) is latents


def test_statistics_in_a_config_normalise_as_in_the_video_pipelines_of_diffusers() -> None:
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    autoencoder = build_autoencoder("ul-tiny-f8", {"latents_mean": mean, "latents_std": std, "scaling_factor": 0.5})
    latents = torch.randn(2, 4, 3, 2, 2)
    # These lines follow WanPipeline, which reads the lists of the config.
    theirs_mean = torch.tensor(autoencoder.config.latents_mean).view(1, autoencoder.config.z_dim, 1, 1, 1)
    theirs_std = 1.0 / torch.tensor(autoencoder.config.latents_std).view(1, autoencoder.config.z_dim, 1, 1, 1)
    torch.testing.assert_close(denormalize_latents(autoencoder, latents), latents / theirs_std + theirs_mean)
    torch.testing.assert_close(normalize_latents(autoencoder, latents), (latents - theirs_mean) * theirs_std)
