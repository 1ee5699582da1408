"""What the tabs share: how their work is started, shown, stopped and answered, and fields that several of them have."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils.memory import should_reduce_batch_size

from ul_tokenizer.demo import look
from ul_tokenizer.demo.models import Kind, Models
from ul_tokenizer.demo.uploads import MAX_SEED
from ul_tokenizer.demo.work import Job, Progress, follow

if TYPE_CHECKING:
    from gradio.components import Component

QUEUE = "networks"  # all work waits in one queue
Updates = dict[Any, Any]  # component → its new value


@dataclass(frozen=True)
class Page:
    """What every tab is built from.

    Args:
        models: the loaded models.
        offered: names of models of each kind.
        samples: pictures to start with; may be empty.
        is_fast: whether the models compute on a GPU, so that larger pictures are sensible.
    """

    models: Models
    offered: dict[Kind, list[str]]
    samples: Sequence[Path] = field(default_factory=list)

    @property
    def is_fast(self) -> bool:
        """Whether the models compute on a GPU, so that larger pictures are sensible."""
        return self.models.device.type != "cpu"


def answers(
    work: Callable[[Job], None], show: Callable[[Any], Updates], status: Component, notes: Callable[[], str] = str
) -> Iterator[Updates]:
    """Does work and yields what changes in the page.

    Args:
        work: does it, and shows results to its job.
        show: result → components and their values.
        status: shows progress, or one sentence if something is wrong.
        notes: sentences for the status at the end.
    """
    start = time.perf_counter()
    try:
        for message in follow(work):
            yield {status: look.progress(message)} if isinstance(message, Progress) else show(message)
    except Exception as error:
        yield {status: look.problem(sentence_of(error))}
        return
    seconds = f"Done in {time.perf_counter() - start:.1f} s."
    yield {status: look.note(" ".join(filter(None, [notes(), seconds])))}


def sentence_of(error: Exception) -> str:
    """What is wrong, for the page; an error that nobody expects goes to the server's log as well."""
    if isinstance(error, (ValueError, OSError)) and str(error):
        return str(error)
    if isinstance(error, MemoryError) or should_reduce_batch_size(error):
        return "There is not enough memory for this; choose a smaller size."
    traceback.print_exception(error)
    return f"This failed because of an error in the program ({type(error).__name__}); the server's log has the details."


def start_work(
    triggers: Sequence[Any],
    function: Callable[..., Iterator[Updates]],
    inputs: Sequence[Component],
    outputs: Sequence[Component],
    status: Component,
    stop: Component,
    latest_only: bool = False,
    after: Sequence[Any] = (),
) -> None:
    """Wires a function to events, in the queue that all work waits in, and the button that stops it.

    Args:
        triggers: events.
        function: yields changes of components.
        inputs: its arguments.
        outputs: all components that it changes, but the status.
        status: where the place in the queue is shown, and what became of the work.
        stop: the button.
        after: events of others, after whose success the function runs, too.
        latest_only: whether an event replaces an earlier one that still waits, as for sliders.
    """
    import gradio as gr

    options: dict[str, Any] = {
        "inputs": list(inputs),
        "outputs": [*outputs, status],
        "concurrency_id": QUEUE,
        "concurrency_limit": 1,
        "show_progress": "minimal",
        "show_progress_on": status,
        "trigger_mode": "always_last" if latest_only else "once",
        "api_visibility": "private",
    }
    events = [gr.on(list(triggers), function, **options), *(event.success(function, **options) for event in after)]
    stop.click(  # type: ignore[attr-defined]
        lambda: look.note("Stopped."), None, status, cancels=events, queue=False, api_visibility="private"
    )


# ---------------------------------------------------------------- fields


def model_field(names: Sequence[str]) -> Component:
    """A choice of models; hidden if there is only one."""
    import gradio as gr

    return gr.Dropdown(list(names), value=names[0], label="Model", visible=len(names) > 1)


def steps_field(choices: Sequence[int], info: str) -> Component:
    """A choice of decoding steps."""
    import gradio as gr

    return gr.Radio(list(choices), value=choices[0], label="Decoding steps", info=info)


def seed_field() -> Component:
    """The seed of all noise."""
    import gradio as gr

    return gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)


def side_field(choices: Sequence[int], value: int) -> Component:
    """A choice of the longest side."""
    import gradio as gr

    return gr.Radio(
        list(choices), value=value, label="Longest side", info="Larger pictures are scaled down to this many pixels."
    )


def decoder_field(page: Page, name: str) -> Component:
    """A choice between a distilled decoder and the one before distillation; hidden where there is only one."""
    import gradio as gr

    return gr.Radio(
        [("distilled", False), ("before distillation", True)],
        value=False,
        label="Decoder",
        info="The distilled decoder is made for one or two steps.",
        visible=page.models.is_distilled(name),
    )


def picture_field(label: str, height: int = 220, value: Path | None = None) -> Component:
    """A place to drop a picture."""
    import gradio as gr

    from ul_tokenizer.demo.uploads import take_files_as_they_are

    field = gr.Image(
        str(value) if value else None,
        label=label,
        sources=["upload", "clipboard"],
        type="filepath",
        height=height,
        buttons=[],
    )
    shown: Component = take_files_as_they_are(field)
    return shown


def result_field(label: str, height: int, style: str = "") -> Any:
    """A place for a picture that was computed."""
    import gradio as gr

    return gr.Image(
        label=label,
        format="png",
        interactive=False,
        height=height,
        buttons=["download", "fullscreen"],
        elem_classes=f"ul-result {style}".split(),
    )


def status_field() -> Component:
    """Where progress, notes and problems are shown."""
    import gradio as gr

    return gr.HTML(look.note(""), padding=False)


def buttons(text: str) -> tuple[Any, Any]:
    """The button that starts the work and the one that stops it."""
    import gradio as gr

    with gr.Row():
        go = gr.Button(text, variant="primary", scale=3)
        stop = gr.Button("Stop", variant="secondary", scale=1, min_width=70)
    return go, stop


def samples_field(page: Page, image: Component) -> Sequence[Any]:
    """Pictures to start with; a click puts one into the field. Returns the events of such clicks."""
    import gradio as gr

    if not page.samples:
        return []
    # Not `gr.Examples`: it would make a new component for each visitor, which passes on something else than `Upload`s.
    samples = gr.Dataset(
        components=[image],
        samples=[[str(path)] for path in page.samples],
        type="index",
        label="Or start with one of these",
    )
    click = samples.click(
        lambda index: str(page.samples[index]), samples, image, show_progress="hidden", api_visibility="private"
    )
    return [click]
