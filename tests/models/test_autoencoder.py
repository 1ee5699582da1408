"""The autoencoder as its callers see it: what goes in, what comes out, what is saved and what is refused."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from tests.models.conftest import move_weights
from ul_tokenizer.diffusion.schedule import alpha_sigma
from ul_tokenizer.models import blocks, decoding
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.latent_distribution import LatentDistribution
from ul_tokenizer.models.layers import FP32_MODULES
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def pixels(*shape: int) -> Tensor:
    return torch.rand(shape or (2, 3, 32, 32), generator=torch.Generator().manual_seed(1)) * 2 - 1


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def function_of_diffusers(path: str, name: str) -> Callable[..., Any]:
    """A function from the source of a module that cannot be imported here, since it wants transformers."""
    tree = ast.parse((Path(diffusers.__file__).parent / path).read_text(encoding="utf-8"))
    found: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
    scope: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module(found, []), path, "exec"), scope)
    return scope[name]


# ---------------------------------------------------------------- encode


def test_encode_speaks_every_dialect(model: UnifiedLatentsAutoencoder) -> None:
    out = model.encode(pixels())
    alpha, sigma = alpha_sigma(torch.tensor(5.0))
    assert out.latent.shape == (2, 4, 4, 4)
    assert out.latents is out.latent
    assert out["latent"] is out.latent
    torch.testing.assert_close(out.latent_dist.mode(), alpha * out.latent)
    assert torch.equal(out.latent_dist.mean, out.latent_dist.mode())
    assert out.latent_dist.std.item() == pytest.approx(0.08181, abs=1e-5)
    torch.testing.assert_close(out.latent_dist.var, sigma**2)
    torch.testing.assert_close(out.latent_dist.logvar, (sigma**2).log())
    (distribution,) = model.encode(pixels(), return_dict=False)
    assert torch.equal(distribution.mean, out.latent_dist.mean)


def test_the_first_of_what_encode_returns_is_the_distribution_with_and_without_return_dict(
    model: UnifiedLatentsAutoencoder,
) -> None:
    first, same = (model.encode(pixels(), return_dict=flag)[0] for flag in (True, False))
    assert isinstance(first, LatentDistribution)
    assert isinstance(same, LatentDistribution)
    assert torch.equal(first.mean, same.mean)


def test_a_sample_of_the_latent_has_the_standard_deviation_0_0818() -> None:
    latent = torch.randn(8, 16, 16, 16)
    distribution = LatentDistribution(latent, 5.0)
    sample = distribution.sample(torch.Generator().manual_seed(0))
    assert (sample - distribution.mean).std().item() == pytest.approx(0.0818, rel=0.02)
    assert torch.equal(sample, distribution.sample(torch.Generator().manual_seed(0)))


def test_the_same_generator_noises_the_latent_alike_in_every_dtype() -> None:
    latent = torch.randn(2, 4, 4, 4)
    single, half = (LatentDistribution(a, 5.0).sample(generators(0, 1)) for a in (latent, latent.bfloat16()))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), single, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("mode", ["sample", "argmax"])
def test_diffusers_img2img_pipelines_find_the_latents(model: UnifiedLatentsAutoencoder, mode: str) -> None:
    path = "pipelines/stable_diffusion/pipeline_stable_diffusion_img2img.py"
    retrieve_latents = function_of_diffusers(path, "retrieve_latents")
    out = model.encode(pixels())
    found = retrieve_latents(out, generator=torch.Generator().manual_seed(3), sample_mode=mode)
    wanted = {
        "sample": out.latent_dist.sample(torch.Generator().manual_seed(3)),
        "argmax": out.latent_dist.mode(),
    }
    assert torch.equal(found, wanted[mode])


def test_results_are_contiguous_as_safetensors_wants_them(model: UnifiedLatentsAutoencoder) -> None:
    for x in (pixels(1, 3, 32, 32), pixels(), pixels(1, 3, 2, 32, 32)):
        assert model.encode(x).latent.is_contiguous()
        assert model(x).sample.is_contiguous()


def test_an_image_is_a_clip_of_one_frame(model: UnifiedLatentsAutoencoder) -> None:
    x, noise = pixels(), torch.randn(2, 3, 32, 32)
    latent, clip = model.encode(x).latent, model.encode(x.unsqueeze(2)).latent
    assert torch.equal(clip, latent.unsqueeze(2))
    image, video = model.decode(latent, noise=noise).sample, model.decode(clip, noise=noise.unsqueeze(2)).sample
    assert torch.equal(video, image.unsqueeze(2))


def test_a_clip_of_several_frames_runs_and_its_frames_encode_like_images(model: UnifiedLatentsAutoencoder) -> None:
    clip = pixels(2, 3, 3, 32, 16)
    latent = model.encode(clip).latent
    assert latent.shape == (2, 4, 3, 4, 2)
    torch.testing.assert_close(latent[:, :, 1], model.encode(clip[:, :, 1]).latent, rtol=1e-4, atol=1e-5)
    assert model.decode(latent, num_inference_steps=2).sample.shape == clip.shape


def test_pictures_of_512_pixels_and_oblong_ones_run(model: UnifiedLatentsAutoencoder) -> None:
    assert model(pixels(1, 3, 512, 512)).sample.shape == (1, 3, 512, 512)
    assert model(pixels(1, 3, 24, 64)).sample.shape == (1, 3, 24, 64)


# ---------------------------------------------------------------- decode


def test_decode_returns_diffusers_output_or_a_tuple(model: UnifiedLatentsAutoencoder) -> None:
    z, noise = torch.randn(1, 4, 4, 4), torch.randn(1, 3, 32, 32)
    out = model.decode(z, noise=noise)
    assert isinstance(out, DecoderOutput)
    (sample,) = model.decode(z, return_dict=False, noise=noise)
    assert torch.equal(sample, out.sample)
    (whole,) = model(pixels(1, 3, 32, 32), return_dict=False, noise=noise)
    assert whole.shape == (1, 3, 32, 32)


def test_one_step_is_the_x_hat_of_the_noisiest_level(model: UnifiedLatentsAutoencoder) -> None:
    z, x_1 = torch.randn(2, 4, 4, 4), torch.randn(2, 3, 32, 32)
    logsnr = torch.full((2,), model.config.decoder_logsnr_min)
    v = model.decoder(x_1.unsqueeze(2), logsnr, model.decoder.embed_latents(z.unsqueeze(2))).squeeze(2)
    alpha, sigma = alpha_sigma(logsnr[0])
    torch.testing.assert_close(model.decode(z, noise=x_1, num_inference_steps=1).sample, alpha * x_1 - sigma * v)


def test_the_config_says_how_many_steps_a_decode_takes(model: UnifiedLatentsAutoencoder) -> None:
    z, noise = torch.randn(1, 4, 4, 4), torch.randn(1, 3, 32, 32)
    one, three = (model.decode(z, noise=noise, num_inference_steps=n).sample for n in (1, 3))
    assert not torch.equal(one, three)
    assert torch.equal(model.decode(z, noise=noise).sample, one)
    model.register_to_config(num_inference_steps=3)
    assert torch.equal(model.decode(z, noise=noise).sample, three)


@pytest.mark.parametrize("algorithm", ["ddim", "dpmsolver++"])
def test_a_decode_takes_the_steps_of_its_scheduler_to_the_bit(model: UnifiedLatentsAutoencoder, algorithm: str) -> None:
    model.register_to_config(decoder_algorithm=algorithm)
    z, x_1 = torch.randn(2, 4, 1, 4, 4), torch.randn(2, 3, 1, 32, 32)
    scheduler, features = model.make_decoder_scheduler(), model.decoder.embed_latents(z)
    for num_steps in (1, 2, 5):
        scheduler.set_timesteps(num_steps)
        x = x_1
        for logsnr in scheduler.timesteps:
            output = scheduler.step(model.decoder(x, logsnr.expand(2), features), logsnr, x)
            x = output.prev_sample
        decoded = model.decode(z, noise=x_1, num_inference_steps=num_steps).sample
        assert torch.equal(decoded, output.pred_original_sample)


def test_the_latent_is_embedded_once_per_decode_and_not_per_step(
    model: UnifiedLatentsAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, int] = {"embed_latents": 0, "forward": 0}
    for name in calls:
        original = getattr(model.decoder, name)

        def counted(*args: Any, name: str = name, original: Any = original) -> Any:
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(model.decoder, name, counted)
    model.decode(torch.randn(1, 4, 4, 4), num_inference_steps=5)
    assert calls == {"embed_latents": 1, "forward": 5}


def test_what_steps_and_tiles_share_is_computed_once_per_decode(
    model: UnifiedLatentsAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        original = getattr(module, name)

        def counted(*args: Any) -> Any:
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(module, name, counted)

    count(blocks, "rotary_table")
    count(decoding, "alpha_sigma")
    count(decoding, "ode_step")
    model.enable_tiling(32, 32)
    model.decode(torch.randn(1, 4, 4, 8), num_inference_steps=3)
    tiles = len(model.tile_grid(4, 8).tiles)
    assert tiles > 1
    # After its last step, a tile is finished and needs no further noisy sample.
    assert calls == {"rotary_table": 1, "alpha_sigma": 3, "ode_step": 2 * tiles}


def test_two_decodes_of_different_latents_differ(model: UnifiedLatentsAutoencoder) -> None:
    noise = torch.randn(1, 3, 32, 32)
    first, second = (model.decode(torch.randn(1, 4, 4, 4), noise=noise).sample for _ in range(2))
    assert (first - second).abs().max() > 0.01


# ---------------------------------------------------------------- noise


def test_given_noise_makes_calls_pure(model: UnifiedLatentsAutoencoder) -> None:
    x, noise = pixels(), torch.randn(2, 3, 32, 32)
    first = model(x, noise=noise).sample
    torch.manual_seed(99)
    assert torch.equal(model(x, noise=noise).sample, first)
    assert not torch.equal(model(x, noise=-noise).sample, first)


def test_a_sample_does_not_depend_on_its_batch_with_one_generator_each(model: UnifiedLatentsAutoencoder) -> None:
    """The noise is the same to the bit; the library's matrix products round differently in other batch sizes."""
    x = pixels(3, 3, 32, 32)
    batch = model(x, sample_posterior=True, generator=generators(7, 8, 9), num_inference_steps=2).sample
    for i, seed in enumerate((7, 8, 9)):
        alone = model(x[i : i + 1], sample_posterior=True, generator=generators(seed), num_inference_steps=2).sample
        torch.testing.assert_close(batch[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    z = LatentDistribution(torch.randn(3, 4, 4, 4), 5.0)
    alone = LatentDistribution(z.latent[1:2], 5.0).sample(generators(8))
    assert torch.equal(z.sample(generators(7, 8, 9))[1:2], alone)


def test_posterior_and_decoder_noise_come_from_the_generator_in_turn(model: UnifiedLatentsAutoencoder) -> None:
    x, one = pixels(), torch.Generator().manual_seed(4)
    z = model.encode(x).latent_dist.sample(one)
    by_hand = model.decode(z, generator=one).sample
    whole = model(x, sample_posterior=True, generator=torch.Generator().manual_seed(4)).sample
    assert torch.equal(whole, by_hand)


# ---------------------------------------------------------------- config and files


def public(config: Any) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if not k.startswith("_")}


def test_the_config_has_every_key_that_pipelines_read(tmp_path: Path) -> None:
    model = build_autoencoder("ul-tiny-f8", {"latents_mean": [0.1] * 4, "latents_std": [1.5] * 4})
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    expected = {
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "latent_channels": 4,
        "z_dim": 4,
        "latents_mean": [0.1] * 4,
        "latents_std": [1.5] * 4,
        "force_upcast": False,
        "spatial_compression_ratio": 8,
        "temporal_compression_ratio": 1,
        "scale_factor_spatial": 8,
        "scale_factor_temporal": 1,
        "encoder_block_out_channels": [16, 16, 32],
        "timestep_conditioning": False,
        "_class_name": "UnifiedLatentsAutoencoder",
    }
    assert {key: saved[key] for key in expected} == expected
    assert 2 ** (len(model.config.block_out_channels) - 1) == 8
    assert saved["block_out_channels"] == list(model.config.block_out_channels)
    assert (model.spatial_compression_ratio, model.temporal_compression_ratio) == (8, 1)
    torch.testing.assert_close(model.latents_mean, torch.full((4,), 0.1))
    torch.testing.assert_close(model.latents_std, torch.full((4,), 1.5))


def test_without_statistics_the_config_holds_the_lists_of_the_identity(tmp_path: Path) -> None:
    model = build_autoencoder("ul-tiny-f8")
    assert (list(model.config.latents_mean), list(model.config.latents_std)) == ([0.0] * 4, [1.0] * 4)
    torch.testing.assert_close(model.latents_mean, torch.zeros(4), rtol=0, atol=0)
    torch.testing.assert_close(model.latents_std, torch.ones(4), rtol=0, atol=0)
    model.save_pretrained(tmp_path)
    again = UnifiedLatentsAutoencoder.from_pretrained(tmp_path)
    assert public(again.config) == public(model.config)


def test_loading_a_saved_model_warns_of_nothing_and_gives_the_same_model(
    model: UnifiedLatentsAutoencoder, tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    diffusers_logging.enable_propagation()
    try:
        model.save_pretrained(tmp_path)
        loaded = UnifiedLatentsAutoencoder.from_pretrained(tmp_path)
    finally:
        diffusers_logging.disable_propagation()
    assert [r.getMessage() for r in caplog.records if r.levelname not in ("DEBUG", "INFO")] == []
    assert [str(w.message) for w in recwarn if w.category is not DeprecationWarning] == []
    assert public(loaded.config) == public(model.config)
    noise = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(pixels(), noise=noise).sample, model(pixels(), noise=noise).sample)


@pytest.mark.parametrize("word", ["torch_dtype", "dtype"])
def test_what_must_stay_fp32_stays_fp32_on_loading_in_bf16(
    model: UnifiedLatentsAutoencoder, tmp_path: Path, word: str
) -> None:
    model.save_pretrained(tmp_path)
    loaded = UnifiedLatentsAutoencoder.from_pretrained(tmp_path, **{word: torch.bfloat16})
    kept = [name for name, p in loaded.named_parameters() if p.dtype == torch.float32]
    assert loaded.dtype == torch.bfloat16
    assert sorted(kept) == sorted(
        name for name, _ in loaded.named_parameters() if set(name.split(".")) & set(FP32_MODULES)
    )
    for part in ("norm_1", "norm_q", "norm_out", "logsnr_embedding", "encoder.conv_out", "decoder.conv_out"):
        assert any(part in name for name in kept), part


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["load", "cast"])
def test_nothing_is_nan_at_any_level_in_any_dtype(
    model: UnifiedLatentsAutoencoder, tmp_path: Path, dtype: torch.dtype, way: str
) -> None:
    x, noise = pixels().to(dtype), torch.randn(2, 3, 32, 32)
    exact = model(x.float(), noise=noise, num_inference_steps=4).sample
    if way == "load":
        model.save_pretrained(tmp_path)
        half = UnifiedLatentsAutoencoder.from_pretrained(tmp_path, torch_dtype=dtype)
    else:
        half = model.to(dtype)
    out = half(x, noise=noise, num_inference_steps=4).sample
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, rtol=0.1, atol=0.1)
    features = half.decoder.embed_latents(half.encode(x).latent.unsqueeze(2))
    for logsnr in (-20.0, -5.0, 0.0, 9.0, 20.0):
        v = half.decoder(x.unsqueeze(2), torch.full((2,), logsnr), features)
        assert v.dtype == torch.float32
        assert v.isfinite().all()


