"""Videos through a model to latent files and back, in constant memory: what `encode`, `decode` and `reconstruct` do."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save
from torch import Tensor

from ul_tokenizer import __version__
from ul_tokenizer.cli.codec import FORMAT, Codec, read_latent
from ul_tokenizer.cli.files import FileTask
from ul_tokenizer.diffusion.schedule import LogSNRSchedule, alpha_sigma
from ul_tokenizer.files import whole_file
from ul_tokenizer.media.frame_times import Frame
from ul_tokenizer.media.pixels import frame_to_float, to_uint8
from ul_tokenizer.media.videos import VideoWriter, count_frames, probe, read_frames
from ul_tokenizer.models.rate import latent_bits
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

BITS_SIDE, BITS_FRAMES, BITS_LEVELS = 16, 4, 4  # latents a side and frames of a piece, and noise levels, of the bound


class VideoReconstruction(NamedTuple):
    """What a video's reconstruction is worth."""

    video: str
    width: int
    height: int
    frames: int
    fps: float
    mean_psnr: float  # dB, of frames
    psnr_of_mean_mse: float
    psnr_per_frame: list[float]
    flicker: float  # mean absolute difference of the changes from frame to frame, of the range
    source_change: float  # mean absolute change from frame to frame of the source, of the range
    bits_per_pixel: float | None
    frames_per_second: float  # encoded and decoded
    output: str


@dataclass
class VideoInput:
    """What is to be read."""

    path: Path
    fps: float  # of the result
    resample: float | None  # to which times are evened out; None for every frame as it is
    num_frames: int
    width: int
    height: int  # of the original

    @classmethod
    def of(cls, path: Path, fps: float | None) -> VideoInput:
        """A file's, at its own rate or another one.

        Raises:
            UnreadableVideoError: nothing in it can be read.
        """
        info = probe(path)
        return cls(path, fps or info.rate, fps, count_frames(path, fps), info.width, info.height)

    def frames(self) -> Iterator[Frame]:
        """All of them."""
        notes: list[str] = []
        yield from read_frames(self.path, fps=self.resample, notes=notes)
        for note in notes:
            print(note, file=sys.stderr)


