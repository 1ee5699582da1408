"""The tab "Interpolate and edit": a mix of two pictures' latents, and latents with more noise than usual."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ul_tokenizer.demo import look, panel
from ul_tokenizer.demo.models import Kind, number_of_tiles, set_tiling
from ul_tokenizer.demo.pictures import as_image, generator
from ul_tokenizer.demo.uploads import Picture, Upload, UploadError, read_picture, read_seed
from ul_tokenizer.demo.work import Job
from ul_tokenizer.diffusion.objective import diffuse
from ul_tokenizer.diffusion.schedule import alpha_sigma
from ul_tokenizer.diffusion.solver import evenly_spaced
from ul_tokenizer.evaluation.autoencoders import AnyAutoencoder
from ul_tokenizer.media.images import fit_to_multiple
from ul_tokenizer.media.pixels import frame_to_uint8, to_float, to_uint8
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler

STEPS = (1, 2, 4, 8)
SIDES = (128, 256, 512)
MOST_NOISE = 8.0  # by which the log-SNR can be lowered
PRIOR_STEPS = 16
WHAT_IS_SEEN = (
    "The latents of both pictures are mixed and decoded; without a second picture, the first one is only edited. "
    "Extra noise lowers the log-SNR of the latent. The prior can take it away again: it replaces what the noise has "
    "hidden by what it finds likely. Without the prior, the decoder gets the noisy latent as it is."
)


class Edit(NamedTuple):
    """What is done with the latents."""

    mix: float  # 0 is the first picture, 1 the second
    extra_noise: float  # by which the log-SNR is lowered
    uses_prior: bool  # to take the extra noise away again
    steps: int  # decoding steps
    seed: int


class Edited(NamedTuple):
    """The decoded latent, beside the same mix of pixels."""

    picture: Image.Image
    pixels: Image.Image


# ---------------------------------------------------------------- computing


def edit(job: Job, model: AnyAutoencoder, first: Image.Image, second: Image.Image, how: Edit) -> None:
    """Mixes two pictures in the space of latents and shows an `Edited`.

    Args:
        job: whose result is shown.
        model: an autoencoder of images.
        first: RGB; the result has its size.
        second: RGB; scaled and cropped to the size of the first.
        how: what to do.

    Raises:
        UploadError: noise is to be taken away, and the model has no prior.
    """
    if how.uses_prior and how.extra_noise and model.prior is None:
        raise UploadError(f"{model.name} has no prior, which could take the noise away.")
    originals = [frame_to_uint8(image) for image in (first, ImageOps.fit(second, first.size))]
    padded = [to_float(frame_to_uint8(fit_to_multiple(as_image(x), model.multiple, "pad"))) for x in originals]
    set_tiling(model.model, *padded[0].shape[-2:])
    tiles = number_of_tiles(model.model, *padded[0].shape[-2:])
    with job.counting("Encoding", 2 * tiles, model.model.encoder):
        latents = [model.model.encode(x[None].to(model.model.device)).latent for x in padded]
    noise = generator(how.seed)
    z = noisy_mix(model, latents[0], latents[1], how, noise[0], job)
    with job.counting("Decoding", tiles * how.steps, model.model.decoder):
        decoded = model.decode(z, noise, how.steps, None)
    height, width = originals[0].shape[-2:]
    crossfade = torch.lerp(to_float(originals[0]), to_float(originals[1]), how.mix)
    job.show(Edited(as_image(to_uint8(decoded[0])[:, :height, :width]), as_image(to_uint8(crossfade))))


def noisy_mix(
    model: AnyAutoencoder, z_first: Tensor, z_second: Tensor, how: Edit, noise: torch.Generator, job: Job
) -> Tensor:
    """z_0 (1, c, h, w) of a mix of two clean latents: noisier than usual, unless the prior cleans it."""
    latent_logsnr = float(model.model.config.latent_logsnr)
    z_clean = torch.lerp(z_first, z_second, how.mix)
    level = latent_logsnr - how.extra_noise
    epsilon = torch.randn(z_clean.shape, generator=noise).to(z_clean)
    z = diffuse(z_clean, epsilon, torch.tensor([level], device=z_clean.device))
    if not (how.uses_prior and how.extra_noise and model.prior is not None):
        return z
    with job.counting("The prior takes the noise away", PRIOR_STEPS, model.prior):
        return denoised(model.prior, z, level, latent_logsnr)


def denoised(prior: UnifiedLatentsTransformer, z: Tensor, level: float, latent_logsnr: float) -> Tensor:
    """A noisy latent (B, c, h, w) at the log-SNR `level` → one of the same shape at `latent_logsnr`, by the prior."""
    scheduler = LogSNRScheduler(latent_logsnr, algorithm_type="dpmsolver++")
    scheduler.set_timesteps(timesteps=evenly_spaced(level, latent_logsnr, PRIOR_STEPS)[:-1], device=z.device)
    for logsnr in scheduler.timesteps:
        v = prior(z, logsnr, return_dict=False)[0]
        z = scheduler.step(v, logsnr, z, return_dict=False)[0]
    return z


# ---------------------------------------------------------------- showing


def describe_noise(latent_logsnr: float, extra_noise: float) -> str:
    """The noise level of the latent, in the paper's symbols."""
    logsnr = latent_logsnr - extra_noise
    alpha, sigma = (float(value) for value in alpha_sigma(torch.tensor(logsnr)))
    return f"The latent has a log-SNR of {logsnr:.1f}: α = {alpha:.2f}, σ = {sigma:.2f}."