def test_a_saved_half_precision_model_loads_again(model: UnifiedLatentsAutoencoder, tmp_path: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = UnifiedLatentsAutoencoder.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    noise = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(pixels().bfloat16(), noise=noise).sample, model(pixels().bfloat16(), noise=noise).sample)


def test_the_output_has_the_dtype_of_the_input_whatever_the_weights_have(model: UnifiedLatentsAutoencoder) -> None:
    assert model.encode(pixels().half()).latent.dtype == torch.float16
    assert model.decode(torch.randn(1, 4, 4, 4).bfloat16()).sample.dtype == torch.bfloat16


# ---------------------------------------------------------------- bits


def test_bits_are_one_number_per_image_and_follow_their_generator(
    model: UnifiedLatentsAutoencoder, prior: UnifiedLatentsTransformer
) -> None:
    first, again, other = (model.bits(pixels(), prior, 4, torch.Generator().manual_seed(n)) for n in (0, 0, 1))
    assert first.shape == (2,)
    assert (first > 0).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_bits_of_an_image_do_not_depend_on_its_batch_with_one_generator_each(
    model: UnifiedLatentsAutoencoder, prior: UnifiedLatentsTransformer
) -> None:
    x = pixels(3, 3, 32, 32)
    batch = model.bits(x, prior, 4, generators(7, 8, 9))
    for i, seed in enumerate((7, 8, 9)):
        torch.testing.assert_close(batch[i : i + 1], model.bits(x[i : i + 1], prior, 4, generators(seed)))
    alone = model.bits(x[:1], prior, 4, torch.Generator().manual_seed(7))
    torch.testing.assert_close(alone, batch[:1])


