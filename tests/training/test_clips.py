"""Stage 1 on clips: what is drawn, and what is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ul_tokenizer import UnifiedLatentsAutoencoder
from ul_tokenizer.media.clips import has_cut
from ul_tokenizer.media.images import UnreadableImageError
from ul_tokenizer.media.videos import VideoWriter
from ul_tokenizer.sources.decoded import DecodedImages
from ul_tokenizer.sources.folder import FolderSource
from ul_tokenizer.training.command import run_command
from ul_tokenizer.training.draws import video_pool
from ul_tokenizer.training.draws.clips import RandomClipDataset, pan
from ul_tokenizer.training.draws.crops import CropSample, RandomCropDataset
from ul_tokenizer.training.draws.video_pool import VideoFrames, VideoPool
from ul_tokenizer.training.stage1 import Stage1
from ul_tokenizer.training.stage1_arguments import Stage1Arguments
from ul_tokenizer.training.stage1_data import Stage1Data

Flags = Callable[..., list[str]]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, of which one has a cut in its middle."""
    folder = tmp_path_factory.mktemp("videos")
    for name, frames in (("plain", 20), ("cut", 20)):
        with VideoWriter(folder / f"{name}.mp4", 10) as writer:
            for n in range(frames):
                grey = 230 if name == "cut" and n >= 10 else 40 + n
                writer.write(np.full((48, 64, 3), grey, np.uint8))
    return folder


@pytest.fixture
def crops(images: Path) -> RandomCropDataset:
    return RandomCropDataset(DecodedImages(FolderSource(images, keep_duplicates=True)), 16, random_flip=True)


def test_a_draw_is_a_pure_function_of_its_number(crops: RandomCropDataset, videos: Path) -> None:
    datasets = [RandomClipDataset(crops, VideoPool(videos, 32), 4, draws_per_step=2) for _ in range(2)]
    for n in (5, 0, 9, 5):
        assert torch.equal(datasets[0][n]["pixel_values"], datasets[1][n]["pixel_values"])


def test_the_draws_of_a_step_are_of_one_kind_and_the_kinds_have_their_share(
    crops: RandomCropDataset, videos: Path
) -> None:
    dataset = RandomClipDataset(crops, VideoPool(videos, 32), 4, draws_per_step=3, image_fraction=0.3)
    shapes = [tuple(dataset[n]["pixel_values"].shape) for n in range(300)]
    assert set(shapes) == {(3, 16, 16), (3, 4, 16, 16)}
    assert all(len(set(shapes[first : first + 3])) == 1 for first in range(0, 300, 3))
    assert 0.15 < shapes.count((3, 16, 16)) / 300 < 0.45


def test_a_pan_moves_steadily_and_stays_inside() -> None:
    ramp = np.tile(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], (150, 1, 3))
    image = Image.fromarray(ramp)
    for seed in range(20):
        clip = pan(image, 16, 8, (1.0, 1.0), np.random.default_rng(seed))
        assert clip.shape == (3, 8, 16, 16)
        means = clip.double().mean(dim=(0, 2, 3))
        steps = means[1:] - means[:-1]
        assert steps.std() < 0.02 * 127.5


def test_parts_without_a_cut_are_found(videos: Path) -> None:
    folder = VideoPool(videos, 32)
    assert {video.frames.shape for video in folder.videos if video.frames is not None} == {(20, 32, 43, 3)}
    random = np.random.default_rng(0)
    parts = [folder.part(4, 1, random)[0] for _ in range(50)]
    assert not any(has_cut(part) for part in parts)
    assert has_cut(folder.videos[0].part(0, 20, 1))


def test_videos_too_large_for_memory_give_the_same_parts_from_their_files(videos: Path) -> None:
    kept, read = (VideoPool(videos, 32, max_bytes=limit) for limit in (10**9, 0))
    assert (kept.is_in_memory, read.is_in_memory) == (True, False)
    assert all(video.frames is None for video in read.videos)
    randoms = [np.random.default_rng(0) for _ in range(2)]
    for stride in (1, 2, 3):
        one, other = (folder.part(5, stride, random) for folder, random in zip((kept, read), randoms, strict=True))
        assert np.array_equal(one[0], other[0])
        assert one[1] == other[1] == ()


