"""Images and clips from a base model: the work of `ul-tokenizer generate`."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.evaluation.grids import comparison_grid
from ul_tokenizer.files import whole_file
from ul_tokenizer.media.pixels import frame_to_float, to_image
from ul_tokenizer.media.videos import VideoWriter, probe, read_frames
from ul_tokenizer.models.repository import class_names
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.pipelines.sampling import SamplingOptions, Wanted, in_batches
from ul_tokenizer.progress import track

DEFAULT_FPS = 10.0  # of clips without a context


@dataclass(frozen=True)
class Conditions:
    """What to generate: every class with every prompt."""

    labels: Sequence[int | None]  # [None] without classes
    prompts: Sequence[str | None] = (None,)

    def images(self, num: int) -> list[Wanted]:
        """`num` images of each class and prompt."""
        pairs = itertools.product(self.labels, enumerate(self.prompts))
        return [Wanted(label, n, prompt, place) for label, (place, prompt) in pairs for n in range(num)]


def prompts_of(texts: Sequence[str], name: str, pipeline: UnifiedLatentsPipeline) -> Sequence[str | None]:
    """The prompts; [None] if there are none.

    Raises:
        ValueError: the model has no text encoder.
    """
    if texts and pipeline.text_encoder is None:
        raise ValueError(f"--prompt can't be used: {name} has no text encoder.")
    return list(texts) or [None]


def labels_of(words: Sequence[str], name: str, revision: str | None, num_classes: int | None) -> list[int | None]:
    """Class labels for the numbers or names in `words`; [None] if there are none.

    Raises:
        ValueError: the model doesn't have such a class.
    """
    if not words:
        return [None]
    names = class_names(name, revision=revision)
    return [_label_of(word, names, name, num_classes) for word in words]


def _label_of(word: str, names: Sequence[str], model: str, num_classes: int | None) -> int:
    if num_classes is None:
        raise ValueError(f"--class can't be used: {model} has no classes.")
    if word.isdecimal() and int(word) < num_classes:
        return int(word)
    matches = [i for i, known in enumerate(names) if word in (known, known.partition("-")[2])]
    if not matches:
        known = f", or one of {', '.join(names)}" if names else ""
        raise ValueError(f"--class must be a number from 0 to {num_classes - 1}{known}, got {word}.")
    return matches[0]


def generate(
    pipeline: UnifiedLatentsPipeline, conditions: Conditions, num: int, sampling: SamplingOptions, output: Path
) -> list[Path]:
    """Generates `num` images of each class and prompt: one grid if `output` is a .png file, else files in a folder.

    Returns:
        the files that were written.
    """
    wanted = conditions.images(num)
    start = time.perf_counter()
    images = torch.cat(list(_tracked(in_batches(pipeline, wanted, sampling), wanted, sampling)))
    seconds = time.perf_counter() - start
    files = _save_grid(images, num, output) if output.suffix == ".png" else _save_files(images, wanted, output)
    rate = f"{seconds:.1f} s, {len(wanted) / seconds:.1f} images/s"
    print(f"generated {len(wanted)} images in {rate}: {output}", file=sys.stderr)
    return files


@dataclass(frozen=True)
class ClipOptions:
    """What a clip is."""

    frames: int | None  # to generate; None for as many as in training
    context: Path | None  # a video that the clips continue
    given: int  # frames from the end of the context
    fps: float | None  # None for the context's, or DEFAULT_FPS

    def read_context(self) -> Tensor | None:
        """The context's last frames (1, 3, T, H, W) in [−1, 1].

        Raises:
            ValueError: the context can't be read, or is shorter.
        """
        if self.context is None:
            return None
        frames = deque(read_frames(self.context), maxlen=self.given)
        if len(frames) < self.given:
            raise ValueError(
                f"--context must have the {self.given} frames of --given, got {self.context} with {len(frames)}."
            )
        return torch.stack([frame_to_float(frame) for frame in frames], dim=1)[None]

    def rate(self) -> float:
        """Frames per second of the clips."""
        return self.fps or (self.context and probe(self.context).fps) or DEFAULT_FPS


def generate_clips(
    pipeline: UnifiedLatentsPipeline,
    conditions: Conditions,
    num: int,
    sampling: SamplingOptions,
    clip: ClipOptions,
    output: Path,
) -> None:
    """Generates `num` clips of each class and prompt into one video, in which they stand side by side.

    Raises:
        ValueError: a model of images, or a context that doesn't fit the model.
    """
    if pipeline.transformer.config.sample_frames is None and clip.frames is None and clip.context is None:
        raise ValueError("--frames must be given: this model does not say how many frames it was trained on.")
    context, fps = clip.read_context(), clip.rate()
    wanted = conditions.images(num)
    start = time.perf_counter()
    clips = torch.cat(list(_tracked(in_batches(pipeline, wanted, sampling, clip.frames, context), wanted, sampling)))
    seconds = time.perf_counter() - start
    columns = math.ceil(math.sqrt(len(clips)))
    gap = columns * -(-len(clips) // columns) - len(clips)
    filled = torch.cat([clips, clips.new_ones(gap, *clips.shape[1:])])  # (N, T, 3, H, W)
    with VideoWriter(output, fps) as writer:
        for frame in filled.unbind(1):
            rows = [torch.cat(list(row), dim=-1) for row in torch.split(frame, columns)]
            writer.write(np.asarray(to_image(torch.cat(rows, dim=-2))))
    print(f"generated {len(wanted)} clips of {clips.shape[1]} frames in {seconds:.1f} s: {output}", file=sys.stderr)


def _tracked(batches: Iterator[Tensor], wanted: Sequence[Wanted], sampling: SamplingOptions) -> Iterator[Tensor]:
    return track(batches, "generating", math.ceil(len(wanted) / sampling.batch_size), "batches")


def _save_grid(images: Tensor, num: int, output: Path) -> list[Path]:
    columns = min(len(images), math.ceil(math.sqrt(num)) if len(images) == num else num)
    gap = columns * -(-len(images) // columns) - len(images)
    filled = torch.cat([images, images.new_ones(gap, *images.shape[1:])])
    rows = [filled[first : first + columns] for first in range(0, len(filled), columns)]
    _save(comparison_grid(rows, columns), output)
    return [output]


def _save_files(images: Tensor, wanted: Sequence[Wanted], folder: Path) -> list[Path]:
    files = [folder / file_name(one) for one in wanted]
    for image, path in zip(images, files, strict=True):
        _save(to_image(image), path)
    return files


def file_name(wanted: Wanted) -> str:
    """Name of one image's file in a folder."""
    label = "" if wanted.label is None else f"class-{wanted.label}-"
    prompt = "" if wanted.prompt is None else f"prompt-{wanted.prompt_number}-"
    return f"{label}{prompt}{wanted.number:05d}.png"


def refuse_existing(conditions: Conditions, num: int, output: Path, force: bool) -> None:
    """Refuses to overwrite without `force`, before any work.

    Raises:
        ValueError: a result exists; the first one is named.
    """
    wanted = conditions.images(num)
    files = [output] if output.suffix in (".png", ".mp4") else [output / file_name(one) for one in wanted]
    taken = [path for path in files if path.exists()]
    if output.suffix in (".png", ".mp4") and output.is_dir():
        raise ValueError(f"The result {output} would replace a folder.")
    if taken and not force:
        raise ValueError(f"{taken[0]} exists already; --force overwrites.")


def _save(image: Image.Image, path: Path) -> None:
    with whole_file(path) as temporary:
        image.save(temporary, format="PNG")
