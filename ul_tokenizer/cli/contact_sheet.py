"""Pictures of a latent data set's samples on one sheet: the work of `ul-tokenizer latents decode`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ul_tokenizer.latents.dataset import LatentDataset
from ul_tokenizer.latents.manifest import check_header
from ul_tokenizer.media.pixels import to_image
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.repository import load_autoencoder, locate

GAP = 2  # white pixels between pictures


def load_maker(dataset: LatentDataset, name: str | None) -> UnifiedLatentsAutoencoder:
    """The autoencoder that made a data set.

    Args:
        dataset: the data set, whose header says which one it was.
        name: where it is now; None for what the header calls it.

    Raises:
        ValueError: nothing there, or other weights.
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


@torch.inference_mode()
def decode(
    dataset: LatentDataset,
    indices: Sequence[int],
    autoencoder: UnifiedLatentsAutoencoder,
    steps: int | None,
    seed: int,
) -> list[Image.Image]:
    """One picture per sample, of whatever sizes; a sample's noise follows from the seed and its id.

    Raises:
        ValueError: latents of clips, which no sheet shows.
    """
    pictures = []
    for index in indices:
        z_0 = dataset.sample_z0(index, seed)
        if z_0.ndim != 3:
            raise ValueError(f"latents must be (c, h, w) for a sheet, got {tuple(z_0.shape)} for {dataset.id(index)}.")
        generator = torch.Generator().manual_seed(seed)
        sample = autoencoder.decode(z_0[None], generator=generator, num_inference_steps=steps).sample
        pictures.append(to_image(sample[0].float().clamp(-1, 1)))
    return pictures


def arrange(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in rows, each in the middle of a cell of the largest width and height."""
    columns = math.ceil(math.sqrt(len(pictures)))
    width, height = (max(picture.size[axis] for picture in pictures) + GAP for axis in (0, 1))
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for number, picture in enumerate(pictures):
        left, top = number % columns * width, number // columns * height
        sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
    return sheet
