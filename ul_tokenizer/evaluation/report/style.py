"""How all our plots look: colours that colour-blind readers tell apart, on white, in PNG files.

matplotlib is imported only when something is drawn. Its global state, such as pyplot's figures, is left alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), without the yellow, which is too pale on white, and without the black, which is for text.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
# What is compared with, such as codecs, and what bounds a figure, such as a floor.
GREYS, DASHES = ("#444444", "#777777", "#A0A0A0"), ("--", "-.", (0, (1, 1.5)), (0, (6, 2)), (0, (3, 1, 1, 1, 1, 1)))
BACKGROUND_MARKERS = ("<", ">", "p", "h", "d")
TEXT, FLOOR = "#222222", "#888888"
WIDTH, HEIGHT, DPI = 5.4, 4.0, 150  # inches for one panel

SETTINGS: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that every machine draws the same
    "font.size": 10,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "errorbar.capsize": 0,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
}


class MissingMatplotlibError(ImportError):
    """Plots are wanted, and matplotlib isn't installed."""


class Look(NamedTuple):
    """Colour, marker and line of a series; names and values are those of `Axes.plot`."""

    color: str
    marker: str
    linestyle: Any = "-"

    def options(self) -> dict[str, Any]:
        """The keyword arguments for `Axes.plot`; a white rim keeps markers that overlap apart."""
        return {**self._asdict(), "markeredgecolor": "white", "markeredgewidth": 0.8}


def look(index: int) -> Look:
    """The look of the series number `index`: by colour and marker, which differ for the first 42."""
    return Look(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])


def background_look(index: int) -> Look:
    """The look of series that are compared with: grey, apart by their dashes and markers."""
    return Look(
        GREYS[index % len(GREYS)], BACKGROUND_MARKERS[index % len(BACKGROUND_MARKERS)], DASHES[index % len(DASHES)]
    )


def check_matplotlib() -> None:
    """Makes sure that plots can be drawn.

    Raises:
        MissingMatplotlibError: matplotlib isn't installed; one sentence says how to install it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingMatplotlibError("plots need matplotlib: pip install 'ul_tokenizer[plot]'.") from error


def render(
    draw: Callable[[Figure, Sequence[Axes]], None],
    columns: int = 1,
    rows: int = 1,
    size: tuple[float, float] = (WIDTH, HEIGHT),
) -> bytes:
    """Draws a figure in our style.

    Args:
        draw: gets the figure and its axes, line by line.
        columns: panels beside each other.
        rows: panels above each other.
        size: width and height of one panel in inches.

    Returns:
        a PNG file; the same for the same drawing and version of matplotlib.

    Raises:
        MissingMatplotlibError: as `check_matplotlib`.
    """
    check_matplotlib()
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", SETTINGS]):  # whatever the user's own style is
        figure = Figure(figsize=(size[0] * columns, size[1] * rows))
        draw(figure, list(figure.subplots(rows, columns, squeeze=False).flat))
        content = io.BytesIO()
        around: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.1, "bbox_extra_artists": figure.legends}
        figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None}, **around)
    return content.getvalue()


def legend_beside(figure: Figure, *axes: Axes, last: str = "") -> None:
    """Puts one legend for some panels to the right of the whole figure, which grows by its width.

    Args:
        figure: the figure.
        axes: panels; an entry that several of them have appears once.
        last: an entry that comes after all others.
    """
    entries: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    labels = sorted(entries, key=lambda label: label == last)
    if labels:
        handles = [entries[label] for label in labels]
        figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0)).set_in_layout(False)


def write_beside(axes: Axes, text: str, place: tuple[float, float], colour: str) -> None:
    """Writes a short text to the right of a point, with a white rim that keeps it readable on lines."""
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=2.5, foreground="white")]
    offset: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(text, place, **offset, fontsize=8, color=colour, path_effects=rim, zorder=4)


def whole_ticks(axes: Axes, values: Sequence[int]) -> None:
    """Makes x logarithmic, with a tick at each of the whole numbers that occur."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sorted(set(values)), [str(value) for value in sorted(set(values))])
