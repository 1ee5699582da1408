"""Draws the figures of the concept pages, for light and for dark pages: `python docs/figures/concepts.py`.

They are plain SVG, so that text stays sharp. Two files are written for each, since readers choose the colours of a
page, and an SVG that is shown as an image cannot see this choice.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import NamedTuple

import torch

from ul_tokenizer.diffusion.objective import SigmoidWeighting

FOLDER = Path(__file__).resolve().parent
WIDTH = 920
BOX = 54  # height of a box


class Palette(NamedTuple):
    """Colours of a figure: of text and arrows, of things, and of the networks (Okabe and Ito's, see `style.py`)."""

    text: str
    line: str
    panel: str
    tensor: str
    encoder: str
    prior: str
    decoder: str
    on_network: str


PALETTES = {
    "light": Palette("#222222", "#666666", "#f5f6f8", "#ffffff", "#0072B2", "#B34E00", "#007A5A", "#ffffff"),
    "dark": Palette("#e6e8ec", "#a4abb6", "#262b36", "#1b1f28", "#56B4E9", "#F0A45D", "#3CC79A", "#10141b"),
}


class Drawing:
    """A figure in the colours of a palette, with a heading and a line below it."""

    def __init__(self, palette: Palette, height: float, heading: str, line: str) -> None:
        self.palette, self.height = palette, height
        self.parts = [f'<rect x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="12" fill="{palette.panel}"/>']
        self.text(24, 36, heading, 18, anchor="start")
        self.text(24, 57, line, 13, palette.line, "start")

    def text(self, x: float, y: float, words: str, size: float = 15, colour: str = "", anchor: str = "middle") -> None:
        """A line of text; `*x*` is italic, `_0` is a subscript and `_{clean}` a longer one."""
        style = f'font-size="{size}" fill="{colour or self.palette.text}" text-anchor="{anchor}"'
        self.parts.append(f'<text x="{x}" y="{y}" {style}>{formatted(words, size)}</text>')

    def box(self, x: float, y: float, width: float, words: str, colour: str, note: str = "") -> None:
        """A network, centred at (x, y), with a note in a second line."""
        corner = f'x="{x - width / 2}" y="{y - BOX / 2}" width="{width}" height="{BOX}" rx="8"'
        self.parts.append(f'<rect {corner} fill="{colour}"/>')
        self.text(x, y + (-2 if note else 5), words, 16, self.palette.on_network)
        if note:
            self.text(x, y + 16, note, 12.5, self.palette.on_network)

    def tensor(self, x: float, y: float, words: str, width: float = 62) -> None:
        """A tensor, centred at (x, y)."""
        corner = f'x="{x - width / 2}" y="{y - 19}" width="{width}" height="38" rx="19"'
        self.parts.append(f'<rect {corner} fill="{self.palette.tensor}" stroke="{self.palette.line}"/>')
        self.text(x, y + 6, words, 18)

    def plus(self, x: float, y: float) -> None:
        """A sum, centred at (x, y)."""
        line = f'stroke="{self.palette.line}" stroke-width="1.6"'
        self.parts.append(f'<circle cx="{x}" cy="{y}" r="11" fill="{self.palette.tensor}" {line}/>')
        self.parts.append(f'<path d="M{x - 6} {y}h12M{x} {y - 6}v12" {line}/>')

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        """An arrow through points."""
        path = "M" + "L".join(f"{x} {y}" for x, y in points)
        style = f'fill="none" stroke="{self.palette.line}" stroke-width="1.6" marker-end="url(#head)"'
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(f'<path d="{path}" {style}{dashes}/>')

    def svg(self, title: str) -> str:
        """The whole file."""
        head = f'<path d="M0 0L9 4.5L0 9z" fill="{self.palette.line}"/>'
        marker = (
            '<marker id="head" viewBox="0 0 9 9" refX="8" refY="4.5" markerWidth="7" markerHeight="7" orient="auto">'
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" role="img"',
                '     font-family="Roboto, Helvetica, Arial, DejaVu Sans, sans-serif">',
                f"<title>{title}</title>",
                f"<defs>{marker}{head}</marker></defs>",
                *self.parts,
                "</svg>\n",
            ]
        )


def formatted(words: str, size: float) -> str:
    """The marks of `Drawing.text` as SVG."""
    words = escape(words, quote=False)
    symbol = '<tspan font-family="Cambria, DejaVu Serif, Georgia, serif" font-style="italic">'
    words = re.sub(r"\*(\S+?)\*", rf"{symbol}\1</tspan>", words)
    down = rf'<tspan dy="{0.28 * size:.2f}" font-size="{0.68 * size:.2f}">\1</tspan><tspan dy="-{0.28 * size:.2f}">'
    # What follows a subscript is raised again; a figure ends with its text.
    return re.sub(r"_\{?(\w+)\}?([^_]*)", rf"{down}\2</tspan>", words)


