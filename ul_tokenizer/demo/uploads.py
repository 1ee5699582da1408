"""Files that visitors upload: what is wrong with one is said in one sentence, without the server's paths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ul_tokenizer.media.frame_times import Frame
from ul_tokenizer.media.images import UnreadableImageError, read_image
from ul_tokenizer.media.videos import UnreadableVideoError, probe, read_frames

MAX_UPLOAD = "100mb"
MAX_SEED = 2**32 - 1
PAN_FRAMES, PAN_FPS = 32, 12.0


class UploadError(ValueError):
    """A visitor's input can't be used; the sentence is for the page."""


class Upload(NamedTuple):
    """An uploaded file."""

    path: Path
    name: str  # as on the visitor's machine


class Picture(NamedTuple):
    """A picture that fits the page's limit."""

    image: Image.Image  # RGB
    name: str
    note: str  # a sentence about its scaling; empty if it wasn't scaled


class Clip(NamedTuple):
    """Frames of one size."""

    frames: list[Frame]  # (H, W, 3), uint8
    fps: float
    name: str
    note: str  # sentences about what was scaled or left out


def as_upload(payload: Any) -> Upload | None:
    """What a component of Gradio passes on: the file as it is, which Gradio itself has not tried to read."""
    if payload is None:
        return None
    path = Path(payload.path)
    return Upload(path, payload.orig_name or path.name)


def take_files_as_they_are(component: Any) -> Any:
    """Makes an image's or file's component pass on `Upload`s.

    Gradio would open the file first, and answer a damaged one with an error that hides what is wrong.
    """
    component.preprocess = as_upload
    return component


def read_picture(upload: Upload | None, longest_side: int, which: str = "a picture") -> Picture:
    """Reads an uploaded picture and scales it down to the limit.

    Args:
        upload: the file; None if there is none.
        longest_side: the limit, in pixels.
        which: how the sentence calls the picture that is missing.

    Raises:
        UploadError: there is no file, or it can't be read as a still image.
    """
    if upload is None:
        raise UploadError(f"Please drop {which} first.")
    try:
        image = read_image(upload.path)
    except UnreadableImageError as error:
        raise _unreadable(upload, error.reason) from error
    scaled = scaled_down(image, longest_side)
    note = ""
    if scaled.size != image.size:
        before, after = f"{image.width}×{image.height}", f"{scaled.width}×{scaled.height}"
        note = f"“{upload.name}” has {before} pixels and was scaled down to {after}."
    return Picture(scaled, upload.name, note)


def _unreadable(upload: Upload, reason: str) -> UploadError:
    """The error for a file that can't be read, with the visitor's name for it instead of the server's path."""
    known = reason.replace(str(upload.path), upload.name).replace("PIL.Image.MAX_IMAGE_PIXELS allows", "are allowed")
    return UploadError(f"“{upload.name}” can't be read: {known}.")


def scaled_down(image: Image.Image, longest_side: int) -> Image.Image:
    """The image, scaled down if a side is longer than the limit; no side becomes shorter than one pixel."""
    scale = longest_side / max(image.size)
    if scale >= 1:
        return image
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def read_clip(upload: Upload | None, longest_side: int, most_frames: int) -> Clip:
    """Reads the first frames of an uploaded clip and scales them down to the limit.

    Raises:
        UploadError: there is no file, or no frame in it can be read.
    """
    if upload is None:
        raise UploadError("Please drop a clip first.")
    frames: list[Frame] = []
    more = False
    try:
        info = probe(upload.path)
        for frame in read_frames(upload.path, num_frames=most_frames + 1):
            more = len(frames) == most_frames
            if not more:
                frames.append(np.asarray(scaled_down(Image.fromarray(frame), longest_side)))
    except UnreadableVideoError as error:
        raise _unreadable(upload, error.reason) from error
    notes = [f"Only the first {most_frames} frames of “{upload.name}” are used."] if more else []
    height, width = frames[0].shape[:2]
    if (width, height) != (info.width, info.height):
        notes.append(f"Its {info.width}×{info.height} pixels were scaled down to {width}×{height}.")
    return Clip(frames, info.rate, upload.name, " ".join(notes))


def pan_over(path: Path, longest_side: int, most_frames: int) -> Clip:
    """A clip out of a photograph: a window of two thirds of it moves from its left to its right."""
    image = read_image(path)
    width, height = image.width * 2 // 3, image.height * 2 // 3
    frames = []
    for number in range(count := min(PAN_FRAMES, most_frames)):
        share = (1 - math.cos(math.pi * number / max(count - 1, 1))) / 2
        left, top = round(share * (image.width - width)), round(share * (image.height - height) / 2)
        window = image.crop((left, top, left + width, top + height))
        frames.append(np.asarray(scaled_down(window, longest_side)))
    return Clip(frames, PAN_FPS, f"a pan over {path.name}", "")


def read_seed(value: float | None) -> int:
    """The seed in a field of the page.

    Raises:
        UploadError: the field is empty, or holds no whole number in the range.
    """
    if value is None or not 0 <= value <= MAX_SEED or value != int(value):
        raise UploadError(f"The seed must be a whole number from 0 to {MAX_SEED}.")
    return int(value)
