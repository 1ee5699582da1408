"""A whole video, piece by piece: its noisy latents, a bound on their bits, and its frames compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ul_tokenizer.diffusion.schedule import LogSNRSchedule, alpha_sigma
from ul_tokenizer.media.frame_times import Frame
from ul_tokenizer.models.rate import latent_bits
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

BITS_SIDE, BITS_FRAMES, BITS_LEVELS = 16, 4, 4  # latents a side and frames of a piece, and noise levels, of the bound
LEAST_MSE = 1e-10  # an exact frame counts as 100 dB, so that the mean over frames is finite


def noisy_latents(latents: Iterable[Tensor], logsnr: float, generator: torch.Generator | None) -> Iterator[Tensor]:
    """z_0 of z_clean, piece by piece.

    Args:
        latents: pieces (1, c, t', h, w) of z_clean.
        logsnr: λ_z(0).
        generator: of the noise; None leaves it out.
    """
    alpha, sigma = alpha_sigma(torch.tensor(logsnr))
    for z in latents:
        noise = torch.zeros_like(z) if generator is None else torch.randn(z.shape, generator=generator).to(z)
        yield alpha.to(z) * z + sigma.to(z) * noise


def video_bits(latents: Iterable[Tensor], prior: UnifiedLatentsTransformer, logsnr: float) -> float:
    """Bound on the bits in a video's latents, a sum over pieces, as attention grows with their square.

    Args:
        latents: pieces (1, c, t', h, w) of z_clean.
        prior: the autoencoder's prior.
        logsnr: λ_z(0).
    """
    schedule = LogSNRSchedule(logsnr, -10.0, "linear")
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for z in latents:
        for piece in _pieces(z.to(prior.device)):
            total += float(latent_bits(piece, prior, schedule, BITS_LEVELS, generator).sum())
    return total


def _pieces(z: Tensor) -> Sequence[Tensor]:
    """Pieces of (1, c, t, h, w) that are small enough for the prior's attention."""
    pieces = [z]
    for dimension, size in ((2, BITS_FRAMES), (3, BITS_SIDE), (4, BITS_SIDE)):
        pieces = [part for piece in pieces for part in torch.split(piece, size, dim=dimension)]
    return pieces


class FrameFigures(NamedTuple):
    """How close a reconstructed video is to its source."""

    mean_psnr: float  # dB, mean over frames
    psnr_of_mean_mse: float  # dB
    psnr_per_frame: list[float]
    flicker: float  # mean absolute difference of the changes from frame to frame, as a part of the range
    source_change: float  # mean absolute change from frame to frame of the source, as a part of the range


@dataclass
class ComparedFrames:
    """Errors of a reconstruction, frame by frame, and of its changes from frame to frame."""

    size: tuple[int, int] = (0, 0)  # height, width
    errors: list[float] = field(default_factory=list)  # MSE of each frame, as a part of the squared range
    flicker: list[float] = field(default_factory=list)
    source_change: list[float] = field(default_factory=list)
    before: Any = None  # the frames before these, as floats

    def add(self, original: Frame, again: Frame) -> None:
        """Takes the next frame and its reconstruction, both (H, W, 3), uint8."""
        self.size = original.shape[0], original.shape[1]
        self.errors.append(float(np.square(original.astype(np.float32) - again).mean()) / 255**2)
        now = original.astype(np.float32) / 255, again.astype(np.float32) / 255
        if self.before is not None:
            moved, moved_again = now[0] - self.before[0], now[1] - self.before[1]
            self.flicker.append(float(np.abs(moved - moved_again).mean()))
            self.source_change.append(float(np.abs(moved).mean()))
        self.before = now

    def figures(self) -> FrameFigures:
        """The figures of all frames that were added."""
        psnrs = [psnr_of(error) for error in self.errors]
        return FrameFigures(
            float(np.mean(psnrs)),
            psnr_of(float(np.mean(self.errors))),
            [round(psnr, 3) for psnr in psnrs],
            float(np.mean(self.flicker or [0.0])),
            float(np.mean(self.source_change or [0.0])),
        )


def psnr_of(relative_mse: float) -> float:
    """PSNR in dB of a mean squared error as a part of the squared range, at most 100."""
    return -10 * float(np.log10(max(relative_mse, LEAST_MSE)))
