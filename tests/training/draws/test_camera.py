"""The virtual camera over photographs."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.training.draws.camera import Motion, View, film, shoot
from ul_tokenizer.training.draws.clips import RandomClipDataset, pan
from ul_tokenizer.training.draws.crops import RandomCropDataset

STILL = Motion((0.0, 0.0), (0.0, 0.0), 0.0, 0.0)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def clip_of(seed: int, layer_fraction: float = 0.0, image: Image.Image | None = None) -> Tensor:
    where = noise(200, 150) if image is None else image
    return film(where, 32, 8, (0.5, 1.0), np.random.default_rng(seed), layer_fraction)


def ramp(side: int) -> Image.Image:
    """Brighter by one for each pixel to the right."""
    return Image.fromarray(np.tile(np.arange(side, dtype=np.uint8)[None, :, None], (side, 1, 3)))


def slopes(image: Image.Image) -> tuple[float, float]:
    """Mean change of the brightness for each pixel to the right, and for each pixel down."""
    pixels = np.asarray(image, np.float64)[..., 0]
    return float(np.diff(pixels, axis=1).mean()), float(np.diff(pixels, axis=0).mean())


def test_a_clip_is_a_pure_function_of_its_random_numbers() -> None:
    assert torch.equal(clip_of(3, 1.0), clip_of(3, 1.0))
    assert not torch.equal(clip_of(3, 1.0), clip_of(4, 1.0))


@pytest.mark.parametrize("size", [(200, 150), (33, 400), (20, 12)])
def test_a_camera_never_sees_what_lies_beyond_the_image(size: tuple[int, int]) -> None:
    for seed in range(40):
        clip = film(Image.new("RGB", size, (200, 100, 50)), 32, 8, (0.3, 1.0), np.random.default_rng(seed), 0.5)
        assert clip.shape == (3, 8, 32, 32) and clip.dtype == torch.uint8
        assert [channel.unique().tolist() for channel in clip] == [[200], [100], [50]]


def test_a_camera_speeds_up_at_a_steady_rate_and_stands_upright_in_the_middle() -> None:
    views = STILL._replace(velocity=(1.0, -2.0), acceleration=(0.5, 0.25), turn=0.1, log_zoom=0.02).views(5)
    shifts = np.array([view.shift for view in views])
    np.testing.assert_allclose(np.diff(shifts, 2, axis=0), [[0.5, 0.25]] * 3)
    np.testing.assert_allclose((shifts[3] - shifts[1]) / 2, [1.0, -2.0])
    np.testing.assert_allclose([view.turn for view in views], [-0.2, -0.1, 0.0, 0.1, 0.2])
    np.testing.assert_allclose(np.diff(np.log([view.zoom for view in views])), 0.02)
    assert views[2] == View((0.0, 0.0), 0.0, 1.0)


@pytest.mark.parametrize("degrees", [0, 20, -35])
@pytest.mark.parametrize("zoom", [1.0, 0.8, 1.5])
def test_a_view_turns_and_zooms(degrees: float, zoom: float) -> None:
    angle = math.radians(degrees)
    (frame,) = shoot(ramp(250), 32, [View((0.0, 0.0), angle, zoom)], 1.0, np.random.default_rng(0))
    right, down = slopes(frame)
    assert (right, down) == pytest.approx((math.cos(angle) / zoom, -math.sin(angle) / zoom), abs=0.03)


def test_a_view_moves_by_its_shift_in_pixels_of_the_clip_and_the_scale_is_that_of_the_crop() -> None:
    views = [View((shift, 0.0), 0.0, 1.0) for shift in (-4.0, 0.0, 3.0)]
    for factor in (1.0, 0.5):
        frames = shoot(ramp(250), 32, views, factor, np.random.default_rng(0))
        left, middle, right = (np.asarray(frame, np.float64)[..., 0].mean() for frame in frames)
        assert ((middle - left) * factor, (right - middle) * factor) == pytest.approx((4.0, 3.0), abs=0.1)
        assert slopes(frames[1])[0] == pytest.approx(1 / factor, abs=0.03)


def test_a_foreground_covers_a_part_of_the_picture_and_leaves_the_rest_as_it_is() -> None:
    shares = []
    for seed in range(20):
        without, covered = clip_of(seed), clip_of(seed, 1.0)
        shares.append(float((without != covered).any(dim=0).float().mean()))
    assert 0.1 < sum(shares) / 20 < 0.7 and max(shares) - min(shares) > 0.1


def test_what_is_nearer_moves_faster_in_the_same_direction() -> None:
    motion = Motion((1.0, -0.5), (0.1, 0.0), 0.02, 0.01)
    near, far = motion.times(3.0).views(4), motion.views(4)
    for one, other in zip(near, far, strict=True):
        assert one.shift == pytest.approx((3 * other.shift[0], 3 * other.shift[1]))
        assert (one.turn, one.zoom) == (other.turn, other.zoom)


def test_motions_differ_in_all_that_a_camera_can_do() -> None:
    motions = [Motion.of(np.random.default_rng(seed)) for seed in range(200)]
    values = np.array([(*m.velocity, *m.acceleration, m.turn, m.log_zoom) for m in motions])
    assert (values.std(axis=0) > 0).all() and ((values > 0).mean(axis=0) > 0.3).all()
    assert ((values < 0).mean(axis=0) > 0.3).all()


@pytest.fixture
def crops(images: Path) -> RandomCropDataset:
    return RandomCropDataset(DecodedImages(FolderSource(images, keep_duplicates=True)), 16)


def test_pans_are_steady_unless_a_camera_is_asked_for(crops: RandomCropDataset) -> None:
    plain, camera = (
        RandomClipDataset(crops, None, 4, 2, image_fraction=0.0, pan_motion=motion) for motion in ("steady", "camera")
    )
    default = RandomClipDataset(crops, None, 4, 2, image_fraction=0.0)
    clips = [[data[n]["pixel_values"] for n in range(6)] for data in (default, plain, camera, camera)]
    assert all(map(torch.equal, clips[0], clips[1])) and all(map(torch.equal, clips[2], clips[3]))
    assert not any(map(torch.equal, clips[1], clips[2]))


def test_a_camera_takes_no_more_than_a_few_times_the_time_of_a_steady_pan() -> None:
    """Medians of processor time; with a foreground, a camera films three pictures instead of one."""
    image = noise(800, 600)
    times: dict[str, list[float]] = {"pan": [], "camera": []}
    for seed in range(15):
        for name in times:
            random, start = np.random.default_rng(seed), time.process_time()
            if name == "pan":
                pan(image, 48, 8, (0.1, 1.0), random)
            else:
                film(image, 48, 8, (0.1, 1.0), random, 1.0)
            times[name].append(time.process_time() - start)
    assert np.median(times["camera"]) < 6 * np.median(times["pan"])
