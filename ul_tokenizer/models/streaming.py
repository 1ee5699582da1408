"""Clips of any length: in parts with what the encoder remembers, and in overlapping windows of the decoder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from diffusers.models.modeling_utils import get_parameter_dtype
from torch import Tensor

from ul_tokenizer.models.encoder import EncoderCache
from ul_tokenizer.models.latent_distribution import LatentDistribution
from ul_tokenizer.models.limits import check_latents
from ul_tokenizer.schedulers.log_snr import Generators

TileCaches = dict[tuple[int, int], EncoderCache]  # of a clip in parts, by the tile's first row and column
DecodeWindow = Callable[[Tensor, int, int], Tensor]  # z_0 (B, c, t, h, w), first frame, frames → (B, C, T, H, W)


def part_lengths(num_frames: int, longest: int) -> list[int]:
    """Frames of each part of a clip; the first one takes what doesn't fill the others.

    So all later parts have a multiple of the temporal ratio, as `longest` is one, and the padding is in the first.
    """
    later = (num_frames - 1) // longest
    return [num_frames - later * longest, *[longest] * later]


def regrouped(pieces: Iterable[Tensor], lengths: Iterator[int]) -> Iterator[Tensor]:
    """Pieces (B, C, T, H, W) of any T as pieces of these lengths; the last may be shorter."""
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


def decoded_in_windows(
    latents: Iterable[Tensor], decode: DecodeWindow, size: int, overlap: int, ratio: int, padding: int
) -> Iterator[Tensor]:
    """Frames of a latent clip, window by window, of which each begins with the end of the one before.

    Where two windows show the same frames, they are blended from one into the other.

    Args:
        latents: z_0 in pieces (B, c, t, h, w) of any t.
        decode: a window's latents to its frames.
        size: latent frames of a window.
        overlap: of which so many were in the window before; below half of `size`.
        ratio: frames per latent frame.
        padding: frames that the clip was padded with in front; they are not given.

    Yields:
        (B, C, T', H, W), as soon as they are final.
    """
    window: list[Tensor] = []  # latent frames, one each
    tail: Tensor | None = None  # frames that the next window shows, too
    first_frame = 0

    def run(is_last: bool) -> Tensor:
        nonlocal window, tail, first_frame
        num_frames = len(window) * ratio - (padding if tail is None else 0)
        frames = decode(torch.cat(window, dim=2), first_frame, num_frames)
        if tail is not None:
            frames = _blended(tail, frames)
        kept = 0 if is_last else overlap * ratio
        first_frame += num_frames - kept
        window, tail = window[len(window) - overlap :] if overlap else [], frames[:, :, num_frames - kept :]
        return frames[:, :, : num_frames - kept]

    for piece in latents:
        for frame in piece.split(1, dim=2):
            if len(window) == size:  # and there is more
                yield run(is_last=False)
            window.append(frame)
    if window:
        yield run(is_last=True)


def _blended(before: Tensor, after: Tensor) -> Tensor:
    """`after`, whose first frames come gradually out of `before`."""
    count = before.shape[2]
    if not count:
        return after
    weight = (torch.arange(1, count + 1, device=after.device, dtype=after.dtype) / (count + 1))[:, None, None]
    return torch.cat([torch.lerp(before, after[:, :, :count], weight), after[:, :, count:]], dim=2)


# ---------------------------------------------------------------- for a network


class StreamingMixin:
    """`encode_stream` and `decode_stream` of an autoencoder, whose parts and windows they share."""

    config: Any
    encoder: Any
    temporal_compression_ratio: int
    encode_chunk_frames: int
    _check_pixels: Callable[[Tensor], None]
    _encode_part: Callable[[Tensor, TileCaches | None], Tensor]
    _steps: Callable[[int | None], int]
    _noise_canvas: Callable[[Tensor, int, Generators, Tensor | None], Tensor]
    _decode_window: Callable[[Tensor, Tensor, int], Tensor]
    _windows: Callable[[Iterable[Tensor], DecodeWindow, int], Iterator[Tensor]]

    @torch.no_grad()
    def encode_stream(
        self,
        frames: Iterable[Tensor],
        num_frames: int | None = None,
        sample_posterior: bool = False,
        generator: Generators = None,
        clean: bool = False,
    ) -> Iterator[Tensor]:
        """Encodes a clip of any length in constant memory.

        Args:
            frames: the clip in pieces, (B, C, T', H, W) each as `encode`'s `x`, of any T'.
            num_frames: of the whole clip; needed unless the temporal ratio divides it, since the padding is in front.
            sample_posterior: give z_0 with its noise, rather than its mean.
            generator: makes that noise.
            clean: give z_clean instead, the encoder's own output.

        Yields:
            z_0 (B, c, t', h, w) as `decode_stream` takes it; together what `encode` gives for the whole clip.

        Raises:
            ValueError: as `encode`, or a clip that has another number of frames than was said.
        """
        longest, ratio = self.encode_chunk_frames, self.temporal_compression_ratio
        lengths = (
            itertools.repeat(longest)
            if num_frames is None
            else itertools.chain(part_lengths(num_frames, longest), itertools.repeat(longest))
        )
        caches: TileCaches = {}
        seen = 0
        for part in regrouped(frames, lengths):
            self._check_pixels(part)
            if (seen and part.shape[2] % ratio) or (num_frames is None and part.shape[2] % ratio):
                raise ValueError(f"num_frames must be the clip's number of frames, got {num_frames} for another one.")
            seen += part.shape[2]
            latent = self._encode_part(part.to(get_parameter_dtype(self.encoder.conv_in)), caches).to(part.dtype)
            if clean:
                yield latent
                continue
            distribution = LatentDistribution(latent, self.config.latent_logsnr)
            yield distribution.sample(generator) if sample_posterior else distribution.mode()
        if num_frames is not None and seen != num_frames:
            raise ValueError(f"num_frames must be the clip's number of frames, got {num_frames} for {seen}.")

    @torch.no_grad()
    def decode_stream(
        self,
        latents: Iterable[Tensor],
        num_frames: int | None = None,
        generator: Generators = None,
        num_inference_steps: int | None = None,
    ) -> Iterator[Tensor]:
        """Decodes a clip of any length in constant memory; together what `decode` gives for the whole clip.

        Args:
            latents: z_0 in pieces, (B, c, t', h, w) each, of any t'.
            num_frames: of the whole clip, as it was encoded; R for each latent frame where None.
            generator: as in `decode`.
            num_inference_steps: as in `decode`.

        Yields:
            (B, C, T', H, W), about [−1, 1].
        """
        steps, padding = self._steps(num_inference_steps), -(num_frames or 0) % self.temporal_compression_ratio
        canvas: Tensor | None = None
        dtype = torch.float32

        def decode(window: Tensor, first: int, count: int) -> Tensor:
            nonlocal canvas, dtype
            check_latents("latents", window, self.config.latent_channels)
            if canvas is None:
                canvas, dtype = self._noise_canvas(window, 1, generator, None), window.dtype
            return self._decode_window(window, canvas.expand(-1, -1, count, -1, -1), steps)

        for frames in self._windows(latents, decode, padding):
            yield frames.to(dtype)
