"""Random numbers as pure functions of a seed and a name, so that they are the same on any number of processes.

A stream is one use of randomness under a seed. Streams are named here and nowhere else, so that no two uses share one
by accident. Their numbers are part of every result: never change one.
"""

from __future__ import annotations

import enum
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


class Stream(enum.IntEnum):
    """Streams under the seed of a training run."""

    CROP = 0  # place, scale and mirroring of a draw's crop
    EPOCH_ORDER = 1  # the order in which an epoch goes through the samples
    NOISE = 2  # ε of a draw
    TIMES = 3  # noise levels of a step
    DROPOUT = 4
    LABEL_DROPOUT = 5
    CONTEXT_DROPOUT = 6
    CLIP_KIND = 7  # whether a step has clips or single images
    CLIP = 8  # which part of which video, or which pan
    DISTILLATION_STARTS = 12  # the levels at which the student of a distillation starts
    DISTILLATION_LEVELS = 13  # the levels at which its samples are judged
    TEXT_ENCODER = 14  # first weights of a text encoder
    TOKEN_DROPOUT = 15  # which tokens of a caption are unknown
    HELD_OUT = 20  # which samples of a latent data set are held out


class EvaluationStream(enum.IntEnum):
    """Streams under the seed of an evaluation."""

    GENERATION = 0
    RECONSTRUCTION = 1
    BITS = 2
    CHOICE = 3  # which images of a data set are measured
    CROP = 4  # places of crops
    SPLIT = 5  # halves of real images whose distance is the floor
    LATENT = 6  # noise of z_0
    BOOTSTRAP = 7  # groups of a resample


def numpy_generator(seed: int, stream: enum.IntEnum, *keys: int) -> np.random.Generator:
    """NumPy's generator of a stream; `keys` number its parts, such as draws or steps."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(stream), *keys)))


def derived_seed(seed: int, stream: enum.IntEnum, *keys: int) -> int:
    """A 63-bit seed for `torch.Generator`; arguments as in `numpy_generator`."""
    return _torch_seed(np.random.SeedSequence(seed, spawn_key=(int(stream), *keys)))


def torch_generator(seed: int, stream: enum.IntEnum, *keys: int) -> torch.Generator:
    """torch's generator of a stream, on the CPU; arguments as in `numpy_generator`."""
    import torch

    return torch.Generator().manual_seed(derived_seed(seed, stream, *keys))


def mixed_seed(*words: int) -> int:
    """A 63-bit seed for `torch.Generator` out of several non-negative numbers, in this order."""
    return _torch_seed(np.random.SeedSequence(words))


def words_of(text: str) -> list[int]:
    """A text as eight 32-bit numbers for `mixed_seed`: its sha256."""
    words: Any = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32)
    return [int(word) for word in words]


def _torch_seed(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1
