"""Time in the autoencoder: causality, images as clips of one frame, parts and windows of long clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from conversion.image_to_video import inflate
from ul_tokenizer import UnifiedLatentsAutoencoder
from ul_tokenizer.models.config_checks import TEMPORAL_DOWNSAMPLES
from ul_tokenizer.models.layers import fold_time
from ul_tokenizer.models.presets import build_autoencoder
from ul_tokenizer.models.temporal import TemporalDownsample

RATIO = 4


def video_model(seed: int = 0, **changes: Any) -> UnifiedLatentsAutoencoder:
    """A small model without zero weights, so that frames are really mixed."""
    torch.manual_seed(seed)
    model = build_autoencoder("ul-tiny-f8", {"temporal_compression_ratio": RATIO, **changes}).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module", params=TEMPORAL_DOWNSAMPLES)
def where(request: pytest.FixtureRequest) -> str:
    """Where the number of frames is reduced."""
    return str(request.param)


@pytest.fixture(scope="module")
def model(where: str) -> UnifiedLatentsAutoencoder:
    return video_model(temporal_downsample=where)


def clip(frames: int, size: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, frames, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 9, 17, 33])
@torch.no_grad()
def test_a_clip_has_a_latent_frame_for_every_four_and_comes_back_whole(
    model: UnifiedLatentsAutoencoder, frames: int
) -> None:
    x = clip(frames)
    z = model.encode(x).latent
    assert z.shape == (1, 4, -(-frames // RATIO), 2, 2)
    assert model.decode(z, num_frames=frames).sample.shape == x.shape
    assert model.decode(z).sample.shape[2] == z.shape[2] * RATIO
    assert model(x).sample.shape == x.shape


@torch.no_grad()
def test_an_image_is_a_clip_of_one_frame(model: UnifiedLatentsAutoencoder) -> None:
    x, noise = clip(1), torch.randn(1, 3, 1, 16, 16)
    z = model.encode(x).latent
    assert torch.equal(model.encode(x[:, :, 0]).latent, z[:, :, 0])
    as_clip = model.decode(z, noise=noise, num_frames=1).sample[:, :, 0]
    assert torch.equal(model.decode(z[:, :, 0], noise=noise[:, :, 0]).sample, as_clip)


@torch.no_grad()
def test_the_padding_in_front_is_the_first_frame_again(model: UnifiedLatentsAutoencoder) -> None:
    for frames in (1, 2, 3, 5, 6, 7):
        x = clip(frames)
        padded = torch.cat([x[:, :, :1].expand(-1, -1, -frames % RATIO, -1, -1), x], dim=2)
        torch.testing.assert_close(model.encode(x).latent, model.encode(padded).latent, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- from image weights


def image_model() -> UnifiedLatentsAutoencoder:
    torch.manual_seed(0)
    model = build_autoencoder("ul-tiny-f8").eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def test_image_weights_give_a_video_model_that_treats_images_alike(where: str) -> None:
    image = image_model()
    video = inflate(image, RATIO, temporal_downsample=where)
    x, noise = clip(1)[:, :, 0], torch.randn(1, 3, 16, 16)
    z = video.encode(x).latent
    assert torch.equal(z[:, :4], image.encode(x).latent)
    assert where == "features" or (z[:, 4:] == 0).all()  # an image does not differ from itself
    z = z + 0.1 * torch.randn_like(z)
    for steps in (1, 3):
        one = video.decode(z, noise=noise, num_inference_steps=steps).sample
        other = image.decode(z[:, :4], noise=noise, num_inference_steps=steps).sample
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    still = x[:, :, None].expand(-1, -1, 8, -1, -1)
    z = video.encode(still).latent
    torch.testing.assert_close(z, video.encode(x).latent[:, :, None].expand_as(z), rtol=0, atol=1e-5)


@torch.no_grad()
def test_inflated_latents_hold_those_of_every_frame() -> None:
    image = image_model()
    video = inflate(image, RATIO)
    x = clip(8)
    of_frames = image.encode(x[0].transpose(0, 1)).latent
    unfold = video.decoder.latent_embedding.unfold
    assert unfold is not None
    unfolded = unfold(fold_time(video.encode(x).latent))
    torch.testing.assert_close(unfolded, of_frames, rtol=0, atol=1e-5)


def test_image_weights_are_not_on_a_saddle_where_motion_has_no_gradient() -> None:
    video = inflate(image_model(), RATIO, temporal_downsample="features")
    x = clip(8)
    features = video.decoder.embed_latents(video.encoder(x)[0])
    still_noise = torch.randn(1, 3, 1, 16, 16).expand_as(x)
    frames = video.decoder(still_noise, torch.full((1,), -5.0), features)
    assert not torch.allclose(frames[:, :, 4], frames[:, :, 7], rtol=0, atol=1e-3)
    (frames - x).square().mean().backward()
    for downsample in video.encoder.temporal_downsamples:
        assert isinstance(downsample, TemporalDownsample)
        assert downsample.linear.weight.grad is not None
        of_mean, of_difference = downsample.linear.weight.grad.chunk(2, dim=1)
        assert of_difference.norm() > 0.05 * of_mean.norm()


# ---------------------------------------------------------------- causality


@pytest.mark.parametrize("frames", [4, 6, 9, 16])
def test_no_later_frame_reaches_a_latent_and_every_frame_of_its_window_does(
    model: UnifiedLatentsAutoencoder, frames: int
) -> None:
    x = clip(frames).requires_grad_()
    z = model.encode(x).latent
    padding = -frames % RATIO
    for k in range(z.shape[2]):
        (gradient,) = torch.autograd.grad(z[:, :, k].square().sum(), x, retain_graph=True)
        reach = gradient.abs().amax(dim=(0, 1, 3, 4))
        last = (k + 1) * RATIO - padding
        assert (reach[last:] == 0).all()
        assert (reach[max(0, last - RATIO) : last] > 0).all()


# ---------------------------------------------------------------- any length


def pieces(x: Tensor, lengths: list[int]) -> list[Tensor]:
    return list(x.split(lengths, dim=2))


@pytest.mark.parametrize("frames", [16, 17, 35, 64])
@torch.no_grad()
def test_a_stream_of_pieces_is_the_whole_clip_bit_for_bit(model: UnifiedLatentsAutoencoder, frames: int) -> None:
    x = clip(frames)
    z = model.encode(x).latent_dist.mode()
    for lengths in ([frames], [1] * frames, [5, frames - 5]):
        streamed = list(model.encode_stream(pieces(x, lengths), num_frames=frames))
        assert torch.equal(torch.cat(streamed, dim=2), z)
    y = model.decode(z, num_frames=frames, generator=torch.Generator().manual_seed(0)).sample
    for lengths in ([z.shape[2]], [1] * z.shape[2]):
        generator = torch.Generator().manual_seed(0)
        streamed = list(model.decode_stream(pieces(z, lengths), num_frames=frames, generator=generator))
        assert torch.equal(torch.cat(streamed, dim=2), y)


@torch.no_grad()
def test_parts_with_what_was_remembered_are_the_clip_in_one_to_rounding(where: str) -> None:
    model = video_model(temporal_downsample=where)
    x = clip(37)
    parts = model.encode(x).latent
    model.encode_chunk_frames = 1000
    torch.testing.assert_close(parts, model.encode(x).latent, rtol=0, atol=1e-5)


@torch.no_grad()
def test_tiles_compose_with_parts(where: str) -> None:
    tiled = video_model(temporal_downsample=where)
    tiled.enable_tiling(16, 16, 0.25)
    x = clip(37, size=40)
    z = tiled.encode(x).latent
    assert z.shape == (1, 4, 10, 5, 5)
    streamed = torch.cat(list(tiled.encode_stream(pieces(x, [7, 30]), num_frames=37)), dim=2)
    assert torch.equal(streamed, tiled.encode(x).latent_dist.mode())
    assert tiled.decode(z, num_frames=37).sample.shape == x.shape


@torch.no_grad()
def test_the_encoders_cache_is_returned_and_not_changed(model: UnifiedLatentsAutoencoder) -> None:
    first, second = clip(12).split([4, 8], dim=2)
    _, cache = model.encoder(first)
    before = [history.clone() for history in cache]
    once, again = (model.encoder(second, cache)[0] for _ in range(2))
    assert torch.equal(once, again)
    assert all(torch.equal(history, old) for history, old in zip(cache, before, strict=True))
    assert not torch.equal(once, model.encoder(second)[0])


@torch.no_grad()
def test_the_encoders_cache_holds_two_frames_a_stage_and_no_more(model: UnifiedLatentsAutoencoder) -> None:
    _, cache = model.encoder(clip(16))
    assert len(cache) == len(model.encoder.stages)
    for history in cache:
        assert history.shape[1] == 2
        assert history.untyped_storage().nbytes() == history.numel() * history.element_size()


@torch.no_grad()
def test_windows_meet_without_a_seam(where: str) -> None:
    """The change from frame to frame is at the borders of windows about as large as inside them."""
    model = video_model(temporal_downsample=where)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(1, 4, 1, 2, 2, generator=generator) + 0.05 * torch.randn(
        1, 4, 24, 2, 2, generator=generator
    ).cumsum(2)
    y = model.decode(z, generator=torch.Generator().manual_seed(0)).sample
    change = (y[:, :, 1:] - y[:, :, :-1]).abs().mean(dim=(0, 1, 3, 4))
    step = (model.decode_window_latents - model.decode_window_overlap) * RATIO
    borders = torch.tensor([n for n in range(len(change)) if n >= step and (n - step) % step < 2 * RATIO])
    inside = torch.tensor([n for n in range(len(change)) if n not in set(borders.tolist())])
    assert change[borders].mean() < 1.5 * change[inside].mean()


@torch.no_grad()
def test_what_stands_still_stays_still_within_a_window(where: str) -> None:
    z = torch.randn(1, 4, 1, 2, 2).repeat(1, 1, 4, 1, 1)
    still = video_model(temporal_downsample=where)
    for name, parameter in still.decoder.named_parameters():
        if "fold_out" in name:  # copies
            parameter.data = torch.eye(parameter.shape[-1]).repeat(RATIO, 1) if parameter.ndim == 2 else 0 * parameter
        elif "unfold" in name:  # as inflated
            parameter.data = torch.eye(len(parameter)) if parameter.ndim == 2 else 0 * parameter
    if where == "latents":
        z[:, 1:] = 0  # no difference between frames
    one, independent = (
        still.decode(z, noise=noise).sample
        for noise in (torch.randn(1, 3, 1, 16, 16).expand(-1, -1, 16, -1, -1), torch.randn(1, 3, 16, 16, 16))
    )
    flicker = [(y[:, :, 1:] - y[:, :, :-1]).abs().mean() for y in (one, independent)]
    assert flicker[0] < 0.5 * flicker[1]


# ---------------------------------------------------------------- refusals


def test_lengths_that_contradict_are_one_sentence(model: UnifiedLatentsAutoencoder) -> None:
    z = torch.randn(1, 4, 3, 2, 2)
    for frames in (8, 13):
        with pytest.raises(ValueError, match=f"num_frames must be from 9 to 12 for these latents, got {frames}"):
            model.decode(z, num_frames=frames)
    with pytest.raises(ValueError, match=r"noise must be \(1, 3, 12, 16, 16\) for these latents"):
        model.decode(z, noise=torch.randn(1, 3, 1, 16, 16))
    for said, frames in ((None, 17), (20, 17), (16, 18), (5, 8)):
        with pytest.raises(ValueError, match="num_frames must be the clip's number of frames"):
            list(model.encode_stream([clip(frames)], num_frames=said))
    with pytest.raises(ValueError, match="height and width must be multiples of 8"):
        list(model.encode_stream([clip(4, size=12)]))


@pytest.mark.parametrize("ratio", [0, 3, 8, -4, 2.0, True])
def test_a_ratio_that_the_stages_cannot_give_is_refused(ratio: Any) -> None:
    with pytest.raises(ValueError, match="temporal_compression_ratio must be a power of two of at most 4"):
        build_autoencoder("ul-tiny-f8", {"temporal_compression_ratio": ratio})


# ---------------------------------------------------------------- training


def test_gradients_reach_every_weight_with_checkpointing_as_without(where: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = video_model(temporal_downsample=where).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        x = clip(8)
        z = model.encode(x).latent
        v = model.decoder(x, torch.zeros(1), model.decoder.embed_latents(z))
        v.square().mean().backward()
        assert all(p.grad is not None for p in model.parameters())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5)


def test_a_video_models_features_keep_the_statistics_of_the_image_model() -> None:
    statistics = {"latents_mean": [0.5] * 4, "latents_std": [2.0] * 4, "scaling_factor": 3.0}
    image_model = build_autoencoder("ul-tiny-f8", statistics)
    video = inflate(image_model, RATIO, temporal_downsample="features")
    assert {key: video.config[key] for key in statistics} == {key: image_model.config[key] for key in statistics}
    assert set(inflate(image_model, RATIO, temporal_downsample="latents").config["latents_mean"]) == {0.0}