def _places(samples: Sequence[Path]) -> list[tuple[str, Path | None]]:
    """The two fields, and which sample each of them starts with."""
    known = [*reversed(samples[-2:])] if len(samples) > 1 else [None, None]
    return list(zip(("First", "Second"), known, strict=True))


def build(page: panel.Page) -> None:
    """The tab's fields and events, within the tab that is open."""
    import gradio as gr

    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                first, second = (
                    panel.picture_field(f"{which} picture", 170, path) for which, path in _places(page.samples)
                )
            mix = gr.Slider(0, 1, 0.5, step=0.05, label="Mix", info="0 is the first picture, 1 is the second.")
            noise = gr.Slider(
                0, MOST_NOISE, 0, step=0.5, label="Extra noise", info="By how much the log-SNR is lowered."
            )
            prior = gr.Checkbox(True, label="The prior takes the extra noise away")
            name = panel.model_field(page.offered[Kind.images])
            steps = panel.steps_field(STEPS, "One step is the most faithful; more steps add detail.")
            side = panel.side_field(SIDES, 256)
            seed = panel.seed_field()
            go, stop = panel.buttons("Mix and decode")
        with gr.Column(scale=7, min_width=480):
            status = panel.status_field()
            with gr.Row():
                picture = panel.result_field("Mix of latents, decoded", 360)
                pixels = panel.result_field("Mix of pixels, for comparison", 360)
            gr.HTML(look.explanation(WHAT_IS_SEEN), padding=False)

    inputs = [first, second, mix, noise, prior, name, steps, side, seed]

    def show(result: Edited) -> panel.Updates:
        return {picture: result.picture, pixels: result.pixels}

    run = _run(page, show, status)
    panel.start_work([go.click], run, inputs, [picture, pixels], status, stop)
    panel.start_work([mix.release, noise.release], run, inputs, [picture, pixels], status, stop, latest_only=True)


def _run(
    page: panel.Page, show: Callable[[Edited], panel.Updates], status: Any
) -> Callable[..., Iterator[panel.Updates]]:
    """What the button and the sliders do."""

    def run(
        first: Upload | None,
        second: Upload | None,
        mix: float,
        noise: float,
        prior: bool,
        name: str,
        steps: int,
        side: int,
        seed: float,
    ) -> Iterator[panel.Updates]:
        pictures: list[Picture] = []
        notes: list[str] = []

        def work(job: Job) -> None:
            pictures.append(read_picture(first, side, "the first picture"))
            pictures.append(read_picture(second, side, "the second picture") if second else pictures[0])
            model = page.models.autoencoder(name)
            notes.append(describe_noise(float(model.model.config.latent_logsnr), noise))
            how = Edit(mix, noise, prior, steps, read_seed(seed))
            edit(job, model, pictures[0].image, pictures[1].image, how)

        yield from panel.answers(work, show, status, lambda: " ".join(notes))

    return run
