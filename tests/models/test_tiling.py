"""Tiling: the tiles' weights, and pictures that come out as if there were no tiles."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.tiling import Axis, TileGrid


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    tile = draw(st.integers(1, 20))
    return Axis(draw(st.integers(1, 90)), tile, draw(st.integers(0, (tile - 1) // 2)))


# ---------------------------------------------------------------- the axis


@settings(max_examples=200, deadline=None, derandomize=True)
@given(axis=axes(), scale=st.sampled_from([1, 2, 8]))
def test_weights_sum_to_one_everywhere_and_are_never_negative(axis: Axis, scale: int) -> None:
    total = torch.zeros(axis.length * scale)
    for span, weight in zip(axis.spans, axis.weights(scale), strict=True):
        assert (weight >= 0).all()
        total[span.start * scale : span.stop * scale] += weight
    torch.testing.assert_close(total, torch.ones_like(total))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(axis=axes())
def test_tiles_have_one_size_cover_the_axis_and_overlap_enough(axis: Axis) -> None:
    spans = axis.spans
    assert (spans[0].start, spans[-1].stop) == (0, axis.length)
    assert {span.stop - span.start for span in spans} == {min(axis.tile, axis.length)}
    for left, right in pairwise(spans):
        assert left.start < right.start <= left.stop - axis.overlap


@settings(max_examples=100, deadline=None, derandomize=True)
@given(axis=axes())
def test_there_are_no_more_tiles_than_needed(axis: Axis) -> None:
    count = len(axis.spans)
    assert count == 1 or (count - 1) * (axis.tile - axis.overlap) + axis.overlap < axis.length


def test_the_ramp_of_an_overlap_is_linear() -> None:
    left, right = Axis(14, 9, 4).weights(1)
    torch.testing.assert_close(left, torch.tensor([1.0, 1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125]))
    torch.testing.assert_close(right, left.flip(0))


def test_a_single_tile_weighs_exactly_one() -> None:
    (weight,) = Axis(7, 9, 2).weights(8)
    assert torch.equal(weight, torch.ones(56))


@pytest.mark.parametrize("overlap", [-1, 4, 8])
def test_an_overlap_of_half_a_tile_or_more_is_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match=f"overlap must be at least 0 and below half of the tile, got {overlap} of 8"):
        Axis(20, 8, overlap)


def test_blending_tiles_of_one_picture_gives_that_picture() -> None:
    picture = torch.randn(2, 3, 26, 34)
    grid = TileGrid(Axis(13, 6, 2), Axis(17, 5, 1))
    torch.testing.assert_close(grid.blend([tile.of(picture, 2) for tile in grid.tiles], scale=2), picture)


def test_the_blend_passes_smoothly_between_tiles_that_disagree() -> None:
    """Tiles of constants: no step on the canvas is larger than the ramp's."""
    grid = TileGrid(Axis(4, 4, 0), Axis(40, 16, 6))
    canvas = grid.blend((torch.full((1, 4 * 8, 16 * 8), float(i % 2)) for i in range(len(grid.tiles))), scale=8)
    assert canvas.min() >= 0
    assert canvas.max() <= 1
    assert canvas.diff(dim=-1).abs().max() < 1.5 / (6 * 8)


