"""Clips of any length: the encoder takes them in parts, the decoder in overlapping windows.

Clips are padded in front, so only the first part of a clip and the first window have padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

DecodeWindow = Callable[[Tensor, int, int], Tensor]  # z_0 (B, c, t, h, w), first frame, frames → (B, C, T, H, W)


def part_lengths(num_frames: int, longest: int) -> list[int]:
    """Frames of each part of a clip; all parts but the first have `longest` frames.

    With a `longest` that the temporal ratio divides, all padding is in the first part.
    """
    later = (num_frames - 1) // longest
    return [num_frames - later * longest, *[longest] * later]


def regrouped(pieces: Iterable[Tensor], lengths: Iterator[int]) -> Iterator[Tensor]:
    """Pieces (B, C, T, H, W) of any T as pieces of the given lengths; the last one may be shorter."""
    waiting: list[Tensor] = []
    wanted = next(lengths)
    for piece in pieces:
        while piece.shape[2]:
            lacking = wanted - sum(part.shape[2] for part in waiting)
            waiting.append(piece[:, :, :lacking])
            piece = piece[:, :, lacking:]
            if waiting[-1].shape[2] == lacking:
                yield torch.cat(waiting, dim=2)
                waiting, wanted = [], next(lengths)
    if waiting:
        yield torch.cat(waiting, dim=2)


def parts_to_encode(pieces: Iterable[Tensor], num_frames: int | None, longest: int, ratio: int) -> Iterator[Tensor]:
    """The parts of a clip that arrives in pieces.

    Args:
        pieces: (B, C, T, H, W) of any T.
        num_frames: frames of the whole clip; None if it is unknown and a multiple of `ratio`.
        longest: frames of a part, a multiple of `ratio`.
        ratio: frames per latent frame.

    Yields:
        (B, C, T, H, W), with the numbers of frames that `part_lengths` gives.

    Raises:
        ValueError: the clip has another number of frames.
    """
    first = [] if num_frames is None else part_lengths(num_frames, longest)
    seen = 0
    for part in regrouped(pieces, itertools.chain(first, itertools.repeat(longest))):
        if (seen or num_frames is None) and part.shape[2] % ratio:
            raise ValueError(f"num_frames must be the clip's number of frames, got {num_frames}, which does not match.")
        seen += part.shape[2]
        yield part
    if num_frames not in (None, seen):
        raise ValueError(f"num_frames must be the clip's number of frames, got {num_frames} for {seen}.")


def decode_in_windows(
    latents: Iterable[Tensor], decode: DecodeWindow, size: int, overlap: int, ratio: int, padding: int
) -> Iterator[Tensor]:
    """Decodes a latent clip window by window and blends the frames that two windows share.

    Args:
        latents: z_0 in pieces (B, c, t, h, w) of any t.
        decode: decodes a window. It takes its latents, its first frame's number and its number of frames.
        size: latent frames of a window.
        overlap: latent frames that a window shares with the one before; below half of `size`.
        ratio: frames per latent frame.
        padding: frames in front that the encoder added; they are not decoded.

    Yields:
        (B, C, T', H, W), as soon as these frames are final.
    """
    first_frame = 0
    shared: Tensor | None = None  # frames that the next window decodes again
    for window, is_last in _windows(latents, size, overlap):
        num_frames = window.shape[2] * ratio - (padding if shared is None else 0)
        frames = decode(window, first_frame, num_frames)
        if shared is not None:
            frames = _blended(shared, frames)
        final = num_frames if is_last else num_frames - overlap * ratio
        yield frames[:, :, :final]
        shared = frames[:, :, final:]
        first_frame += final


def _windows(latents: Iterable[Tensor], size: int, overlap: int) -> Iterator[tuple[Tensor, bool]]:
    """Windows (B, c, t, h, w) of a latent clip that comes in pieces, and whether each is the last one."""
    window: list[Tensor] = []  # one latent frame each
    for piece in latents:
        for frame in piece.split(1, dim=2):
            if len(window) == size:  # this frame shows that the window is not the last one
                yield torch.cat(window, dim=2), False
                window = window[size - overlap :]
            window.append(frame)
    if window:
        yield torch.cat(window, dim=2), True


def _blended(before: Tensor, after: Tensor) -> Tensor:
    """`after`, with a gradual transition from `before` over its first frames."""
    count = before.shape[2]
    if not count:
        return after
    weight = (torch.arange(1, count + 1, device=after.device, dtype=after.dtype) / (count + 1))[:, None, None]
    return torch.cat([torch.lerp(before, after[:, :, :count], weight), after[:, :, count:]], dim=2)
