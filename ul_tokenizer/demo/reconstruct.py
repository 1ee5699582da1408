"""The tab "Reconstruct": a picture beside its reconstruction, with figures and with JPEG and WebP at the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from ul_tokenizer.demo import look, panel
from ul_tokenizer.demo.models import Kind, number_of_tiles, set_tiling
from ul_tokenizer.demo.pictures import as_image, channel_grid, error_map, generator
from ul_tokenizer.demo.uploads import Picture, Upload, read_picture, read_seed
from ul_tokenizer.demo.work import Job
from ul_tokenizer.evaluation.autoencoders import BITS_SIDE, AnyAutoencoder
from ul_tokenizer.evaluation.codecs import compress_within
from ul_tokenizer.evaluation.measures.metrics import psnr, squared_errors
from ul_tokenizer.media.images import fit_to_multiple
from ul_tokenizer.media.pixels import frame_to_uint8, to_float, to_uint8

CODECS = ("jpeg", "webp")
NAMES = {"jpeg": "JPEG", "webp": "WebP"}
STEPS = (1, 2, 4, 8)
SIDES, LARGE_SIDES = (256, 512, 1024), (512, 1024, 2048)
LEVELS_OF_BOUND = 16  # noise levels at which the prior is called, for the progress bar
WHAT_BITS_MEAN = (
    "The bits of the latent are an upper bound that the model's prior gives for the information in it; no file of this "
    "size is written. JPEG and WebP are real files, headers included, at the highest quality that needs no more bits."
)


class Compressed(NamedTuple):
    """A picture as a codec's file."""

    name: str  # with the quality
    image: Image.Image
    psnr: float
    bits: int
    fits: bool  # whether the file has no more bits than the latent


@dataclass(frozen=True)
class Result:
    """A reconstruction; bits and codecs come later than the picture."""

    original: Image.Image
    again: Image.Image
    error: Image.Image
    channels: Image.Image
    psnr: float
    encode_seconds: float
    decode_seconds: float
    bits: float | None = None
    is_bound: bool = True  # whether the bits are the prior's bound, not the nominal size of the latent
    codecs: tuple[Compressed, ...] = field(default=())

    @property
    def pixels(self) -> int:
        """Number of pixels of the picture."""
        return self.original.width * self.original.height


# ---------------------------------------------------------------- computing


def reconstruct(job: Job, model: AnyAutoencoder, image: Image.Image, steps: int, seed: int) -> None:
    """Shows a `Result` as soon as there is a picture, and again with the bits and with each codec.

    Args:
        job: whose results are shown.
        model: an autoencoder of images.
        image: RGB, of any size.
        steps: decoding steps.
        seed: of all noise.
    """
    padded = to_float(frame_to_uint8(fit_to_multiple(image, model.multiple, "pad")))[None]
    original = frame_to_uint8(image)
    set_tiling(model.model, *padded.shape[-2:])
    result, latents = _decoded(job, model, padded, original, steps, seed)
    job.show(result)
    bits = _bits(job, model, padded, latents, seed)
    result = replace(result, bits=bits, is_bound=model.prior is not None)
    job.show(result)
    for file_format in CODECS:
        job.check()
        result = replace(result, codecs=(*result.codecs, compressed(file_format, original, bits)))
        job.show(result)


def _decoded(
    job: Job, model: AnyAutoencoder, padded: Tensor, original: Tensor, steps: int, seed: int
) -> tuple[Result, Tensor]:
    """The result without bits, and the latents."""
    tiles = number_of_tiles(model.model, *padded.shape[-2:])
    noise, start = generator(seed), time.perf_counter()
    with job.counting("Encoding", tiles, model.model.encoder):
        encoded = model.model.encode(padded.to(model.model.device))
    latents, encoded_at = encoded.latent_dist.sample(noise), time.perf_counter()
    with job.counting("Decoding", tiles * steps, model.model.decoder):
        pixels = model.decode(latents, noise, steps, None)
    decoded_at = time.perf_counter()
    again = to_uint8(pixels[0])[:, : original.shape[1], : original.shape[2]]
    result = Result(
        as_image(original),
        as_image(again),
        error_map(original, again),
        channel_grid(encoded.latent[0]),
        psnr_of(original, again),
        encoded_at - start,
        decoded_at - encoded_at,
    )
    return result, latents


def _bits(job: Job, model: AnyAutoencoder, padded: Tensor, latents: Tensor, seed: int) -> float:
    if model.prior is None:
        return float(model.bits(padded, latents, generator(seed)))
    pieces = math.prod(math.ceil(side / BITS_SIDE) for side in padded.shape[-2:])
    with job.counting("Counting bits", pieces * LEVELS_OF_BOUND, model.prior):
        return float(model.bits(padded, latents, generator(seed)))


