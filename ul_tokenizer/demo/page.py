"""The whole page: its head and its tabs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ul_tokenizer.demo import generate, interpolate, look, panel, reconstruct, video
from ul_tokenizer.demo.models import Kind

if TYPE_CHECKING:
    from gradio import Blocks

CACHE_CHECKED, CACHE_KEPT = 60, 900  # seconds: how often old files are looked for, and how old they may become
WAITING = 32  # visitors that may wait; more get a sentence
WHAT_IT_IS = (
    "A tokenizer for images and videos: a deterministic encoder, a diffusion prior that bounds the bits of the latent, "
    "and a diffusion decoder. Everything is computed on this machine; what you upload is deleted again."
)
TABS: tuple[tuple[str, Kind, Callable[[panel.Page], None]], ...] = (
    ("Reconstruct", Kind.images, reconstruct.build),
    ("Interpolate and edit", Kind.images, interpolate.build),
    ("Generate", Kind.generator, generate.build),
    ("Video", Kind.videos, video.build),
)


def build(page: panel.Page) -> Blocks:
    """The page of all tabs for which there is a model."""
    import gradio as gr

    blocks: Blocks
    with gr.Blocks(
        title=look.TITLE, analytics_enabled=False, delete_cache=(CACHE_CHECKED, CACHE_KEPT), fill_width=True
    ) as blocks:
        gr.HTML(look.head(WHAT_IT_IS), padding=False)
        for title, kind, tab in TABS:
            if page.offered[kind]:
                with gr.Tab(title):
                    tab(page)
    blocks.queue(max_size=WAITING, api_open=False)
    return blocks
