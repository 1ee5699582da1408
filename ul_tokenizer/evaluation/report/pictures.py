"""The picture of a report: originals, reconstructions beside them, and below each the difference to its original.

Pixels stay as they are: large pictures show their centre, small ones are enlarged by whole numbers.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont

from ul_tokenizer.evaluation.results import Row, Section, is_codec, label_of

SIDE, GAP, MARGIN, FONT_SIZE = 256, 6, 10, 15
MAX_COLUMNS, MAX_IMAGES = 7, 4  # beside the originals, and below each other
DIFFERENCE_GAIN, GREY = 4, 128
PAPER, INK = "white", "#222222"
BITS = "metrics.bits_per_pixel.value"


@dataclass(frozen=True)
class PictureGrid:
    """A PNG file and what a reader must know about it."""

    content: bytes
    labels: list[str]
    left_out: list[str]  # results that have pictures and are not shown
    bits_of: str | None  # the model whose bits per pixel chose the quality of each codec


# ---------------------------------------------------------------- choosing


def picture_grid(section: Section) -> PictureGrid | None:
    """Draws the pictures of a section's results.

    Of the steps of a model, the smallest number is shown, and of the qualities of a codec the one whose bits per pixel
    are closest to those of the first model. Only results with the same originals stand in one grid.

    Args:
        section: reconstructions of one protocol.

    Returns:
        the grid; None if no result has pictures.
    """
    rows = [row for row in section.rows if _originals(row)]
    if not rows:
        return None
    leader = next((row for row in rows if not is_codec(row.result) and row.figure(BITS)), None)
    names = [path.name for path in _originals(rows[0])[:MAX_IMAGES]]
    alike = [row for row in _one_of_each(rows, leader) if _same_pixels(rows[0], row, names)]
    shown = alike[:MAX_COLUMNS]
    labels = [row.label for row in shown]
    return PictureGrid(
        _drawn(shown, names),
        labels,
        [row.label for row in rows if row.label not in labels],
        leader.label if leader and any(is_codec(row.result) for row in shown) else None,
    )


def _originals(row: Row) -> list[Path]:
    """Originals that have a reconstruction beside them."""
    return [path for path in sorted(row.pictures.glob("original-*.png")) if _counterpart(path).is_file()]


def _counterpart(original: Path) -> Path:
    return original.with_name(original.name.replace("original-", "reconstruction-", 1))


def _one_of_each(rows: Sequence[Row], leader: Row | None) -> list[Row]:
    """One row for each model and each codec, in the order of the section."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(label_of(row.result, without=("name", "num_inference_steps")), []).append(row)
    return [min(group, key=lambda row: _distance_in_bits(row, leader)) for group in groups.values()]


def _distance_in_bits(row: Row, leader: Row | None) -> float:
    """How far a codec's rate is from that of the leader, as the absolute logarithm of their ratio; 0 for models."""
    mine, wanted = row.figure(BITS), leader and leader.figure(BITS)
    return abs(math.log(mine / wanted)) if is_codec(row.result) and mine and wanted else 0.0


def _same_pixels(one: Row, other: Row, names: Sequence[str]) -> bool:
    """Whether both have the same originals under some names."""
    pairs = [(one.pictures / name, other.pictures / name) for name in names]
    return one is other or all(b.is_file() and _opened(a).tobytes() == _opened(b).tobytes() for a, b in pairs)


# ---------------------------------------------------------------- drawing


def difference(original: Image.Image, reconstruction: Image.Image) -> Image.Image:
    """How a reconstruction differs, four times enlarged around grey; grey is no difference."""
    return ImageChops.subtract(reconstruction, original, scale=1 / DIFFERENCE_GAIN, offset=GREY)


def _drawn(rows: Sequence[Row], names: Sequence[str]) -> bytes:
    """The grid as a PNG file: two lines for each original."""
    columns = _columns(rows, names)
    heads = ["original", *(row.label for row in rows)]
    cells = [_cell(picture) for column in columns for picture in column if picture]
    width, height = max(cell.width for cell in cells), max(cell.height for cell in cells)
    font = ImageFont.load_default(FONT_SIZE)
    texts = [_wrapped(head, font, width) for head in heads]
    top = MARGIN + (FONT_SIZE + 4) * max(text.count("\n") + 1 for text in texts) + GAP
    lines = len(columns[0])
    size = (2 * MARGIN + len(columns) * (width + GAP) - GAP, top + lines * (height + GAP) + MARGIN)
    page = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(page)
    for number, (text, column) in enumerate(zip(texts, columns, strict=True)):
        left = MARGIN + number * (width + GAP)
        pen.multiline_text((left, MARGIN), text, fill=INK, font=font, spacing=4)
        for line, picture in enumerate(column):
            place = (left, top + line * (height + GAP) + (0 if line % 2 else GAP // 2))
            if picture:
                page.paste(_cell(picture), place)
            else:
                pen.multiline_text(
                    (left + width - MARGIN, place[1] + height // 2),
                    f"difference,\n{DIFFERENCE_GAIN} times enlarged,\ngrey is none",
                    fill=INK,
                    font=font,
                    anchor="rm",
                    align="right",
                )
    content = io.BytesIO()
    page.save(content, format="PNG", optimize=True)
    return content.getvalue()


def _columns(rows: Sequence[Row], names: Sequence[str]) -> list[list[Image.Image | None]]:
    """Pictures of each column from above; None where the words about differences stand."""
    originals = [_opened(rows[0].pictures / name) for name in names]
    columns: list[list[Image.Image | None]] = [[cell for original in originals for cell in (original, None)]]
    for row in rows:
        column: list[Image.Image | None] = []
        for name, original in zip(names, originals, strict=True):
            reconstruction = _opened(_counterpart(row.pictures / name))
            column += [reconstruction, difference(original, reconstruction)]
        columns.append(column)
    return columns


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _cell(picture: Image.Image) -> Image.Image:
    """The centre of a picture, at most SIDE wide and high, or a small picture enlarged by a whole number."""
    width, height = min(picture.width, SIDE), min(picture.height, SIDE)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    centre = picture.crop((left, top, left + width, top + height))
    factor = SIDE // max(width, height)
    return centre.resize((width * factor, height * factor), Image.Resampling.NEAREST)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Breaks a text into lines, between words where possible."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(_cut(line, font, width) for line in lines)


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Shortens a word that is longer than a line, in its middle, since both ends of a path matter."""
    kept = len(line)
    short = line
    while font.getlength(short) > width and kept > 2:
        kept -= 1
        short = f"{line[: kept // 2]}...{line[-(kept - kept // 2) :]}"
    return short