class VideoCodec:
    """A video model, and files through it."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.autoencoder = codec, codec.autoencoder
        if self.autoencoder.temporal_compression_ratio == 1:
            raise ValueError(f"--model must be one of videos, got {codec.name}, which is one of images.")

    # ------------------------------------------------------------------------------------------------------------
    # Tensors
    # ------------------------------------------------------------------------------------------------------------

    def latents(self, clip: VideoInput, pad: bool) -> Iterator[Tensor]:
        """z_clean (1, c, t', h, w), piece by piece."""
        sizes = (clip.height, clip.width)
        ratio = self.codec.ratio
        wanted = [-(-side // ratio) * ratio if pad else side // ratio * ratio for side in sizes]
        if 0 in wanted:
            raise ValueError(f"{clip.path} must have at least {ratio} pixels a side, got {clip.width}×{clip.height}.")
        self.codec.set_tiling(*wanted)
        pixels = (
            frame_to_float(_fitted(frame, *wanted))[None, :, None].to(self.autoencoder.device)
            for frame in clip.frames()
        )
        yield from self.autoencoder.encode_stream(pixels, clip.num_frames, clean=True)

    def pictures(
        self, latents: Iterator[Tensor], num_frames: int, seed: int, steps: int | None, mode: bool
    ) -> Iterator[Frame]:
        """Frames (H, W, 3) of z_clean in pieces."""
        generator = torch.Generator().manual_seed(seed)
        alpha, sigma = alpha_sigma(torch.tensor(self.autoencoder.config.latent_logsnr))

        def noisy() -> Iterator[Tensor]:
            for z in latents:
                noise = torch.zeros_like(z) if mode else torch.randn(z.shape, generator=generator).to(z)
                yield alpha.to(z) * z + sigma.to(z) * noise

        noise_of_pixels = torch.Generator().manual_seed(seed + 1)
        for frames in self.autoencoder.decode_stream(noisy(), num_frames, noise_of_pixels, steps):
            clip = to_uint8(frames[0]).cpu()
            yield from clip.permute(1, 2, 3, 0).numpy()

    # ------------------------------------------------------------------------------------------------------------
    # Files
    # ------------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode_file(self, job: FileTask, pad: bool, fps: float | None) -> None:
        """Video → latent file."""
        clip = VideoInput.of(job.source, fps)
        latents = [z[0].half().cpu() for z in shown(self.latents(clip, pad), clip.num_frames, self._ratio, "encoding")]
        side = self.codec.ratio
        height, width = (clip.height, clip.width) if pad else (clip.height // side * side, clip.width // side * side)
        metadata = {
            "format": FORMAT,
            "library_version": __version__,
            "model": self.codec.name,
            "revision": self.codec.files.revision or "",
            "weights_sha256": self.codec.weights_sha256,
            "latent_logsnr": str(self.autoencoder.config.latent_logsnr),
            "original_width": str(clip.width),
            "original_height": str(clip.height),
            "width": str(width),
            "height": str(height),
            "num_frames": str(clip.num_frames),
            "fps": repr(clip.fps),
        }
        with whole_file(job.target) as path:
            path.write_bytes(save({"latent": torch.cat(latents, dim=1).contiguous()}, metadata))

    @property
    def _ratio(self) -> int:
        return int(self.autoencoder.temporal_compression_ratio)

    @torch.inference_mode()
    def decode_file(self, job: FileTask, seed: int, steps: int | None, mode: bool) -> None:
        """Latent file → MP4."""
        latent, metadata = read_latent(job.source)
        width, height = self.codec.check_latent(job.source, latent[:, 0], metadata)
        num_frames, fps = int(metadata["num_frames"]), float(metadata["fps"])
        self.codec.set_tiling(*(side * self.codec.ratio for side in latent.shape[-2:]))
        pieces = iter(torch.split(latent[None].to(self.autoencoder.device), 1, dim=2))
        with VideoWriter(job.target, fps) as writer:
            for frame in shown(self.pictures(pieces, num_frames, seed, steps, mode), num_frames, 1, "decoding"):
                writer.write(frame[:height, :width])

    @torch.inference_mode()
    def reconstruct_file(
        self,
        job: FileTask,
        pad: bool,
        prior: UnifiedLatentsTransformer | None,
        seed: int,
        steps: int | None,
        mode: bool,
        fps: float | None,
        audio: bool,
    ) -> VideoReconstruction:
        """Video → MP4 of original and reconstruction, side by side, and its figures."""
        clip = VideoInput.of(job.source, fps)
        bits = _Bits(prior, self.autoencoder.config.latent_logsnr)
        latents = map(bits.counted, self.latents(clip, pad))
        again = self.pictures(latents, clip.num_frames, seed, steps, mode)
        errors, changes = [], _Changes()
        start = time.perf_counter()
        with VideoWriter(job.target, clip.fps, job.source if audio else None) as writer:
            pairs = zip(clip.frames(), again, strict=True)
            for original, frame in shown(pairs, clip.num_frames, 1, "reconstructing"):
                height, width = (min(a, b) for a, b in zip(original.shape[:2], frame.shape[:2], strict=True))
                left, right = _centred(original, height, width), frame[:height, :width]
                errors.append(float(np.square(left.astype(np.float32) - right).mean()) / 255**2)
                changes.add(left, right)
                writer.write(np.concatenate([left, right], axis=1))
        seconds = time.perf_counter() - start
        psnrs = [-10 * float(np.log10(max(error, 1e-10))) for error in errors]
        return VideoReconstruction(
            job.name,
            width,
            height,
            len(errors),
            clip.fps,
            float(np.mean(psnrs)),
            -10 * float(np.log10(max(float(np.mean(errors)), 1e-10))),
            [round(psnr, 3) for psnr in psnrs],
            changes.flicker,
            changes.of_source,
            None if prior is None else bits.total / (len(errors) * height * width),
            len(errors) / seconds,
            str(job.target),
        )


class _Bits:
    """The prior's bound, in pieces of the latents, whose attention grows with their square."""

    def __init__(self, prior: UnifiedLatentsTransformer | None, latent_logsnr: float) -> None:
        self.prior, self.total = prior, 0.0
        self._schedule = LogSNRSchedule(latent_logsnr, -10.0, "linear")
        self._generator = torch.Generator().manual_seed(0)

    def counted(self, z: Tensor) -> Tensor:
        """z_clean (1, c, t, h, w) as it came."""
        if self.prior is not None:
            pieces = [z]
            for dimension, size in ((2, BITS_FRAMES), (3, BITS_SIDE), (4, BITS_SIDE)):
                pieces = [part for piece in pieces for part in torch.split(piece, size, dim=dimension)]
            for piece in pieces:
                bits = latent_bits(piece, self.prior, self._schedule, BITS_LEVELS, self._generator)
                self.total += float(bits.sum())
        return z


class _Changes:
    """From frame to frame, of two videos."""

    def __init__(self) -> None:
        self._before: tuple[Any, Any] | None = None
        self._flicker: list[float] = []
        self._source: list[float] = []

    def add(self, original: Frame, again: Frame) -> None:
        """The next pair."""
        now = original.astype(np.float32) / 255, again.astype(np.float32) / 255
        if self._before is not None:
            moved, moved_again = now[0] - self._before[0], now[1] - self._before[1]
            self._flicker.append(float(np.abs(moved - moved_again).mean()))
            self._source.append(float(np.abs(moved).mean()))
        self._before = now

    @property
    def flicker(self) -> float:
        return float(np.mean(self._flicker)) if self._flicker else 0.0

    @property
    def of_source(self) -> float:
        return float(np.mean(self._source)) if self._source else 0.0


def is_clip(path: Path) -> bool:
    """Whether a latent file holds a video's latents."""
    return path.is_file() and "num_frames" in read_latent(path)[1]


def shown(items: Iterator[Any], total: int, each: int, what: str) -> Iterator[Any]:
    """Items with a bar of frames and frames per second, on terminals."""
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total, rate="")
        for item in items:
            count = item.shape[2] * each if each > 1 else 1
            speed = bar.tasks[0].speed
            bar.update(task, advance=count, rate=f"{speed:.1f} frames/s" if speed else "")
            yield item


def _fitted(frame: Frame, height: int, width: int) -> Frame:
    """Padded with its last row and column, or cut around its centre."""
    missing = max(0, height - frame.shape[0]), max(0, width - frame.shape[1])
    padded = np.pad(frame, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge") if any(missing) else frame
    return _centred(padded, height, width)


def _centred(frame: Frame, height: int, width: int) -> Frame:
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    return np.ascontiguousarray(frame[top : top + height, left : left + width])
