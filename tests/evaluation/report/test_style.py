"""The look of figures: themes differ, labels stand beside their own lines, and nothing leaks into matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from ul_tokenizer.evaluation.report.style import DARK, LIGHT, THEMES, Theme, label_lines, render, write_beside

matplotlib = pytest.importorskip("matplotlib")


def drawn(lines: dict[str, Sequence[float]], theme: Theme = LIGHT) -> tuple[Image.Image, dict[str, Any], Any]:
    """A figure of lines over 0, 1, …; the picture, its labels by their text, and its panel."""
    panels: list[Any] = []

    def draw(_: Any, axes: Sequence[Any], theme: Theme) -> None:
        for number, (label, values) in enumerate(lines.items()):
            axes[0].plot(range(len(values)), values, label=label, color=theme.colours[number])
        label_lines(axes[0], theme)
        panels.append(axes[0])

    picture = Image.open(io.BytesIO(render(draw, theme=theme))).convert("RGB")
    return picture, {text.get_text(): text for text in panels[0].texts}, panels[0]


def luminance(colour: str) -> float:
    """Of WCAG 2."""
    parts = (value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in _rgb(colour))
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def _rgb(colour: str) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return tuple(map(float, to_rgb(colour)))


def contrast(first: str, second: str) -> float:
    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: str(theme.name))
def test_every_theme_can_be_read_on_its_page(theme: Theme) -> None:
    assert contrast(theme.text, theme.page) > 7
    assert min(contrast(colour, theme.page) for colour in (*theme.colours, *theme.greys)) > 2
    assert contrast(theme.colours[0], theme.page) > 4.5
    assert contrast(theme.grid, theme.page) < 2


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: str(theme.name))
def test_the_page_has_the_colour_of_its_theme(theme: Theme) -> None:
    picture, _, _ = drawn({"a": [0, 1]}, theme)
    assert picture.getpixel((0, 0)) == tuple(round(255 * part) for part in _rgb(theme.page))


def test_light_and_dark_figures_have_one_size() -> None:
    assert drawn({"a": [0, 1]}, LIGHT)[0].size == drawn({"a": [0, 1]}, DARK)[0].size


CROWDED: dict[str, Sequence[float]] = {
    "first": [0, 1, 2, 3, 4],
    "second": [0.4, 1.3, 2.4, 3.3, 4.4],
    "third": [4, 3, 2, 1, 0],
    "fourth": [1] * 5,
}


def test_labels_do_not_overlap_and_stay_in_their_panel() -> None:
    _, labels, axes = drawn(CROWDED)
    boxes = {name: label.get_window_extent() for name, label in labels.items()}
    assert boxes.keys() == CROWDED.keys()
    frame = axes.get_window_extent().padded(5)
    for name, box in boxes.items():
        assert not any(box.overlaps(other) for key, other in boxes.items() if key != name), name
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1, name


def test_a_label_stands_nearest_to_its_own_line() -> None:
    import numpy as np

    _, labels, axes = drawn(CROWDED)
    for name, label in labels.items():
        box = label.get_window_extent()
        distances = {}
        for line in axes.get_lines():
            x = np.linspace(0, 4, 500)
            places = axes.transData.transform(
                np.column_stack([x, np.interp(x, range(5), CROWDED[str(line.get_label())])])
            )
            beside = np.maximum(np.maximum([box.x0, box.y0] - places, places - [box.x1, box.y1]), 0)
            distances[line.get_label()] = np.hypot(*beside.T).min()
        assert min(distances, key=lambda key: distances[key]) == name


def test_a_line_without_a_name_has_no_label() -> None:
    assert drawn({"_": [0, 1], "b": [1, 0]})[1].keys() == {"b"}


def test_a_label_avoids_words_that_stand_already() -> None:
    found: list[Any] = []

    def draw(_: Any, axes: Sequence[Any], theme: Theme) -> None:
        axes[0].plot([0, 1], [0, 1], label="name", color=theme.colours[0])
        found.append(write_beside(axes[0], "8 steps", (1, 1), theme.text))
        found.append(write_beside(axes[0], "1 step", (0, 0), theme.text))
        label_lines(axes[0], theme)
        found.append(axes[0].texts[-1])

    render(draw)
    first, second, label = (text.get_window_extent() for text in found)
    assert not label.overlaps(first) and not label.overlaps(second)