# ---------------------------------------------------------------- the autoencoder


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def smooth(*shape: int) -> Tensor:
    """Pixels without edges, so that a seam would be the steepest thing in them."""
    coarse = torch.randn(shape[0], shape[1], 4, 4, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(coarse, shape[2:], mode="bicubic", align_corners=False).clamp(-1, 1)


@pytest.mark.parametrize("size", [(64, 64), (40, 56)])
def test_one_covering_tile_equals_untiled_to_the_bit(model: UnifiedLatentsAutoencoder, size: tuple[int, int]) -> None:
    x, noise = smooth(2, 3, *size), torch.randn(2, 3, *size)
    latent = model.encode(x).latent
    decoded = model.decode(latent, noise=noise, num_inference_steps=3).sample
    model.enable_tiling(64, 64)
    assert torch.equal(model.encode(x).latent, latent)
    assert torch.equal(model.decode(latent, noise=noise, num_inference_steps=3).sample, decoded)


@pytest.mark.parametrize("size", [(128, 128), (72, 200), (64, 136)])
def test_several_tiles_keep_shape_and_stay_near_the_untiled_result(
    model: UnifiedLatentsAutoencoder, size: tuple[int, int]
) -> None:
    x, noise = smooth(1, 3, *size), torch.randn(1, 3, *size)
    latent = model.encode(x).latent
    decoded = model.decode(latent, noise=noise).sample
    model.enable_tiling(64, 64, 0.25)
    tiled_latent, tiled = model.encode(x).latent, model.decode(latent, noise=noise).sample
    assert (tiled_latent.shape, tiled.shape) == (latent.shape, decoded.shape)
    assert not torch.equal(tiled, decoded)
    assert (tiled_latent - latent).abs().mean() < 0.2 * latent.std()  # untrained: borders are as loud as contents
    assert (tiled - decoded).abs().mean() < 0.2 * decoded.std()


def test_there_is_no_seam_at_the_borders_of_tiles(model: UnifiedLatentsAutoencoder) -> None:
    """The tiling error's steps across columns are no larger where a tile starts or stops than elsewhere."""
    x, noise = smooth(1, 3, 64, 256), torch.zeros(1, 3, 64, 256)
    latent = model.encode(x).latent
    whole = model.decode(latent, noise=noise).sample
    model.enable_tiling(64, 64, 0.25)
    steps = (model.decode(latent, noise=noise).sample - whole).diff(dim=-1).abs().mean(dim=(0, 1, 2))
    columns = model.tile_grid(8, 32).columns
    assert len(columns.spans) > 3
    borders = [8 * s.start - 1 for s in columns.spans[1:]] + [8 * s.stop - 1 for s in columns.spans[:-1]]
    elsewhere = torch.ones(255, dtype=torch.bool)
    elsewhere[borders] = False
    assert steps[borders].mean() < 2 * steps[elsewhere].mean()


def test_the_noise_is_one_canvas_whatever_the_tiles(
    model: UnifiedLatentsAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A denoiser that returns its noise gives back the untiled canvas."""
    monkeypatch.setattr(model, "_denoise", lambda z, x_1, steps, rotary: x_1)
    z = torch.randn(1, 4, 9, 17)
    canvas = model.decode(z, generator=torch.Generator().manual_seed(0)).sample
    model.enable_tiling(32, 40, 0.25)
    torch.testing.assert_close(model.decode(z, generator=torch.Generator().manual_seed(0)).sample, canvas)


def test_no_network_ever_sees_more_than_a_tile(
    model: UnifiedLatentsAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: set[tuple[int, ...]] = set()
    for part in (model.encoder, model.decoder):
        part.register_forward_pre_hook(lambda _, inputs: sizes.add(tuple(inputs[0].shape[-2:])))
    model.enable_tiling(48, 64)
    model(smooth(1, 3, 136, 200))
    assert sizes == {(48, 64)}


def test_a_clip_can_be_tiled(model: UnifiedLatentsAutoencoder) -> None:
    model.enable_tiling(32, 32)
    clip = smooth(2, 3, 64, 64)[:, :, None]
    assert model(clip.expand(-1, -1, 2, -1, -1)).sample.shape == (2, 3, 2, 64, 64)


def test_tiling_can_be_turned_off_again(model: UnifiedLatentsAutoencoder) -> None:
    x, noise = smooth(1, 3, 64, 128), torch.randn(1, 3, 64, 128)
    before = model(x, noise=noise).sample
    model.enable_tiling(32, 32)
    assert not torch.equal(model(x, noise=noise).sample, before)
    model.disable_tiling()
    assert torch.equal(model(x, noise=noise).sample, before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tile_sample_min_height": 4}, "must be at least 8, got 4 and 512"),
        ({"tile_sample_min_width": 0}, "must be at least 8, got 512 and 0"),
        ({"tile_overlap_factor": 0.5}, r"tile_overlap_factor must be at least 0 and below 0\.5, got 0\.5"),
        ({"tile_overlap_factor": -0.1}, r"got -0\.1"),
    ],
)
def test_impossible_tiles_are_refused(model: UnifiedLatentsAutoencoder, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model.enable_tiling(**arguments)
    assert not model.use_tiling