def test_bits_of_a_prior_of_another_latent_are_refused(model: UnifiedLatentsAutoencoder) -> None:
    prior = build_prior("ul-tiny-f8", {"latent_logsnr": 10.0})
    with pytest.raises(ValueError, match=r"prior must share the autoencoder's latent_logsnr of 5\.0, got 10\.0"):
        model.bits(pixels(), prior)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(1, 3, 32, 36), "height and width must be multiples of 8, got 32×36"),
        (torch.zeros(1, 3, 0, 32), "height and width must be multiples of 8, got 0×32"),
        (torch.zeros(0, 3, 32, 32), r"x must hold at least one sample and frame, got \(0, 3, 32, 32\)"),
        (torch.zeros(1, 3, 0, 32, 32), r"x must hold at least one sample and frame, got \(1, 3, 0, 32, 32\)"),
        (torch.zeros(3, 32, 32), r"x must be \(B, 3, H, W\) or \(B, 3, T, H, W\), got \(3, 32, 32\)"),
        (torch.zeros(1, 4, 32, 32), r"x must be \(B, 3, H, W\) .* got \(1, 4, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), r"x must be floating point in \[−1, 1\], got torch.uint8"),
    ],
)
def test_wrong_pixels_are_refused_in_one_sentence(model: UnifiedLatentsAutoencoder, x: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        model.encode(x)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("z", "options", "words"),
    [
        (torch.zeros(1, 3, 4, 4), {}, r"z must be \(B, 4, h, w\) or \(B, 4, t, h, w\), got \(1, 3, 4, 4\)"),
        (torch.zeros(4, 4, 4), {}, "z must be"),
        (torch.zeros(1, 4, 4, 4, dtype=torch.int64), {}, "z must be floating point, got torch.int64"),
        (torch.zeros(0, 4, 4, 4), {}, r"z must hold at least one sample, frame and position, got \(0, 4, 4, 4\)"),
        (torch.zeros(1, 4, 0, 4, 4), {}, r"z must hold at least one .* got \(1, 4, 0, 4, 4\)"),
        (torch.zeros(1, 4, 4, 0), {}, r"z must hold at least one .* got \(1, 4, 4, 0\)"),
        (torch.zeros(1, 4, 4, 4), {"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        (
            torch.zeros(1, 4, 4, 4),
            {"noise": torch.zeros(1, 3, 4, 4)},
            r"noise must be \(1, 3, 32, 32\) .*\(1, 3, 4, 4\)",
        ),
        (torch.zeros(2, 4, 4, 4), {"generator": generators(0, 1, 2)}, "generator must be one or a list of 2, .* got 3"),
    ],
)
def test_wrong_latents_are_refused_in_one_sentence(
    model: UnifiedLatentsAutoencoder, z: Tensor, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        model.decode(z, **options)
    assert "\n" not in str(caught.value)


def test_the_decoder_attends_to_pictures_larger_than_in_training_in_another_way_and_to_no_others() -> None:
    plain = build_autoencoder("ul-tiny-f8").eval()
    scaled = build_autoencoder("ul-tiny-f8", {"attention_train_tokens": 16}).eval()
    move_weights(plain)
    scaled.load_state_dict(plain.state_dict())
    for side, is_same in ((2, True), (4, True), (6, False)):
        z, noise = torch.randn(1, 4, side, side), torch.randn(1, 3, 8 * side, 8 * side)
        with torch.no_grad():
            pictures = [model.decode(z, noise=noise).sample for model in (plain, scaled)]
        assert torch.equal(*pictures) == is_same
    with pytest.raises(ValueError, match="attention_train_tokens must be None or an integer of at least 2, got 1"):
        build_autoencoder("ul-tiny-f8", {"attention_train_tokens": 1})


def test_a_config_can_tile_large_pictures_from_the_start() -> None:
    torch.manual_seed(0)
    plain = build_autoencoder("ul-tiny-f8").eval()
    tiling = build_autoencoder("ul-tiny-f8", {"tile_sample_size": 32}).eval()
    tiling.load_state_dict(plain.state_dict())
    noise = torch.randn(1, 3, 64, 64)
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        tiled = tiling.decode(z, noise=noise).sample
        plain.enable_tiling(32, 32)
        assert torch.equal(tiled, plain.decode(z, noise=noise).sample)
        tiling.disable_tiling()
        plain.disable_tiling()
        assert torch.equal(tiling.decode(z, noise=noise).sample, plain.decode(z, noise=noise).sample)
    with pytest.raises(ValueError, match="tile_sample_size must be at least 8, got 4"):
        build_autoencoder("ul-tiny-f8", {"tile_sample_size": 4})
