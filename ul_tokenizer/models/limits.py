"""Limits of configurations, which are untrusted, and checks of pixels and latents."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

MAX_SIZE = 1 << 16  # greatest width or number of channels in a config
MAX_ENTRIES = 16  # stages
MAX_LAYERS = 512
MAX_WEIGHTS = 1 << 35  # of a model, as estimated by `check_weights`
MAX_FP32 = torch.finfo(torch.float32).max


def check_bounds(**sizes: int) -> None:
    """Checks that all arguments are positive integers of at most MAX_SIZE.

    Arguments whose name ends in `layers` may be zero and are at most MAX_LAYERS.

    Raises:
        ValueError: an argument is not; the sentence names the first one.
    """
    for name, value in sizes.items():
        low, high = _range(name)
        if not _is_integer(value, low, high):
            raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}.")


def check_stage_bounds(**stages: Sequence[int]) -> None:
    """Like `check_bounds`, for lists or tuples of one integer per stage.

    Raises:
        ValueError: as `check_bounds`, or a list that is empty or has more than MAX_ENTRIES entries.
    """
    for name, values in stages.items():
        low, high = _range(name)
        legal = isinstance(values, list | tuple) and all(_is_integer(value, low, high) for value in values)
        if not legal or not 0 < len(values) <= MAX_ENTRIES:
            raise ValueError(
                f"{name} must be a list of integers from {low} to {high}, at most {MAX_ENTRIES}, got {values!r}."
            )


def check_numbers(**numbers: float) -> None:
    """Checks that all arguments are finite numbers within the range of fp32.

    Raises:
        ValueError: an argument is not; the sentence names the first one.
    """
    for name, value in numbers.items():
        if not is_number(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}.")


def check_dropout(dropout: float) -> None:
    """Checks a dropout probability.

    Raises:
        ValueError: it is not a number of at least 0 and below 1.
    """
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a number of at least 0 and below 1, got {dropout!r}.")


def check_train_tokens(num_tokens: int | None, stages: int = 1) -> None:
    """Raises a ValueError unless `num_tokens` is None or leaves two tokens, of which there is a logarithm, to a stage.

    Every one of `stages` after the first has a quarter of the tokens.
    """
    least = 2 * 4 ** (stages - 1)
    if num_tokens is not None and not _is_integer(num_tokens, least, MAX_WEIGHTS):
        raise ValueError(f"attention_train_tokens must be None or an integer of at least {least}, got {num_tokens!r}.")


def is_number(value: object) -> bool:
    """Whether `value` is a finite real number within the range of fp32."""
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) <= MAX_FP32  # type: ignore[operator]


def _is_integer(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _range(name: str) -> tuple[int, int]:
    return (0, MAX_LAYERS) if name.endswith(("layers", "layers_per_block")) else (1, MAX_SIZE)


def check_weights(widths: Sequence[int], layers: Sequence[int]) -> None:
    """Checks that sizes, each of them legal, do not together make a model of too many weights.

    The estimate counts every block as two 3×3 convolutions of the greatest width. It is too high by a factor below 10.

    Raises:
        ValueError: the estimate exceeds MAX_WEIGHTS.
    """
    estimate = 18 * max(widths) ** 2 * (sum(layers) + len(layers))
    if estimate > MAX_WEIGHTS:
        raise ValueError(
            f"the config's widths and layers would make about {estimate:.0e} weights, more than the limit "
            f"of {MAX_WEIGHTS:.0e}, got a width of {max(widths)} and {sum(layers)} layers."
        )


def check_latents(name: str, latents: Tensor, channels: int) -> None:
    """Checks that latents are non-empty floats (B, channels, [t,] h, w); `name` is the argument's.

    Raises:
        ValueError: another rank, number of channels or dtype, or no element.
    """
    shape = tuple(latents.shape)
    if latents.ndim not in (4, 5) or shape[1] != channels:
        raise ValueError(f"{name} must be (B, {channels}, h, w) or (B, {channels}, t, h, w), got {shape}.")
    if not latents.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {latents.dtype}.")
    if 0 in shape:
        raise ValueError(f"{name} must hold at least one sample, frame and position, got {shape}.")


def check_pixels(name: str, pixels: Tensor, channels: int, multiple: int) -> None:
    """Checks that pixels are non-empty floats (B, channels, [T,] H, W), with H and W multiples of `multiple`.

    Raises:
        ValueError: another rank, number of channels, dtype or size, or no element; the sentence calls them `name`.
    """
    shape = tuple(pixels.shape)
    if pixels.ndim not in (4, 5) or shape[1] != channels:
        raise ValueError(f"{name} must be (B, {channels}, H, W) or (B, {channels}, T, H, W), got {shape}.")
    if not pixels.is_floating_point():
        raise ValueError(f"{name} must be floating point in [−1, 1], got {pixels.dtype}.")
    if any(size % multiple or not size for size in shape[-2:]):
        raise ValueError(f"height and width must be multiples of {multiple}, got {shape[-2]}×{shape[-1]}.")
    if 0 in shape:
        raise ValueError(f"{name} must hold at least one sample and frame, got {shape}.")
