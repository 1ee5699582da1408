"""The tab "Video": a clip beside its reconstruction, with flicker and bits per frame."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ul_tokenizer.demo import look, panel
from ul_tokenizer.demo.models import Kind, number_of_tiles, set_tiling
from ul_tokenizer.demo.uploads import Clip, Upload, pan_over, read_clip, read_seed, take_files_as_they_are
from ul_tokenizer.demo.work import Job
from ul_tokenizer.evaluation.autoencoders import AnyAutoencoder
from ul_tokenizer.evaluation.whole_videos import (
    BITS_FRAMES,
    BITS_LEVELS,
    BITS_SIDE,
    ComparedFrames,
    FrameFigures,
    noisy_latents,
    video_bits,
)
from ul_tokenizer.media.frame_times import Frame
from ul_tokenizer.media.images import fit_to_multiple
from ul_tokenizer.media.pixels import frame_to_float, to_uint8
from ul_tokenizer.media.videos import ANIMATION_SUFFIXES, VIDEO_SUFFIXES, VideoWriter

STEPS = (1, 2, 4)
SIDES, LARGE_SIDES = (128, 192, 256), (256, 384, 512)
MAX_FRAMES = 128
SHOWN_SIDE = 384  # pixels of a side of each half towards which small clips are enlarged
WHAT_FIGURES_MEAN = (
    "Flicker is the mean absolute difference between the frame-to-frame changes of the reconstruction and of the "
    "original, as a part of the range of pixel values. Judge it by the change of the original, which stands beside it. "
    "The bits are an upper bound that the model's prior gives."
)


class Result(NamedTuple):
    """A reconstructed clip; the bits come later than the clip."""

    video: Path  # original and reconstruction side by side
    frames: int
    height: int
    width: int
    figures: FrameFigures
    seconds: float  # encoding and decoding
    bits: float | None  # None before they are counted, or without a prior


# ---------------------------------------------------------------- computing


def reconstruct(job: Job, model: AnyAutoencoder, clip: Clip, steps: int, seed: int, video: Path) -> None:
    """Shows a `Result` as soon as there is a clip, and again with the bits.

    Args:
        job: whose results are shown.
        model: an autoencoder of videos.
        clip: the original.
        steps: decoding steps.
        seed: of all noise.
        video: where original and reconstruction are written side by side, an .mp4 file.
    """
    height, width = clip.frames[0].shape[:2]
    start = time.perf_counter()
    latents = _encoded(job, model, clip.frames)
    again = _decoded(job, model, latents, len(clip.frames), steps, seed)
    seconds = time.perf_counter() - start
    again = [frame[:height, :width] for frame in again]
    compared = ComparedFrames()
    for original, frame in zip(clip.frames, again, strict=True):
        compared.add(original, frame)
    write_side_by_side(video, clip.frames, again, clip.fps)
    result = Result(video, len(again), height, width, compared.figures(), seconds, None)
    job.show(result)
    if model.prior is not None:
        job.show(result._replace(bits=_bits(job, model, latents)))


def _encoded(job: Job, model: AnyAutoencoder, frames: Sequence[Frame]) -> list[Tensor]:
    """z_clean in pieces (1, c, t', h, w)."""
    padded = [fit_to_multiple(Image.fromarray(frame), model.multiple, "pad") for frame in frames]
    set_tiling(model.model, padded[0].height, padded[0].width)
    tiles = number_of_tiles(model.model, padded[0].height, padded[0].width)
    parts = -(-len(frames) // model.model.encode_chunk_frames)
    pixels = (frame_to_float(frame)[None, :, None].to(model.model.device) for frame in padded)
    with job.counting("Encoding", parts * tiles, model.model.encoder):
        return list(model.model.encode_stream(pixels, len(frames), clean=True))


def _decoded(
    job: Job, model: AnyAutoencoder, latents: Sequence[Tensor], num_frames: int, steps: int, seed: int
) -> list[Frame]:
    """Frames (H, W, 3) uint8."""
    noise, noise_of_pixels = (torch.Generator().manual_seed(s) for s in (seed, seed + 1))
    noisy = noisy_latents(latents, float(model.model.config.latent_logsnr), noise)
    height, width = (side * model.ratio for side in latents[0].shape[-2:])
    times = sum(z.shape[2] for z in latents)
    window, overlap = model.model.decode_window_latents, model.model.decode_window_overlap
    windows = 1 + max(0, -(-(times - window) // (window - overlap)))
    total = windows * steps * number_of_tiles(model.model, height, width)
    frames: list[Frame] = []
    with job.counting("Decoding", total, model.model.decoder):
        for part in model.model.decode_stream(noisy, num_frames, noise_of_pixels, steps):
            frames += list(to_uint8(part[0]).cpu().permute(1, 2, 3, 0).numpy())
    return frames


def _bits(job: Job, model: AnyAutoencoder, latents: Sequence[Tensor]) -> float:
    assert model.prior is not None
    sizes = (BITS_FRAMES, BITS_SIDE, BITS_SIDE)
    pieces = sum(
        int(np.prod([-(-length // size) for length, size in zip(z.shape[2:], sizes, strict=True)])) for z in latents
    )
    with job.counting("Counting bits", pieces * BITS_LEVELS, model.prior):
        return video_bits(latents, model.prior, float(model.model.config.latent_logsnr))


def write_side_by_side(path: Path, left: Sequence[Frame], right: Sequence[Frame], fps: float) -> None:
    """Writes two clips of one size beside each other; small ones are enlarged by a whole number."""
    scale = max(1, SHOWN_SIDE // max(left[0].shape[:2]))
    gap = np.full((left[0].shape[0] * scale, 4, 3), 255, np.uint8)
    with VideoWriter(path, fps) as writer:
        for pair in zip(left, right, strict=True):
            halves = [np.repeat(np.repeat(frame, scale, 0), scale, 1) for frame in pair]
            writer.write(np.concatenate([halves[0], gap, halves[1]], axis=1))


# ---------------------------------------------------------------- showing


def figures_of(result: Result) -> str:
    """The figures of a clip, as HTML."""
    rows = [
        look.Figure("PSNR, mean of all frames", f"{result.figures.mean_psnr:.2f}", "dB"),
        look.Figure("PSNR of the worst frame", f"{min(result.figures.psnr_per_frame):.2f}", "dB"),
        look.Figure(f"flicker (original: {result.figures.source_change:.3f})", f"{result.figures.flicker:.3f}"),
    ]
    if result.bits is not None:
        per_frame = result.bits / result.frames
        rows.append(look.Figure("bits per frame (at most)", f"{per_frame:,.0f}"))
        rows.append(look.Figure("bits per pixel", f"{per_frame / (result.height * result.width):.3f}"))
    rows.append(look.Figure("frames", str(result.frames)))
    rows.append(look.Figure("encoded and decoded", f"{result.frames / result.seconds:.1f}", "frames/s"))
    return look.figures(rows)


def build(page: panel.Page) -> None:
    """The tab's fields and events, within the tab that is open."""
    import gradio as gr

    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            types = sorted(VIDEO_SUFFIXES | ANIMATION_SUFFIXES)
            file = take_files_as_they_are(gr.File(label="Clip", file_types=types, height=150))
            sample = gr.Button("Use a pan over a photo", size="sm", visible=bool(page.samples))
            name = panel.model_field(page.offered[Kind.videos])
            steps = panel.steps_field(STEPS, "One step is the most faithful; more steps add detail.")
            side = panel.side_field(LARGE_SIDES if page.is_fast else SIDES, 256 if page.is_fast else 128)
            frames = gr.Slider(1, MAX_FRAMES, 32, step=1, label="Frames", info="Later frames are left out.")
            seed = panel.seed_field()
            go, stop = panel.buttons("Reconstruct")
        with gr.Column(scale=7, min_width=480):
            status = panel.status_field()
            video = gr.Video(
                label="Original (left) and reconstruction (right)",
                interactive=False,
                height=430,
                autoplay=True,
                loop=True,
                buttons=["download"],
            )
            figures = gr.HTML(padding=False)
            gr.HTML(look.explanation(WHAT_FIGURES_MEAN), padding=False)

    def show(result: Result) -> panel.Updates:
        update: panel.Updates = {figures: figures_of(result)}
        return update if result.bits is not None else {video: str(result.video), **update}

    settings = [name, steps, side, frames, seed]
    run, outputs = _run(page, show, status), [video, figures]
    panel.start_work([go.click, file.upload], run, [file, *settings], outputs, status, stop)
    panel.start_work([sample.click], _run_sample(page, run), settings, outputs, status, stop)


def _run(
    page: panel.Page, show: Callable[[Result], panel.Updates], status: Any
) -> Callable[..., Iterator[panel.Updates]]:
    """What the button does."""

    def run(
        source: Upload | Path | None, name: str, steps: int, side: int, frames: int, seed: float
    ) -> Iterator[panel.Updates]:
        clips: list[Clip] = []
        # The page's own copy of the clip lies in Gradio's cache, and this one goes with the folder.
        with tempfile.TemporaryDirectory() as folder:

            def work(job: Job) -> None:
                if isinstance(source, Path):
                    clips.append(pan_over(source, side, int(frames)))
                else:
                    clips.append(read_clip(source, side, int(frames)))
                model = page.models.autoencoder(name)
                reconstruct(job, model, clips[0], steps, read_seed(seed), Path(folder) / "side-by-side.mp4")

            yield from panel.answers(work, show, status, lambda: clips[0].note)

    return run


def _run_sample(
    page: panel.Page, run: Callable[..., Iterator[panel.Updates]]
) -> Callable[..., Iterator[panel.Updates]]:
    """What the button of the sample clip does."""

    def run_sample(*settings: Any) -> Iterator[panel.Updates]:
        yield from run(page.samples[0], *settings)

    return run_sample
