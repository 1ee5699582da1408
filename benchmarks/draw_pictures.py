"""Draws the pictures of README and cards from the bundled models and from results, for light and for dark pages.

    python benchmarks/draw_pictures.py [--only banner,strip,rates,curves,badges]

    docs/images/banner-{light,dark}.webp           a photograph, its latent, and what one and a few steps make of it
    docs/images/strip-{light,dark}.webp            pictures that the bundled pipelines generate
    docs/images/rate-distortion-{light,dark}.png   bits against PSNR and KID, from benchmarks/results/photos
    docs/images/badge-*.svg                        what pyproject.toml says of licence, Python and types
    ul_tokenizer/pretrained/*/curve.png            training curves, of models whose card shows them

Run it again when weights or results change (`make pictures` does). The banner's photograph is in the public domain.
The same weights and the same versions of the libraries give the same pictures on the same machine.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ul_tokenizer.evaluation.autoencoders import load_any_autoencoder
from ul_tokenizer.evaluation.measures.metrics import psnr, squared_errors
from ul_tokenizer.evaluation.report.plots import PSNR, Axis, rate_plot
from ul_tokenizer.evaluation.report.style import LIGHT, THEMES, Theme, check_matplotlib
from ul_tokenizer.evaluation.results import by_protocol, read_results
from ul_tokenizer.evaluation.subjects import AutoencoderSubject
from ul_tokenizer.files import write_whole
from ul_tokenizer.media.pixels import frame_to_float, frame_to_uint8, to_float, to_image
from ul_tokenizer.models.repository import class_names
from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline
from ul_tokenizer.pretrained import ROOT as PRETRAINED
from ul_tokenizer.pretrained import bundled_names

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for examples, which is no package that is installed
from examples.plot_training import draw_runs  # noqa: E402

OUTPUT = ROOT / "docs" / "images"
PHOTO, PHOTO_MODEL = ROOT / "examples" / "images" / "moose.jpg", "ul-photo-f8"
CORNER, SIDE, FEW_STEPS = (120, 20), 304, 4  # the part of the photograph that is shown, pixel for pixel
PROMPTS = (
    *("red apple", "cat face", "rocket", "smiling face", "green leaf"),
    *("blue heart", "guitar", "sunflower", "pizza", "owl"),
)
TILE, TILES, GAP, MARGIN, FONT = 113, 10, 12, 4, 20
KID = "distances.efficientnet-lite0.kid"
MAX_BYTES = 400_000  # of one picture


@dataclass(frozen=True)
class Cell:
    """A picture with words below it."""

    picture: Image.Image
    title: str
    words: str = ""


# ---------------------------------------------------------------- cells to pages


def page(lines: Sequence[Sequence[Cell]], theme: Theme) -> Image.Image:
    """Arranges cells in lines, with their words below them."""
    heights = [max(cell.picture.height + _words_height(cell) for cell in line) for line in lines]
    width = max(sum(cell.picture.width + GAP for cell in line) - GAP for line in lines)
    size = (width + 2 * MARGIN, sum(heights) + GAP * (len(lines) - 1) + 2 * MARGIN)
    drawn = Image.new("RGB", size, theme.page)
    top = MARGIN
    for line, height in zip(lines, heights, strict=True):
        left = MARGIN
        for cell in line:
            drawn.paste(cell.picture, (left, top))
            _write(drawn, cell, left, top, theme)
            left += cell.picture.width + GAP
        top += height + GAP
    return drawn


def _words_height(cell: Cell) -> int:
    return (FONT + 8) * (1 + bool(cell.words)) if cell.title else 0


def _write(drawn: Image.Image, cell: Cell, left: int, top: int, theme: Theme) -> None:
    pen, middle = ImageDraw.Draw(drawn), left + cell.picture.width // 2
    below = top + cell.picture.height + 5
    pen.text((middle, below), cell.title, fill=theme.text, font=font(bold=bool(cell.words)), anchor="ma")
    pen.text((middle, below + FONT + 7), cell.words, fill=theme.floor, font=font(), anchor="ma")


def font(bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font of our plots."""
    from matplotlib import font_manager

    wanted = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(wanted), FONT)


