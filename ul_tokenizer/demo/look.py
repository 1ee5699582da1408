"""How the page looks: a quiet theme, light and dark, with the visitor's own fonts; small pieces of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from ul_tokenizer.demo.work import Progress

if TYPE_CHECKING:
    from gradio.themes import Base

TITLE = "Unified Latents"
FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONOSPACE = ("ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace")

CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
.ul-head { padding: 14px 2px 4px; }
.ul-head h1 { font-size: 26px; font-weight: 650; margin: 0; letter-spacing: -0.01em; }
.ul-head p { margin: 4px 0 0; color: var(--body-text-color-subdued); font-size: 15px; line-height: 1.45; }
.ul-text { color: var(--body-text-color-subdued); font-size: 13.5px; line-height: 1.5; margin: 2px 0; }
.ul-status { font-size: 14px; line-height: 1.45; min-height: 36px; padding: 7px 0 3px;
  color: var(--body-text-color-subdued); }
.ul-bar { height: 4px; border-radius: 2px; background: var(--border-color-primary); overflow: hidden; margin-top: 6px; }
.ul-bar > div { height: 100%; background: var(--color-accent); transition: width 0.2s linear; }
.ul-problem { font-size: 14px; line-height: 1.45; padding: 9px 12px; border-radius: 6px; color: var(--body-text-color);
  background: color-mix(in srgb, #d9483b 12%, transparent); border-left: 3px solid #d9483b; overflow-wrap: anywhere; }
.ul-figures { display: flex; flex-wrap: wrap; gap: 8px 30px; margin: 4px 0; }
.ul-figures > div { min-width: 96px; }
.ul-figures .ul-value { font-size: 21px; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.25;
  color: var(--body-text-color); }
.ul-figures .ul-unit { font-size: 13px; font-weight: 400; color: var(--body-text-color-subdued); }
.ul-figures .ul-label { font-size: 12.5px; color: var(--body-text-color-subdued); line-height: 1.4; }
.html-container { padding: 0 !important; }
.ul-result .image-container { padding-top: 30px; box-sizing: border-box; }
.ul-result .image-container img { width: 100%; height: 100%; object-fit: contain; }
.ul-pixels img { image-rendering: pixelated; }
"""


def theme() -> Base:
    """The theme; it names fonts of the visitor's system only, so that no font is fetched."""
    import gradio as gr

    return gr.themes.Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="gray",
        radius_size="md",
        font=FONT,
        font_mono=MONOSPACE,
    ).set(
        block_border_width="1px",
        block_shadow="none",
        block_label_text_weight="500",
        block_title_text_weight="500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
    )


class Figure(NamedTuple):
    """A figure on the page."""

    label: str
    value: str
    unit: str = ""


def figures(rows: Sequence[Figure]) -> str:
    """Figures in a row."""
    cells = (
        f'<div><div class="ul-value">{escape(row.value)} <span class="ul-unit">{escape(row.unit)}</span></div>'
        f'<div class="ul-label">{escape(row.label)}</div></div>'
        for row in rows
    )
    return f'<div class="ul-figures">{"".join(cells)}</div>'


def head(text: str) -> str:
    """The page's title and a sentence below it."""
    return f'<div class="ul-head"><h1>{escape(TITLE)}</h1><p>{escape(text)}</p></div>'


def explanation(text: str) -> str:
    """A short text that explains what is seen."""
    return f'<div class="ul-text">{escape(text)}</div>'


def note(text: str) -> str:
    """Something worth knowing; nothing is wrong."""
    return f'<div class="ul-status" role="status">{escape(text)}</div>'


def progress(at: Progress) -> str:
    """How far the work is, as text and as a bar."""
    share = 100 * at.done / max(at.total, 1)
    text = f"{at.text}: {at.done} of {at.total}"
    bar = f'<div class="ul-bar"><div style="width: {share:.1f}%"></div></div>'
    return f'<div class="ul-status" role="status">{escape(text)}{bar}</div>'


def problem(sentence: str) -> str:
    """What is wrong, in one sentence."""
    return f'<div class="ul-problem" role="alert">{escape(sentence)}</div>'


def size(number_of_bytes: float) -> str:
    """A number of bytes, as B or kB."""
    return f"{number_of_bytes:,.0f} B" if number_of_bytes < 1000 else f"{number_of_bytes / 1000:,.1f} kB"