def test_videos_that_are_left_out_take_no_memory(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.mp4").write_bytes((videos / "plain.mp4").read_bytes())
    with VideoWriter(tmp_path / "short.mp4", 10) as writer:
        writer.write(np.zeros((480, 640, 3), np.uint8))
    size = 20 * 3 * 48 * 64
    assert VideoPool(tmp_path, 480, min_frames=2, max_bytes=size).is_in_memory
    assert not VideoPool(tmp_path, 480, min_frames=2, max_bytes=size - 1).is_in_memory


def test_a_part_that_cannot_be_read_is_named_and_replaced(videos: Path, tmp_path: Path) -> None:
    for name in ("plain", "gone"):
        (tmp_path / f"{name}.mp4").write_bytes((videos / "plain.mp4").read_bytes())
    folder = VideoPool(tmp_path, 32, max_bytes=0)
    (tmp_path / "gone.mp4").unlink()
    random = np.random.default_rng(0)
    parts = [folder.part(4, 1, random) for _ in range(20)]
    assert all(part.shape == (4, 32, 43, 3) for part, _ in parts)
    assert {reason for _, skipped in parts for reason in skipped} == {"gone.mp4: there is no such file"}
    (tmp_path / "plain.mp4").unlink()
    with pytest.raises(ValueError, match=r"got none in 8 tries\. .*there is no such file"):
        folder.part(4, 1, random)


def test_short_and_broken_videos_are_named(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "plain.mp4").write_bytes((videos / "plain.mp4").read_bytes())
    assert VideoPool(tmp_path, 32).skipped[0].startswith("bad.mp4: ")
    with pytest.raises(ValueError, match=r"must hold at least one video, got none .* fewer than 30"):
        VideoPool(tmp_path, 32, min_frames=30)


@pytest.mark.parametrize("frames", [4, 6])
def test_a_video_model_trains_on_clips_and_images_in_turns(
    smallest_flags: Flags, videos: Path, tmp_path: Path, frames: int
) -> None:
    run = tmp_path / "run"
    flags = smallest_flags(
        run,
        num_frames=frames,
        train_video_dir=videos,
        validation_video_dir=videos,
        image_batch_fraction=0.5,
        max_train_steps=4,
        validation_steps=4,
        autoencoder_config={"temporal_compression_ratio": 4},
    )
    assert run_command("autoencoder", flags) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = next(row for row in rows if "validation/flicker" in row)
    assert measured["validation/bits_per_pixel"] > 0
    model = UnifiedLatentsAutoencoder.from_pretrained(run)
    assert model.temporal_compression_ratio == 4
    assert not any(model.config.latents_mean)  # no statistics: latents are not normalised
    assert Image.open(run / "samples" / "step-0000004.png").size[0] > 16


def test_videos_without_a_length_are_refused(
    smallest_flags: Flags, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command("autoencoder", smallest_flags(tmp_path / "run", train_video_dir=videos))
    assert stop.value.code == 2
    assert "need --num_frames" in capsys.readouterr().err


def test_a_damaged_video_that_is_used_is_noted_and_not_skipped(tmp_path: Path) -> None:
    path, random = tmp_path / "a.mp4", np.random.default_rng(0)
    with VideoWriter(path, 10) as writer:
        for _ in range(40):
            writer.write(random.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = b"\xff" * 3000
    path.write_bytes(content)
    pool = VideoPool(path, 32)
    assert len(pool.videos) == 1 and pool.skipped == []
    assert len(pool.notes) == 1 and "a.mp4: " in pool.notes[0] and "damaged" in pool.notes[0]


# ---------------------------------------------------------------- videos without images


@pytest.fixture(scope="module")
def many_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos in two folders; video n has the brightness 40 n + 20."""
    folder = tmp_path_factory.mktemp("many")
    for n in range(4):
        (folder / "ab"[n % 2]).mkdir(exist_ok=True)
        with VideoWriter(folder / "ab"[n % 2] / f"{n}.mp4", 10) as writer:
            for k in range(10):
                writer.write(np.full((48, 64, 3), 40 * n + 20 + k, np.uint8))
    return folder


def clips_only(folder: Path, **flags: object) -> Stage1Arguments:
    values = {"train_video_dir": str(folder), "num_frames": 4, "resolution": 16, "validation_fraction": 0.25}
    return Stage1Arguments(**{**values, **flags})  # type: ignore[arg-type]


def brightness(sample: CropSample) -> int:
    return round((float(sample["pixel_values"].double().mean()) - 20) / 40)


def test_without_images_frames_and_clips_come_from_the_videos_and_others_are_held_out(many_videos: Path) -> None:
    data = Stage1Data(clips_only(many_videos, image_batch_fraction=0.5))
    training, held_out = data.training(16), data.held_out()
    drawn = [training[n] for n in range(300)]
    assert {tuple(sample["pixel_values"].shape) for sample in drawn} == {(3, 16, 16), (3, 4, 16, 16)}
    assert {sample["pixel_values"].ndim for sample in (held_out[n] for n in range(20))} == {4}
    kinds = [{brightness(sample) for sample in samples} for samples in (drawn, [held_out[n] for n in range(40)])]
    assert kinds[0] | kinds[1] == {0, 1, 2, 3} and not kinds[0] & kinds[1] and len(kinds[1]) == 2
    assert len(training) == 2
    assert data.describe() == ["training videos: 2", "held-out videos: 2"]


def test_long_videos_are_drawn_more_often_as_numpy_would_choose_them(many_videos: Path) -> None:
    pool = VideoPool(many_videos, 64)
    lengths = np.array([5, 20, 1, 14])
    ends = video_pool._ends(lengths)
    random, other = np.random.default_rng(0), np.random.default_rng(0)
    for _ in range(200):
        expected = int(other.choice(4, p=lengths / lengths.sum()))
        assert int(np.searchsorted(ends, random.random(), "right")) == expected
    held_out = pool.only([2, 0])
    assert [video.path.name for video in held_out.videos] == ["1.mp4", "0.mp4"]
    assert held_out.videos[0].frames is pool.videos[2].frames is not None


def test_a_video_model_trains_without_any_image(smallest_flags: Flags, many_videos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = smallest_flags(
        run, num_frames=4, train_video_dir=many_videos, autoencoder_config={"temporal_compression_ratio": 4}
    )
    place = flags.index("--train_data_dir")
    assert run_command("autoencoder", [*flags[:place], *flags[place + 2 :]]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("validation/flicker" in row for row in rows)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_frames": 11}, r"^--train_video_dir: root must hold at least one video, got none .* 10 frames, fewer"),
        ({"validation_fraction": 0.9}, "--train_video_dir must hold more than 4 videos"),
    ],
)
def test_videos_that_are_too_short_or_too_few_are_refused_before_a_network_is_made(
    many_videos: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, object], message: str
) -> None:
    monkeypatch.setattr("ul_tokenizer.training.stage1._make_models", None)
    with pytest.raises(ValueError, match=message):
        Stage1(clips_only(many_videos, **flags))


def test_neither_images_nor_videos_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="--train_data_dir, --dataset_name and --train_video_dir is needed, got none"):
        Stage1Arguments()
    with pytest.raises(ValueError, match="need training images, got videos only"):
        Stage1Arguments(train_video_dir="x", num_frames=4, validation_data_dir="y")


def test_single_frames_are_spread_over_their_video(many_videos: Path) -> None:
    frames = VideoFrames(VideoPool(many_videos, 64))
    assert [frames.id(n) for n in range(8)] == [f"0.mp4@{k}" for k in (0, 1, 3, 4, 5, 6, 8, 9)]
    assert [round(float(np.asarray(frames.read(n)).mean())) - 20 for n in (0, 7)] == pytest.approx([0, 9], abs=2)
    assert len(frames) == 32


def test_a_frame_that_cannot_be_read_is_an_unreadable_image(many_videos: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes((many_videos / "a" / "0.mp4").read_bytes())
    frames = VideoFrames(VideoPool(path, 64, max_bytes=0))
    path.unlink()
    with pytest.raises(UnreadableImageError, match=r"a\.mp4@4 can't be read: there is no such file"):
        frames.read(3)


def test_pans_follow_the_shorter_side_if_crops_do(images: Path) -> None:
    source = DecodedImages(FolderSource(images, keep_duplicates=True))
    image = source.read(0)  # 24×20
    native, short = (
        RandomCropDataset(source, 10, scale=(0.5, 1.0), scaling=scaling) for scaling in ("native", "short_side")
    )
    assert native.factors(image) == (0.5, 1.0) and short.factors(image) == (0.5, 1.0)
    small = RandomCropDataset(source, 5, scale=(0.5, 1.0), scaling="short_side")
    assert small.factors(image) == (0.25, 0.5)
    assert RandomClipDataset(small, None, 4, draws_per_step=2)[0]["pixel_values"].shape[-1] == 5