def as_webp(picture: Image.Image) -> bytes:
    """A WebP file of high quality."""
    content = io.BytesIO()
    picture.save(content, format="WEBP", quality=92, method=6)
    return content.getvalue()


# ---------------------------------------------------------------- what is shown


def banner_cells() -> list[Cell]:
    """A photograph, its latent, and what one step and a few steps make of it."""
    photo = Image.open(PHOTO).convert("RGB")
    pixels = frame_to_uint8(photo)[None]
    autoencoder = load_any_autoencoder(PHOTO_MODEL)
    with torch.inference_mode():
        latent = autoencoder.model.encode(frame_to_float(photo)[None]).latent[0]
    made, bits = [], 0.0
    for steps in (1, FEW_STEPS):
        again = AutoencoderSubject(autoencoder, steps).reconstruct(pixels, [0])
        decibels = psnr(squared_errors(pixels, again.pixels)).item()
        bits = again.bits.item() / (photo.width * photo.height)
        title = f"decoded in {steps} step{'' if steps == 1 else 's'}"
        made.append(Cell(_shown(to_image(to_float(again.pixels[0]))), title, f"{decibels:.1f} dB"))
    channels, height, width = latent.shape
    enlarged = (autoencoder.ratio * width, autoencoder.ratio * height)
    picture = latent_picture(latent).resize(enlarged, Image.Resampling.NEAREST)
    return [
        Cell(_shown(photo), "photograph", "24 bits per pixel"),
        Cell(_shown(picture), f"latent, {height}×{width}×{channels}", f"at most {bits:.2f} bits per pixel"),
        *made,
    ]


def _shown(picture: Image.Image) -> Image.Image:
    return picture.crop((*CORNER, CORNER[0] + SIDE, CORNER[1] + SIDE))


def latent_picture(latent: Tensor) -> Image.Image:
    """The three principal components of a latent (c, h, w) as red, green and blue."""
    values = latent.flatten(1).T.double()
    values = values - values.mean(0)
    _, vectors = torch.linalg.eigh(values.T @ values)
    vectors = vectors[:, -3:].flip(1)
    vectors = vectors * vectors.sum(0).sign()  # else a library may choose either sign
    components = values @ vectors
    low, high = components.quantile(0.01, 0), components.quantile(0.99, 0)
    scaled = ((components - low) / (high - low)).clamp(0, 1)
    return to_image((2 * scaled - 1).T.view(3, *latent.shape[1:]).float())


def strip_cells() -> Iterator[list[Cell]]:
    """A line of pictures for each bundled pipeline."""
    for name in bundled_names():
        if (PRETRAINED / name / "model_index.json").is_file():
            yield generated(name, UnifiedLatentsPipeline.from_pretrained(name))


def generated(name: str, pipeline: UnifiedLatentsPipeline) -> list[Cell]:
    """Pictures by prompt where a pipeline reads text, or else by class."""
    pipeline.set_progress_bar_config(disable=True)
    classes = class_names(name)
    by_text = pipeline.text_encoder is not None
    named = PROMPTS if by_text else [text.lstrip("0123456789-") for text in classes]
    titles = list(named[:TILES]) or [""] * TILES
    labels = list(range(len(titles))) if classes and not by_text else None
    scale, count = (2.0, 1) if by_text or labels else (1.0, len(titles))
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(titles))]
    made: Any = pipeline(
        labels,
        prompt=titles if by_text else None,
        num_images_per_prompt=count,
        guidance_scale=scale,
        generator=generators,
    )
    return [Cell(_tile(image), title) for image, title in zip(made.images, titles, strict=True)]


def _tile(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)


# ---------------------------------------------------------------- files


def draw_banner() -> Iterator[tuple[Path, bytes]]:
    """The banner."""
    cells = banner_cells()
    yield from ((OUTPUT / f"banner-{theme.name}.webp", as_webp(page([cells], theme))) for theme in THEMES)