def compressed(file_format: str, original: Tensor, bits: float) -> Compressed:
    """A picture (3, H, W) uint8 as a codec's file of at most so many bits."""
    codec, data = compress_within(file_format, original, int(bits / 8))
    again = codec.decompress(data)
    name = f"{NAMES[file_format]}, quality {codec.quality}"
    return Compressed(name, as_image(again), psnr_of(original, again), 8 * len(data), 8 * len(data) <= bits)


def psnr_of(original: Tensor, again: Tensor) -> float:
    """PSNR in dB of two images (3, H, W) uint8; infinite if they are equal."""
    return float(psnr(squared_errors(original[None], again[None])))


# ---------------------------------------------------------------- showing


def figures_of(result: Result) -> str:
    """The figures of a reconstruction, as HTML."""
    rows = [look.Figure("PSNR", decibels(result.psnr), "dB")]
    if result.bits is not None:
        what = "at most" if result.is_bound else "nominal"
        rows.append(look.Figure(f"bits per pixel ({what})", f"{result.bits / result.pixels:.3f}"))
        rows.append(look.Figure("size of the latent", look.size(result.bits / 8)))
        rows.append(look.Figure("smaller than RGB", f"{24 * result.pixels / result.bits:.0f}", "×"))
    seconds = f"{result.encode_seconds:.2f} + {result.decode_seconds:.2f}"
    rows.append(look.Figure("to encode and to decode", seconds, "s"))
    return look.figures(rows)


def decibels(value: float) -> str:
    """A PSNR; pictures that are equal have none."""
    return f"{value:.2f}" if math.isfinite(value) else "exact"


def label_of(codec: Compressed, pixels: int) -> str:
    """The label of a codec's picture."""
    excess = "" if codec.fits else " (its smallest file)"
    return f"{codec.name}: {decibels(codec.psnr)} dB, {codec.bits / pixels:.3f} bits per pixel{excess}"


def build(page: panel.Page) -> None:
    """The tab's fields and events, within the tab that is open."""
    import gradio as gr

    names = page.offered[Kind.images]
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            image = panel.picture_field("Picture")
            clicks = panel.samples_field(page, image)
            name = panel.model_field(names)
            steps = panel.steps_field(STEPS, "One step is the most faithful; more steps add detail.")
            teacher = panel.decoder_field(page, names[0])
            side = panel.side_field(LARGE_SIDES if page.is_fast else SIDES, 1024 if page.is_fast else 512)
            seed = panel.seed_field()
            go, stop = panel.buttons("Reconstruct")
        with gr.Column(scale=7, min_width=480):
            status = panel.status_field()
            slider = gr.ImageSlider(
                label="Original (left) and reconstruction (right)",
                format="png",
                height=440,
                max_height=440,
                buttons=["download", "fullscreen"],
            )
            figures = gr.HTML(padding=False)
            with gr.Row():
                codecs = [panel.result_field(f"{NAMES[codec]} at the same bits", 280) for codec in CODECS]
            gr.HTML(look.explanation(WHAT_BITS_MEAN), padding=False)
            with gr.Row():
                error = panel.result_field("Error: black is none", 280)
                channels = panel.result_field("Channels of the latent", 280, "ul-pixels")

    def show(result: Result) -> panel.Updates:
        # Only what is new: Gradio would write the other files again while the browser still reads them.
        if result.bits is None:
            pair, nothing = (result.original, result.again), dict.fromkeys(codecs)
            first = {slider: pair, error: result.error, channels: result.channels}
            return {figures: figures_of(result), **first, **nothing}
        if not result.codecs:
            return {figures: figures_of(result)}
        newest = result.codecs[-1]
        return {codecs[len(result.codecs) - 1]: gr.Image(newest.image, label=label_of(newest, result.pixels))}

    inputs = [image, name, teacher, steps, side, seed]
    outputs = [slider, figures, *codecs, error, channels]
    triggers = [go.click, image.upload]  # type: ignore[attr-defined]
    panel.start_work(triggers, _run(page, show, status), inputs, outputs, status, stop, after=clicks)
    name.change(  # type: ignore[attr-defined]
        lambda name: gr.update(visible=page.models.is_distilled(name), value=False),
        name,
        teacher,
        api_visibility="private",
    )


def _run(
    page: panel.Page, show: Callable[[Result], panel.Updates], status: Any
) -> Callable[..., Iterator[panel.Updates]]:
    """What the button does."""

    def run(
        upload: Upload | None, name: str, teacher: bool, steps: int, side: int, seed: float
    ) -> Iterator[panel.Updates]:
        picture: list[Picture] = []

        def work(job: Job) -> None:
            picture.append(read_picture(upload, side))
            model = page.models.autoencoder(name, bool(teacher))
            reconstruct(job, model, picture[0].image, steps, read_seed(seed))

        yield from panel.answers(work, show, status, lambda: picture[0].note)

    return run
