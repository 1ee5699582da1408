"""The tab "Generate": a grid of images of a class or a prompt, which fills row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from ul_tokenizer.demo import look, panel
from ul_tokenizer.demo.models import Kind
from ul_tokenizer.demo.pictures import enlarged, grid
from ul_tokenizer.demo.uploads import UploadError, read_seed
from ul_tokenizer.demo.work import Job
from ul_tokenizer.media.pixels import to_image

if TYPE_CHECKING:
    from ul_tokenizer.pipelines.generation import UnifiedLatentsPipeline

MAX_PROMPT, MAX_IMAGES, MAX_STEPS, MAX_GUIDANCE = 2000, 36, 100, 10.0
ANY_CLASS = "any"
GRID_SIDE = 768  # pixels towards which a small grid is enlarged
EMPTY = (128, 128, 128)  # an image that is still to come
WHAT_IS_SEEN = (
    "The base model turns noise into latents, and the decoder turns these into pixels. Guidance above 1 makes images "
    "more typical of their class or prompt, and less varied."
)


@dataclass(frozen=True)
class Order:
    """What a visitor asks for."""

    label: int | None
    prompt: str | None
    guidance: float
    steps: int
    number: int
    seed: int


# ---------------------------------------------------------------- computing


def generate(job: Job, pipeline: UnifiedLatentsPipeline, order: Order) -> None:
    """Generates images row by row; after each row the grid is shown, as an image."""
    from ul_tokenizer.pipelines.sampling import SamplingOptions, Wanted, in_batches  # slow to import

    columns = math.ceil(math.sqrt(order.number))
    wanted = [Wanted(order.label, number, order.prompt) for number in range(order.number)]
    is_conditional = order.label is not None or order.prompt is not None
    guidance = order.guidance if is_conditional else 1.0
    sampling = SamplingOptions(order.steps, None, guidance, None, None, None, order.seed, columns)
    rows = math.ceil(order.number / columns)
    images: list[Image.Image] = []
    with job.counting("Sampling", rows * order.steps, pipeline.transformer):
        for pixels in in_batches(pipeline, wanted, sampling):
            images += [to_image(image) for image in pixels]
            job.show(_sheet(images, order.number, columns))


def _sheet(images: list[Image.Image], number: int, columns: int) -> Image.Image:
    """The grid so far: images that are still to come are grey."""
    to_come = [Image.new("RGB", images[0].size, EMPTY)] * (number - len(images))
    scale_to = max(1, GRID_SIDE // columns)
    return grid([enlarged(image, scale_to) for image in [*images, *to_come]], columns)


def read_prompt(prompt: str) -> str | None:
    """The prompt in a field of the page; None if it is empty.

    Raises:
        UploadError: it is too long.
    """
    if len(prompt) > MAX_PROMPT:
        raise UploadError(f"A prompt can have at most {MAX_PROMPT:,} characters; this one has {len(prompt):,}.")
    return prompt.strip() or None


# ---------------------------------------------------------------- showing


def build(page: panel.Page) -> None:
    """The tab's fields and events, within the tab that is open."""
    import gradio as gr

    names = page.offered[Kind.generator]
    classes = [ANY_CLASS, *page.models.classes(names[0])]
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            name = panel.model_field(names)
            label = gr.Dropdown(classes, value=classes[0], label="Class", visible=len(classes) > 1)
            prompt = gr.Textbox(
                label="Prompt",
                lines=2,
                max_lines=6,
                visible=page.models.takes_prompts(names[0]),
                placeholder="a red car",
            )
            guidance = gr.Slider(1, MAX_GUIDANCE, 2, step=0.5, label="Guidance", info="Needs a class or a prompt.")
            steps = gr.Slider(1, MAX_STEPS, 32, step=1, label="Steps of the base model")
            number = gr.Slider(1, MAX_IMAGES, 16, step=1, label="Images")
            seed = panel.seed_field()
            go, stop = panel.buttons("Generate")
        with gr.Column(scale=7, min_width=480):
            status = panel.status_field()
            sheet = panel.result_field("Generated images", 640, "ul-pixels")
            gr.HTML(look.explanation(WHAT_IS_SEEN), padding=False)

    inputs = [name, label, prompt, guidance, steps, number, seed]
    panel.start_work([go.click, prompt.submit], _run(page, sheet, status), inputs, [sheet], status, stop)

    def fields_of(name: str) -> panel.Updates:
        choices = [ANY_CLASS, *page.models.classes(name)]
        return {
            label: gr.update(choices=choices, value=choices[0], visible=len(choices) > 1),
            prompt: gr.update(visible=page.models.takes_prompts(name), value=""),
        }

    name.change(fields_of, name, [label, prompt], api_visibility="private")  # type: ignore[attr-defined]


def _run(page: panel.Page, sheet: Any, status: Any) -> Callable[..., Iterator[panel.Updates]]:
    """What the button does."""

    def run(
        name: str, label: str, prompt: str, guidance: float, steps: int, number: int, seed: float
    ) -> Iterator[panel.Updates]:
        def work(job: Job) -> None:
            text, start = read_prompt(prompt or ""), read_seed(seed)
            pipeline, classes = page.models.pipeline(name), page.models.classes(name)
            chosen = classes.index(label) if label in classes else None
            generate(job, pipeline, Order(chosen, text, guidance, int(steps), int(number), start))

        yield from panel.answers(work, lambda image: {sheet: image}, status)

    return run