def draw_strip() -> Iterator[tuple[Path, bytes]]:
    """The strip of generated pictures."""
    lines = list(strip_cells())
    yield from ((OUTPUT / f"strip-{theme.name}.webp", as_webp(page(lines, theme))) for theme in THEMES)


def draw_rates() -> Iterator[tuple[Path, bytes]]:
    """Rate and distortion."""
    results = ROOT / "benchmarks" / "results" / "photos"
    sections = by_protocol(read_results([results]))
    if len(sections) != 1:
        raise ValueError(f"{results} must hold results of one protocol, got {len(sections)}.")
    axes = [Axis(PSNR, "PSNR, dB (higher is better)"), Axis(KID, "KID × 1000 (lower is better)", 1000)]
    for theme in THEMES:
        content = rate_plot(sections[0].rows, axes, theme, intervals=False, size=(4.4, 3.4))
        if content is None:
            raise ValueError(f"{results} must hold results with bits per pixel, got none.")
        yield OUTPUT / f"rate-distortion-{theme.name}.png", content


def draw_curves() -> Iterator[tuple[Path, bytes]]:
    """The training curves of cards that show one."""
    for name in bundled_names():
        folder = PRETRAINED / name
        if "(curve.png)" in (folder / "README.md").read_text(encoding="utf-8"):
            yield folder / "curve.png", draw_runs([folder])


def draw_badges() -> Iterator[tuple[Path, bytes]]:
    """The README's badges, which say what the repository says, and are fetched from nowhere."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    megabytes = sum(path.stat().st_size for path in PRETRAINED.rglob("*.safetensors")) / 1e6
    facts = {
        "licence": _stated(project, r'^license = "(.+)"$'),
        "python": _stated(project, r'^requires-python = ">=(.+)"$') + " or newer",
        "typed": "mypy --strict" if _stated(project, r"^strict = (\w+)$") == "true" else "partly",
        "weights": f"in the package, {megabytes:.0f} MB",
    }
    yield from ((OUTPUT / f"badge-{name}.svg", badge(name, fact).encode()) for name, fact in facts.items())


def _stated(text: str, pattern: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise ValueError(f"pyproject.toml must have a line like {pattern}, which is missing.")
    return found[1]


def badge(name: str, fact: str) -> str:
    """An SVG file: a name on grey beside a fact on blue."""
    left, right = (round(font().getlength(text) * 11 / FONT) + 14 for text in (name, fact))
    return BADGE.format(name=name, fact=fact, left=left, right=right, width=left + right, colour=LIGHT.colours[0])


BADGE = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{name}: {fact}">
  <title>{name}: {fact}</title>
  <clipPath id="r"><rect width="{width}" height="20" rx="3"/></clipPath>
  <g clip-path="url(#r)">
    <rect width="{left}" height="20" fill="#555"/>
    <rect x="{left}" width="{right}" height="20" fill="{colour}"/>
  </g>
  <g fill="#fff" font-family="DejaVu Sans,Verdana,sans-serif" font-size="11" lengthAdjust="spacingAndGlyphs">
    <text x="7" y="14">{name}</text>
    <text x="{left}" dx="7" y="14">{fact}</text>
  </g>
</svg>
"""
PICTURES: dict[str, Callable[[], Iterator[tuple[Path, bytes]]]] = {
    "banner": draw_banner,
    "strip": draw_strip,
    "rates": draw_rates,
    "curves": draw_curves,
    "badges": draw_badges,
}


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    if unknown := [kind for kind in kinds if kind not in PICTURES]:
        raise argparse.ArgumentTypeError(f"pictures must be some of {', '.join(PICTURES)}, got {unknown[0]!r}.")
    return kinds


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_kinds, default=list(PICTURES), help=f"some of {','.join(PICTURES)}")
    args = parser.parse_args(argv)
    logging.set_verbosity_error()
    try:
        check_matplotlib()
        for kind in args.only:
            for path, content in PICTURES[kind]():
                if len(content) > MAX_BYTES:
                    raise ValueError(f"{path.name} must have at most {MAX_BYTES:,} bytes, got {len(content):,}.")
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, content)
                print(f"{len(content):>8,}  {path.relative_to(ROOT)}")
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
