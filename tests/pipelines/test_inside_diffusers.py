"""Our autoencoder inside pipelines that are not ours."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents

from ul_tokenizer.models.presets import build_autoencoder


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