def three_networks(palette: Palette) -> str:
    """The networks and what passes between them."""
    line = "Encoder, prior and decoder are trained together. The base model is trained afterwards."
    d, row = Drawing(palette, 416, "Unified Latents", line), 196  # centre of the row from pixels to pixels

    # From pixels to pixels.
    d.tensor(52, row, "*x*")
    d.box(172, row, 116, "Encoder", palette.encoder, "stage 1")
    d.tensor(316, row, "*z*_{clean}", 84)
    d.plus(430, row)
    d.tensor(530, row, "*z*_0")
    d.box(684, row, 132, "Decoder", palette.decoder, "stage 1")
    d.tensor(852, row, "*x̂*")
    for start, end in ((83, 114), (230, 274), (358, 419), (441, 499), (561, 618), (750, 821)):
        d.arrow((start, row), (end, row))

    # Noise.
    d.text(430, 86, "fixed noise", 14)
    d.text(430, 107, "*σ*_0*ε*,  *λ* = 5", 15)
    d.arrow((430, 122), (430, row - 12))
    d.text(684, 86, "noisy pixels *x*_t", 14)
    d.text(684, 107, "at every level *λ*_x", 14)
    d.arrow((684, 122), (684, row - BOX / 2 - 1))
    d.text(52, 150, "pixels", 13)
    d.text(316, 150, "clean latent", 13)
    d.text(530, 150, "the latent", 13)
    d.text(852, 150, "pixels", 13)

    # The two losses and the base model.
    below = row + 134
    d.box(316, below, 116, "Prior", palette.prior, "stage 1")
    d.arrow((316, row + 20), (316, below - BOX / 2 - 1))
    d.text(306, row + 60, "fresh noise: *z*_t at", 13, anchor="end")
    d.text(306, row + 78, "every level *λ*_z ≤ 5", 13, anchor="end")
    d.text(316, below + 50, "*L*_z:  bits in the latent", 15)
    d.box(530, below, 132, "Base model", palette.prior, "stage 2")
    d.arrow((530, below - BOX / 2), (530, row + 21), dashed=True)
    d.text(542, row + 60, "generates *z*_0 from pure", 13, anchor="start")
    d.text(542, row + 78, "noise, down to *λ* = 5", 13, anchor="start")
    d.arrow((785, row), (785, below - 16))
    d.text(785, below + 6, "*L*_x:  what is left", 15)
    d.text(785, below + 26, "to the decoder", 15)
    return d.svg("The three networks of Unified Latents, and the base model that generates latents")


def decoder_weight(palette: Palette) -> str:
    """w(λ) of the decoder, and what its crossing of 1 divides."""
    weighting = SigmoidWeighting(loss_factor=1.7, bias=4.5)
    height, left, right, bottom, top = 400, 80, 884, 338, 92
    lowest, highest = -5.0, 10.0
    d = Drawing(palette, height, "The decoder's weight", "*c*_{lf} = 1.7 and *b* = 4.5")

    def x(logsnr: float) -> float:
        return round(left + (logsnr - lowest) / (highest - lowest) * (right - left), 1)

    def y(weight: float) -> float:
        return round(bottom - weight / 1.8 * (bottom - top), 1)

    def path(points: list[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{a} {b}" for a, b in points)

    crossing, axis = x(weighting.crossing), f'stroke="{palette.line}" stroke-width="1.2"'
    areas = ((left, crossing, palette.encoder), (crossing, right, palette.decoder))
    for start, end, colour in areas:
        corner = f'x="{start}" y="{top}" width="{round(end - start, 1)}" height="{bottom - top}"'
        d.parts.append(f'<rect {corner} fill="{colour}" fill-opacity="0.13"/>')
    for weight in (0, 0.5, 1, 1.5):
        dashes = "" if weight == 0 else ' stroke-dasharray="5 4"' if weight == 1 else ' stroke-opacity="0.25"'
        d.parts.append(f'<path d="M{left} {y(weight)}H{right}" fill="none" {axis}{dashes}/>')
        d.text(left - 10, y(weight) + 5, f"{weight:g}", 13, anchor="end")
    for logsnr in range(int(lowest), int(highest) + 1, 5):
        d.text(x(logsnr), bottom + 22, f"{logsnr}".replace("-", "−"), 13)
    logsnrs = torch.linspace(lowest, highest, 121, dtype=torch.float64)
    points = [(x(a), y(b)) for a, b in zip(logsnrs.tolist(), weighting.weight(logsnrs).tolist(), strict=True)]
    d.parts.append(f'<path d="{path(points)}" fill="none" stroke="{palette.prior}" stroke-width="2.6"/>')
    d.parts.append(f'<circle cx="{crossing}" cy="{y(1)}" r="5" fill="{palette.prior}"/>')
    d.text(crossing + 12, y(1) - 10, f"*λ** = {weighting.crossing:.1f}", 15, anchor="start")
    d.text((left + crossing) / 2, y(0.75) + 6, "*w* > 1: goes into the latent", 16)
    d.text((crossing + right) / 2, y(1.25) - 8, "*w* < 1: left to the decoder", 16)
    d.text(left - 10, top - 8, "*w*", 16)
    d.text((left + right) / 2, height - 16, "log-SNR *λ*", 14)
    d.text(left, height - 16, "← noisy: large structures", 14, anchor="start")
    d.text(right, height - 16, "clean: fine grain →", 14, anchor="end")
    return d.svg("The decoder's weight over the log-SNR, and which levels go into the latent")


FIGURES: dict[str, Callable[[Palette], str]] = {"three-networks": three_networks, "decoder-weight": decoder_weight}


def main() -> None:
    """Writes all files."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None).parse_args()
    for figure, draw in FIGURES.items():
        for name, palette in PALETTES.items():
            (FOLDER / f"{figure}-{name}.svg").write_text(draw(palette), encoding="utf-8")


if __name__ == "__main__":
    main()
