"""Time in the networks: mixing of neighbouring frames, and several frames as one.

Frames are folded into the batch, (B·T, C, H, W) in channels-last memory. A clip is padded in front by repeating its
first frame, so that T frames become ⌈T / R⌉ latent frames. Convolutions in time pad in the same way. The features of
padded frames would equal those of the first frame, so they are not computed, and an image costs a single frame.

At initialisation, these layers do not change the result for an image. They must not ignore motion, however: if both the
encoder's weights for differences between frames and the decoder's weights that tell frames apart were zero, neither
would have a gradient, since each is a factor of the other's. Training would rest on a saddle where clips are coded as
stills. So both start at random.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ul_tokenizer.models.layers import ChannelNorm, Fp32Linear, Linear

KERNEL = 3  # frames in the window of a convolution in time
DIFFERENCE_GAIN = 0.5  # initial weight of differences between frames in the encoder; that of their mean is 1
UNFOLD_GAIN = 0.2  # initial scale of the weights that tell frames apart in the decoder


# Compiled networks take clips of any length T if each number of frames is always the same formula of T: the compiler
# knows that (T + p)/2 is (T + p)/2, but not that it is ⌈T/2⌉.


def frames_of_padding(num_frames: int, ratio: int) -> int:
    """p, so that `ratio` divides T + p."""
    return -num_frames % ratio


def frames_of_latents(num_frames: int, ratio: int) -> int:
    """⌈T / R⌉."""
    return (num_frames + frames_of_padding(num_frames, ratio)) // ratio


def to_clips(x_NxCxHxW: Tensor, num_frames: int) -> Tensor:
    """Frames (B·T, C, H, W) → (B, T, H, W, C), free of copies in channels-last memory."""
    return x_NxCxHxW.permute(0, 2, 3, 1).unflatten(0, (-1, num_frames))


def from_clips(x_BxTxHxWxC: Tensor) -> Tensor:
    """(B, T, H, W, C) → frames (B·T, C, H, W) in channels-last memory."""
    return x_BxTxHxWxC.flatten(0, 1).permute(0, 3, 1, 2)


def repeat_first(x_BxTxHxWxC: Tensor, count: int) -> Tensor:
    """Repeats the first frame of a clip `count` more times in front: (B, T, H, W, C) → (B, count + T, H, W, C)."""
    return torch.cat([x_BxTxHxWxC[:, :1].expand(-1, count, -1, -1, -1), x_BxTxHxWxC], dim=1) if count else x_BxTxHxWxC


class _TemporalConv(nn.Module):
    """The layers of x + conv(silu(norm(x))) over three frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_time = ChannelNorm(channels)
        self.linear = Linear(KERNEL * channels, channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def _features(self, x: Tensor, num_frames: int) -> Tensor:
        """(B·T, C, H, W) → (B, T, H, W, C)."""
        return to_clips(F.silu(self.norm_time(x)), num_frames)

    def _mixed(self, padded: Tensor, num_frames: int) -> Tensor:
        """T + 2 frames (B, T + 2, H, W, C) → the sum of the convolution, (B·T, C, H, W)."""
        neighbours = torch.cat([padded[:, i : i + num_frames] for i in range(KERNEL)], dim=-1)
        return from_clips(self.linear(neighbours))


class TemporalConv(_TemporalConv):
    """x + conv(silu(norm(x))) over three frames: each frame and one on either side."""

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """(B·T, C, H, W) → (B·T, C, H, W)."""
        h = self._features(x, num_frames)
        return x + self._mixed(torch.cat([h[:, :1], h, h[:, -1:]], dim=1), num_frames)


class CausalTemporalConv(_TemporalConv):
    """x + conv(silu(norm(x))) over three frames: each frame and the two before it."""

    def forward(self, x: Tensor, num_frames: int, history: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mixes frames.

        Args:
            x: (B·T, C, H, W).
            num_frames: T.
            history: the history returned for the part of the clip before this one; None for the first part.

        Returns:
            (B·T, C, H, W), and the history for the part after this one.
        """
        h = self._features(x, num_frames)
        h = repeat_first(h, KERNEL - 1) if history is None else torch.cat([history, h], dim=1)
        # A copy, since a view would keep all frames in memory until the next part.
        return x + self._mixed(h, num_frames), h[:, -(KERNEL - 1) :].clone()


class NoTemporalConv(nn.Module):
    """Stands for a `TemporalConv` in networks without time: returns its input."""

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """(B·T, C, H, W), unchanged."""
        return x


def halved(num_frames: int, padding: int) -> int:
    """Number of frames that `TemporalDownsample` returns."""
    return 1 if num_frames == 1 else (num_frames + padding) // 2


class TemporalDownsample(nn.Module):
    """Two frames → one, by a linear layer on their mean and difference; it starts as the mean plus some difference."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = Linear(2 * channels, channels)
        with torch.no_grad():
            difference = DIFFERENCE_GAIN * channels**-0.5 * torch.randn(channels, channels)
            self.linear.weight.copy_(torch.cat([torch.eye(channels), difference], dim=1))
            self.linear.bias.zero_()

    def forward(self, x: Tensor, num_frames: int, padding: int = 0) -> Tensor:
        """(B·T, C, H, W) → (B·(T + padding)/2, C, H, W); a single frame, whose padding equals it, stays one frame."""
        clips = to_clips(x, num_frames)
        clips = clips.expand(-1, 2, -1, -1, -1) if num_frames == 1 else repeat_first(clips, padding)
        before, after = clips.unflatten(1, (halved(num_frames, padding), 2)).unbind(2)
        return from_clips(self.linear(torch.cat([(before + after) / 2, after - before], dim=-1)))


class TemporalFold(nn.Module):
    """R frames → one and back; starts as the mean, and as inexact copies except for the last frame."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.fold_in = Linear(ratio * channels, channels)
        self.fold_out = Linear(channels, ratio * channels)
        with torch.no_grad():
            self.fold_in.weight.copy_(torch.eye(channels).repeat(1, ratio) / ratio)
            self.fold_in.bias.zero_()
            apart = torch.randn(ratio, channels, channels) * UNFOLD_GAIN * channels**-0.5
            apart[-1] = 0  # an image is the last frame of its latent frame
            self.fold_out.weight.copy_((torch.eye(channels) + apart).flatten(0, 1))
            self.fold_out.bias.zero_()

    def fold(self, x: Tensor, num_frames: int) -> Tensor:
        """(B·T, C, H, W) → (B·⌈T/R⌉, C, H, W)."""
        clips = repeat_first(to_clips(x, num_frames), frames_of_padding(num_frames, self.ratio))
        groups = clips.unflatten(1, (frames_of_latents(num_frames, self.ratio), self.ratio))
        return from_clips(self.fold_in(groups.permute(0, 1, 3, 4, 2, 5).flatten(-2)))

    def unfold(self, x: Tensor, num_frames: int) -> Tensor:
        """(B·⌈T/R⌉, C, H, W) → (B·T, C, H, W), without the padded frames in front."""
        clips = to_clips(x, frames_of_latents(num_frames, self.ratio))
        frames = self.fold_out(clips).unflatten(-1, (self.ratio, -1)).permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
        return from_clips(frames[:, frames_of_padding(num_frames, self.ratio) :])


class LatentFold(Fp32Linear):
    """The latents of R frames → one; starts as the last frame's latent and the others' differences from it."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__(channels, channels)
        self.ratio = ratio
        _start_as_identity(self)

    def forward(self, z: Tensor) -> Tensor:
        """Clips (B, T, h, w, c/R) → (B, ⌈T/R⌉, h, w, c)."""
        num_frames = z.shape[1]
        padded = repeat_first(z, frames_of_padding(num_frames, self.ratio))
        grouped = padded.unflatten(1, (frames_of_latents(num_frames, self.ratio), self.ratio))
        last = grouped[:, :, -1:]
        anchored = torch.cat([last, grouped[:, :, :-1] - last], dim=2)
        return super().forward(anchored.permute(0, 1, 3, 4, 2, 5).flatten(-2))


class LatentUnfold(Linear):
    """One latent → those of R frames; starts as the inverse of a new `LatentFold`."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__(channels, channels)
        self.ratio = ratio
        _start_as_identity(self)

    def forward(self, z: Tensor) -> Tensor:
        """(B·t, c, h, w) → (B·t·R, c/R, h, w)."""
        anchored = super().forward(z.permute(0, 2, 3, 1)).unflatten(-1, (self.ratio, -1))
        last = anchored[..., :1, :]
        frames = torch.cat([anchored[..., 1:, :] + last, last], dim=-2)  # (N, h, w, R, c/R)
        return frames.permute(0, 3, 4, 1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _start_as_identity(linear: nn.Linear) -> None:
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
