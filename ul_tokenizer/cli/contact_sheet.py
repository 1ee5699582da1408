"""Decoded samples of a latent data set, side by side in a picture or a video: the work of `latents decode`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.files import whole_file
from ul_tokenizer.latents.dataset import LatentDataset
from ul_tokenizer.latents.manifest import check_header
from ul_tokenizer.media.pixels import to_image
from ul_tokenizer.media.videos import VideoWriter
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.repository import load_autoencoder, locate

GAP = 2  # white pixels between pictures
DEFAULT_FPS = 10.0  # of clips without a column "fps"


class DecodedSample(NamedTuple):
    """A decoded sample."""

    id: str
    frames: list[Image.Image]  # one for an image
    fps: float


def load_maker(dataset: LatentDataset, name: str | None) -> UnifiedLatentsAutoencoder:
    """Loads the autoencoder that made a data set.

    Args:
        dataset: the data set.
        name: bundled name, folder or hub id of the autoencoder; None for the name in the data set's header.

    Raises:
        ValueError: there is no such autoencoder, or it has other weights than the one that made the data set.
    """
    header = dataset.header
    name, revision = (name, None) if name is not None else (header.get("autoencoder"), header.get("revision"))
    if name is None:
        raise ValueError("--model must be given: the header names no autoencoder.")
    autoencoder: UnifiedLatentsAutoencoder = load_autoencoder(name, revision=revision).eval()
    weights = locate(name, revision=autoencoder.commit_hash or revision).sha256()
    check_header(header, {"weights_sha256": weights}, f"A data set that {name} decodes")
    return autoencoder


def choose(count: int, num: int, seed: int) -> list[int]:
    """At most `num` numbers below `count`, at random and in order."""
    return sorted(np.random.default_rng(seed).permutation(count)[:num].tolist())


def decode(
    dataset: LatentDataset,
    indices: Sequence[int],
    autoencoder: UnifiedLatentsAutoencoder,
    steps: int | None,
    seed: int,
) -> Iterator[DecodedSample]:
    """Decodes samples one at a time; the noise of a sample depends on the seed and its id only."""
    for index in indices:
        z_0, sample = dataset.sample_z0(index, seed), dataset[index]
        num_frames = sample.get("num_frames") if z_0.ndim == 4 else None
        pixels = _decoded(autoencoder, z_0, steps, seed, num_frames)
        frames = [to_image(frame) for frame in (pixels[None] if pixels.ndim == 3 else pixels.transpose(0, 1))]
        yield DecodedSample(sample["id"], frames, float(sample.get("fps") or DEFAULT_FPS))


@torch.inference_mode()
def _decoded(
    autoencoder: UnifiedLatentsAutoencoder, z_0: Tensor, steps: int | None, seed: int, num_frames: int | None
) -> Tensor:
    """(c, [t,] h, w) → (3, [T,] H, W) in [−1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    decoded = autoencoder.decode(z_0[None], generator=generator, num_inference_steps=steps, num_frames=num_frames)
    sample: Tensor = decoded.sample
    return sample[0].float().clamp(-1, 1)


# ---------------------------------------------------------------- side by side


def write_picture(samples: Sequence[DecodedSample], path: Path) -> None:
    """Writes a PNG: images in rows, clips as their first, middle and last frame."""
    sheet = arrange([_strip(sample.frames) for sample in samples])
    with whole_file(path) as temporary:
        sheet.save(temporary, format="PNG")


def write_video(samples: Sequence[DecodedSample], path: Path) -> None:
    """Writes an MP4 of clips side by side, at the frame rate of the first; shorter clips stay at their last frame."""
    with VideoWriter(path, samples[0].fps) as writer:
        for n in range(max(len(sample.frames) for sample in samples)):
            pictures = [sample.frames[min(n, len(sample.frames) - 1)] for sample in samples]
            writer.write(np.array(arrange(pictures)))


def _strip(frames: Sequence[Image.Image]) -> Image.Image:
    """The first, the middle and the last frame in a row, or the one there is."""
    shown = [frames[n] for n in sorted({0, len(frames) // 2, len(frames) - 1})]
    strip = Image.new("RGB", (sum(frame.width for frame in shown), shown[0].height))
    for position, frame in enumerate(shown):
        strip.paste(frame, (position * frame.width, 0))
    return strip


def arrange(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in rows, each in the middle of a cell of the largest width and height."""
    columns = math.ceil(math.sqrt(len(pictures)))
    width, height = (max(picture.size[axis] for picture in pictures) + GAP for axis in (0, 1))
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for number, picture in enumerate(pictures):
        left, top = number % columns * width, number // columns * height
        sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
    return sheet
