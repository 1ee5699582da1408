"""Videos through a model: to latent files, back to videos, and both beside each other with figures.

Frames are read, encoded, decoded and written piece by piece. What stays in memory of a whole video are its latents.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ul_tokenizer.cli.codec import DecodeOptions, LoadedModel
from ul_tokenizer.cli.latent_file import NUM_FRAMES, read_latent, write_latent
from ul_tokenizer.cli.options import Fit
from ul_tokenizer.cli.tasks import FileTask
from ul_tokenizer.evaluation.whole_videos import ComparedFrames, noisy_latents, psnr_of, video_bits
from ul_tokenizer.media.frame_times import Frame
from ul_tokenizer.media.pixels import frame_to_float, to_uint8
from ul_tokenizer.media.videos import VideoWriter, count_frames, probe, read_frames
from ul_tokenizer.progress import progress, track


class VideoReconstruction(NamedTuple):
    """Figures of one reconstructed video."""

    file: str
    kind: str
    width: int
    height: int
    frames: int
    fps: float
    mean_psnr: float  # dB, mean over frames
    psnr_of_mean_mse: float  # dB
    psnr_per_frame: list[float]
    flicker: float  # mean absolute difference of the changes from frame to frame, as a part of the range
    source_change: float  # mean absolute change from frame to frame of the source, as a part of the range
    bits_per_pixel: float | None  # None without a prior
    frames_per_second: float  # encoding and decoding
    output: str


class VideoTotals(NamedTuple):
    """Figures of all reconstructed videos; every frame counts alike."""

    model: str
    files: int
    mean_psnr: float
    psnr_of_mean_mse: float
    bits_per_pixel: float | None
    frames: int
    pixels: int


def video_totals(model: str, rows: Sequence[VideoReconstruction]) -> VideoTotals:
    """Means over frames of PSNR and, weighted by pixels, of MSE; bits and pixels are summed before they are divided."""
    frames = [row.frames for row in rows]
    pixels = [row.frames * row.width * row.height for row in rows]
    bits = [row.bits_per_pixel * n for row, n in zip(rows, pixels, strict=True) if row.bits_per_pixel is not None]
    squares = [10 ** (-row.psnr_of_mean_mse / 10) * n for row, n in zip(rows, pixels, strict=True)]
    return VideoTotals(
        model,
        len(rows),
        sum(row.mean_psnr * n for row, n in zip(rows, frames, strict=True)) / sum(frames),
        psnr_of(sum(squares) / sum(pixels)),
        sum(bits) / sum(pixels) if len(bits) == len(rows) else None,
        sum(frames),
        sum(pixels),
    )


@dataclass
class VideoInput:
    """A video that is read, at its own frame rate or resampled."""

    path: Path
    fps: float  # of the result
    resample: float | None  # None for every frame as it is
    num_frames: int
    width: int
    height: int
    has_told: bool = False  # what was odd about the file

    @classmethod
    def of(cls, path: Path, fps: float | None) -> VideoInput:
        """Reads a file's headers and counts its frames.

        Raises:
            UnreadableVideoError: nothing in it can be read.
        """
        info = probe(path)
        return cls(path, fps or info.rate, fps, count_frames(path, fps), info.width, info.height)

    def frames(self) -> Iterator[Frame]:
        """All frames, (H, W, 3) uint8; after the first reading, prints what was odd about the file."""
        notes: list[str] = []
        yield from read_frames(self.path, fps=self.resample, notes=notes)
        for note in [] if self.has_told else notes:
            print(note, file=sys.stderr)
        self.has_told = True

    def fitted_size(self, multiple: int, fit: Fit) -> tuple[int, int]:
        """Height and width after padding or cropping to a multiple.

        Raises:
            ValueError: cropping would leave nothing.
        """
        extra = multiple - 1 if fit == "pad" else 0
        height, width = ((side + extra) // multiple * multiple for side in (self.height, self.width))
        if 0 in (height, width):
            raise ValueError(
                f"{self.path} must be at least {multiple} pixels wide and high, got {self.width}×{self.height}."
            )
        return height, width


@dataclass
class VideoCodec:
    """Videos through a loaded model of videos."""

    model: LoadedModel
    shows_frames: bool  # a progress bar of frames, for a single video

    # ---------------------------------------------------------------- tensors

    def latents(self, clip: VideoInput, height: int, width: int) -> list[Tensor]:
        """z_clean of a video whose frames are padded or cropped to a size: pieces (1, c, t', h, w), on the CPU."""
        self.model.set_tiling(height, width)
        autoencoder, pieces = self.model.autoencoder, []
        pixels = (
            frame_to_float(_fitted(frame, height, width))[None, :, None].to(autoencoder.device)
            for frame in clip.frames()
        )
        with progress("encoding", clip.num_frames, "frames", shown=self.shows_frames) as bar:
            for z in autoencoder.encode_stream(pixels, clip.num_frames, clean=True):
                pieces.append(z.cpu())
                bar.update(z.shape[2] * self.model.temporal_ratio)
        return pieces

    def pictures(self, latents: Iterable[Tensor], num_frames: int, how: DecodeOptions) -> Iterator[Frame]:
        """Frames (H, W, 3), uint8, of z_clean in pieces (1, c, t', h, w)."""
        autoencoder = self.model.autoencoder
        noise_of_pixels = torch.Generator().manual_seed(how.seed + 1)
        on_device = (piece.to(autoencoder.device) for piece in latents)
        noise_of_latents = None if how.mode else torch.Generator().manual_seed(how.seed)
        noisy = noisy_latents(on_device, self.model.latent_logsnr, noise_of_latents)
        for frames in autoencoder.decode_stream(noisy, num_frames, noise_of_pixels, how.steps):
            yield from to_uint8(frames[0]).cpu().permute(1, 2, 3, 0).numpy()

    # ---------------------------------------------------------------- files

    @torch.inference_mode()
    def encode_file(self, job: FileTask, fit: Fit, fps: float | None) -> None:
        """Video → latent file."""
        clip = VideoInput.of(job.source, fps)
        height, width = clip.fitted_size(self.model.ratio, fit)
        latents = [z[0].half() for z in self.latents(clip, height, width)]
        metadata = {
            **self.model.latent_metadata(),
            "original_width": str(clip.width),
            "original_height": str(clip.height),
            "width": str(min(width, clip.width)),  # of the decoded video
            "height": str(min(height, clip.height)),
            NUM_FRAMES: str(clip.num_frames),
            "fps": repr(clip.fps),
        }
        write_latent(job.target, torch.cat(latents, dim=1), metadata)

    @torch.inference_mode()
    def decode_file(self, job: FileTask, how: DecodeOptions) -> None:
        """Latent file → MP4."""
        latent, metadata = read_latent(job.source)
        width, height = self.model.check_latent(job.source, latent, metadata)
        num_frames, fps = _checked_time(job.source, latent.shape[1] * self.model.temporal_ratio, metadata)
        self.model.set_tiling(*(side * self.model.ratio for side in latent.shape[-2:]))
        frames = self.pictures(torch.split(latent[None], 1, dim=2), num_frames, how)
        with VideoWriter(job.target, fps) as writer:
            for frame in track(frames, "decoding", num_frames, "frames", shown=self.shows_frames):
                writer.write(frame[:height, :width])

    @torch.inference_mode()
    def reconstruct_file(
        self, job: FileTask, fit: Fit, how: DecodeOptions, fps: float | None, audio: bool
    ) -> VideoReconstruction:
        """Video → MP4 of original and reconstruction, side by side, and its figures."""
        clip, prior = VideoInput.of(job.source, fps), self.model.prior
        height, width = clip.fitted_size(self.model.prior_multiple, fit)
        start = time.perf_counter()
        latents = self.latents(clip, height, width)
        bits = None if prior is None else video_bits(latents, prior, self.model.latent_logsnr)
        height, width = min(height, clip.height), min(width, clip.width)
        compared = ComparedFrames()
        pairs = zip(clip.frames(), self.pictures(latents, clip.num_frames, how), strict=True)
        with VideoWriter(job.target, clip.fps, job.source if audio else None) as writer:
            for original, frame in track(pairs, "decoding", clip.num_frames, "frames", shown=self.shows_frames):
                left, right = _centred(original, height, width), frame[:height, :width]
                compared.add(left, right)
                writer.write(np.concatenate([left, right], axis=1))
        seconds = time.perf_counter() - start
        return _figures(compared, job, clip.fps, bits, seconds)


def _checked_time(path: Path, most: int, metadata: dict[str, str]) -> tuple[int, float]:
    """Number of frames and frame rate that a latent file claims.

    Raises:
        ValueError: they are no numbers, or more frames than the latent has.
    """
    num_frames, fps = metadata[NUM_FRAMES], metadata.get("fps", "")
    try:
        rate = float(fps)
    except ValueError:
        rate = 0.0
    if not num_frames.isdecimal() or not 0 < int(num_frames) <= most or not 0 < rate < float("inf"):
        raise ValueError(
            f"Latent {path} claims {num_frames} frames at {fps or 'no'} frames per second, which doesn't fit its shape."
        )
    return int(num_frames), rate


def _figures(
    compared: ComparedFrames, job: FileTask, fps: float, bits: float | None, seconds: float
) -> VideoReconstruction:
    (height, width), frames = compared.size, len(compared.errors)
    return VideoReconstruction(
        job.name,
        "video",
        width,
        height,
        frames,
        fps,
        *compared.figures(),
        bits_per_pixel=None if bits is None else bits / (frames * height * width),
        frames_per_second=frames / seconds,
        output=str(job.target),
    )


# ---------------------------------------------------------------- frames


def _fitted(frame: Frame, height: int, width: int) -> Frame:
    """Padded with its last row and column, or cropped around its centre."""
    missing = max(0, height - frame.shape[0]), max(0, width - frame.shape[1])
    padded = np.pad(frame, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge") if any(missing) else frame
    return _centred(padded, height, width)


def _centred(frame: Frame, height: int, width: int) -> Frame:
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    return np.ascontiguousarray(frame[top : top + height, left : left + width])
