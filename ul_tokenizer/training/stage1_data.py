"""What stage 1 draws its crops and clips from: images, videos or both."""

from __future__ import annotations

import multiprocessing
from typing import Any

from ul_tokenizer.training.data import (
    MIN_HELD_OUT,
    draws_per_step,
    make_sources,
    make_training_crops,
    say,
    split_order,
)
from ul_tokenizer.training.draws.clips import RandomClipDataset
from ul_tokenizer.training.draws.crops import CropSource, RandomCropDataset
from ul_tokenizer.training.draws.video_pool import VideoFrames, VideoPool
from ul_tokenizer.training.stage1_arguments import Stage1Arguments


class Stage1Data:
    """The images and videos of a run, opened and checked before any network is made.

    Args:
        args: the arguments of the run.

    Raises:
        ValueError: a source can't be opened, or holds too little.
        OSError: data can't be read.
        ImportError: Parquet files or a hub data set without the extra `data`.
    """

    def __init__(self, args: Stage1Arguments) -> None:
        self.args = args
        self.validation_side = args.validation_resolution or args.resolution
        images = make_sources(args) if args.has_images else None
        self._videos, self._held_out_videos = self._make_pools() if args.num_frames is not None else (None, None)
        self._train: CropSource
        self._held_out: CropSource
        if images is not None:
            self._train, self._held_out = images
        else:
            assert self._videos is not None and self._held_out_videos is not None  # Stage1Arguments refuses neither
            self._train, self._held_out = VideoFrames(self._videos), VideoFrames(self._held_out_videos)

    def training(self, multiple: int) -> RandomCropDataset | RandomClipDataset:
        """The crops or clips to train on.

        Args:
            multiple: the networks need sides that are multiples of this.
        """
        crops = make_training_crops(self.args, self._train, multiple)
        clips = self._clips(crops, self._videos, self.args.image_batch_fraction)
        if isinstance(clips, RandomClipDataset):  # held-out pans stay steady, so that runs can be compared
            clips.pan_motion, clips.pan_layer_fraction = self.args.pan_motion, self.args.pan_layer_fraction
        return clips

    def held_out(self) -> RandomCropDataset | RandomClipDataset:
        """The crops or clips to validate on, which are the same in every run."""
        args = self.args
        scale = (args.scale_min, 1.0)
        crops = RandomCropDataset(self._held_out, self.validation_side, seed=0, scale=scale, scaling=args.scaling)
        return self._clips(crops, self._held_out_videos, 0.0)

    def describe(self) -> list[str]:
        """Numbers of samples."""
        sizes = {"images": (len(self._train), len(self._held_out))} if self.args.has_images else {}
        if self._videos is not None and not self.args.has_images:
            held_out = self._held_out_videos
            sizes["videos"] = (len(self._videos.videos), len(held_out.videos) if held_out else 0)
        return [
            line
            for name, (train, held_out) in sizes.items()
            for line in (f"training {name}: {train}", f"held-out {name}: {held_out}")
        ]

    def _clips(
        self, crops: RandomCropDataset, videos: VideoPool | None, image_fraction: float
    ) -> RandomCropDataset | RandomClipDataset:
        args = self.args
        if args.num_frames is None:
            return crops
        pan_fraction, epoch = args.pan_fraction, None
        if not args.has_images:
            assert videos is not None  # then there are videos only
            pan_fraction, epoch = 0.0, len(videos.videos)
        return RandomClipDataset(
            crops, videos, args.num_frames, draws_per_step(args), image_fraction, pan_fraction, epoch=epoch
        )

    # ------------------------------------------------------------------------------------------------------------
    # Videos
    # ------------------------------------------------------------------------------------------------------------

    def _make_pools(self) -> tuple[VideoPool | None, VideoPool | None]:
        """Training and held-out videos; None stands for pans over images."""
        args = self.args
        train = self._open("train_video_dir", args.resolution)
        held_out = self._open("validation_video_dir", self.validation_side)
        if train is not None and held_out is None and not args.has_images:
            return self._split(train)
        return train, held_out

    def _open(self, flag: str, side: int) -> VideoPool | None:
        args, folder = self.args, getattr(self.args, flag)
        if folder is None:
            return None
        assert args.num_frames is not None  # else there are only images
        # Parts of a frame are scaled to the crop from at most this.
        short_side = 4 * (side if args.has_images else max(side, self.validation_side))
        try:
            videos = VideoPool(folder, short_side, args.video_fps, args.num_frames, self._cache_bytes())
        except ValueError as error:
            raise ValueError(f"--{flag}: {error}") from error
        for note in (*(f"skipped {reason}" for reason in videos.skipped), *videos.notes):
            say(note)
        if not videos.is_in_memory:
            say(
                f"{folder}: {len(videos.videos)} videos don't fit into --cache_videos_gb {args.cache_videos_gb:g}; "
                "their parts are read from the files, which --dataloader_num_workers speeds up."
            )
        return videos

    def _cache_bytes(self) -> int:
        """Memory for decoded videos, of which each worker needs a copy unless it is a fork of this process."""
        is_shared = multiprocessing.get_start_method() == "fork"
        copies = 1 if is_shared else self.args.dataloader_num_workers + 1
        return int(self.args.cache_videos_gb * 1e9) // copies

    def _split(self, videos: VideoPool) -> tuple[VideoPool, VideoPool]:
        count, fraction = len(videos.videos), self.args.validation_fraction
        held_out = max(MIN_HELD_OUT, round(count * fraction))
        if held_out >= count:
            raise ValueError(
                f"--train_video_dir must hold more than {held_out} videos with --validation_fraction {fraction}, as "
                f"some are held out for validation, got {count}; or give --validation_video_dir."
            )
        order: Any = split_order(count)
        return videos.only(order[held_out:]), videos.only(order[:held_out])
