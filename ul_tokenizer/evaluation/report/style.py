"""How all our figures look: colours that colour-blind readers tell apart, labels beside what they name, light or dark.

Every figure of the repository is drawn with `render`: those of reports, training curves, benchmarks and the README.
matplotlib is imported only when something is drawn. Its global state, such as pyplot's figures, is left alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

MARKERS = ("o", "s", "D", "^", "v", "P", "X")
DASHES: tuple[Any, ...] = ("--", "-.", (0, (1, 1.5)), (0, (6, 2)), (0, (3, 1, 1, 1, 1, 1)))
BACKGROUND_MARKERS = ("<", ">", "p", "h", "d")
WIDTH, HEIGHT, DPI = 5.4, 4.0, 150  # inches for one panel
SMALL = 8.5  # points: the size of labels beside a line or a point


class Look(NamedTuple):
    """Colour, marker and line of a series; the first three names and their values are those of `Axes.plot`."""

    color: str
    marker: str
    linestyle: Any = "-"
    rim: str = "white"

    def options(self) -> dict[str, Any]:
        """The keyword arguments for `Axes.plot`; a rim in the colour of the page keeps markers that overlap apart."""
        plain = {key: value for key, value in self._asdict().items() if key != "rim"}
        return {**plain, "markeredgecolor": self.rim, "markeredgewidth": 0.8}


@dataclass(frozen=True)
class Theme:
    """The colours of a light or of a dark page."""

    name: str
    page: str
    text: str
    edge: str  # of axes
    grid: str
    floor: str  # lines that bound a figure
    colours: tuple[str, ...]
    greys: tuple[str, ...]  # what is compared with, such as codecs

    def look(self, index: int) -> Look:
        """The look of the series number `index`: by colour and marker, which differ for the first 42."""
        return Look(self.colours[index % len(self.colours)], MARKERS[index % len(MARKERS)], rim=self.page)

    def background_look(self, index: int) -> Look:
        """The look of series that are compared with: grey, apart by their dashes and markers."""
        colour, marker = self.greys[index % len(self.greys)], BACKGROUND_MARKERS[index % len(BACKGROUND_MARKERS)]
        return Look(colour, marker, DASHES[index % len(DASHES)], self.page)

    def settings(self) -> dict[str, Any]:
        """matplotlib's settings."""
        colours = dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), self.text
        )
        pages = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), self.page)
        return {**SETTINGS, **colours, **pages, "axes.edgecolor": self.edge, "grid.color": self.grid}


# Okabe and Ito (2008). Their yellow is too pale for a white page, and their blue too dark for a black one.
LIGHT = Theme(
    name="light",
    page="#FFFFFF",
    text="#222222",
    edge="#999999",
    grid="#E4E4E4",
    floor="#888888",
    colours=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    greys=("#444444", "#777777", "#A0A0A0"),
)
DARK = Theme(
    name="dark",
    page="#0D1117",  # GitHub's
    text="#E6EDF3",
    edge="#6E7681",
    grid="#262C36",
    floor="#8B949E",
    colours=("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00"),
    greys=("#C9D1D9", "#9DA5AE", "#757D87"),
)
THEMES = (LIGHT, DARK)

SETTINGS: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that every machine draws the same
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "errorbar.capsize": 0,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,  # inches around each panel
}
Draw = Callable[["Figure", Sequence["Axes"], Theme], None]


class MissingMatplotlibError(ImportError):
    """Plots are wanted, and matplotlib isn't installed."""


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
    draw: Draw,
    columns: int = 1,
    rows: int = 1,
    size: tuple[float, float] = (WIDTH, HEIGHT),
    theme: Theme = LIGHT,
    **panels: Any,
) -> bytes:
    """Draws a figure in our style.

    Args:
        draw: gets the figure, its axes line by line, and the theme.
        columns: panels beside each other.
        rows: panels above each other.
        size: width and height of one panel in inches.
        theme: the page that the figure stands on.
        **panels: further arguments of `Figure.subplots`, such as `sharex`.

    Returns:
        a PNG file; the same for the same drawing and version of matplotlib.

    Raises:
        MissingMatplotlibError: as `check_matplotlib`.
    """
    check_matplotlib()
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", theme.settings()]):  # whatever the user's own style is
        figure = Figure(figsize=(size[0] * columns, size[1] * rows))
        draw(figure, list(figure.subplots(rows, columns, squeeze=False, **panels).flat), theme)
        content = io.BytesIO()
        around: dict[str, Any] = {
            "bbox_inches": "tight",
            "pad_inches": 0.1,
            "bbox_extra_artists": figure.legends + figure.texts,
        }
        figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None}, **around)
    return content.getvalue()


# ---------------------------------------------------------------- labels


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


def write_beside(axes: Axes, text: str, place: tuple[float, float], colour: str, rim: str = "white") -> Any:
    """Writes a short text to the right of a point, with a rim that keeps it readable on lines."""
    from matplotlib.patheffects import withStroke

    effects = [withStroke(linewidth=2.5, foreground=rim)]
    offset: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "zorder": 4}
    return axes.annotate(text, place, **offset, fontsize=SMALL, color=colour, path_effects=effects)


# Where a label may stand, best first: distance from its point in points, horizontal and vertical alignment.
PLACES = (
    ((7, 0), "left", "center"),
    ((0, 7), "center", "bottom"),
    ((0, -7), "center", "top"),
    ((5, 6), "left", "bottom"),
    ((5, -6), "left", "top"),
    ((-7, 0), "right", "center"),
    ((-5, 6), "right", "bottom"),
    ((-5, -6), "right", "top"),
    ((0, 19), "center", "bottom"),
    ((0, -19), "center", "top"),
    ((14, 17), "left", "bottom"),
    ((14, -17), "left", "top"),
)


def label_lines(axes: Axes, theme: Theme) -> None:
    """Writes the label of each line of a panel beside it, where least is covered and no other line is nearer.

    Call it when everything else is drawn and the limits are set. Lines whose label begins with "_" have none.
    """
    import numpy as np

    figure: Any = axes.figure
    figure.draw_without_rendering()  # lays the panels out; without it, nothing has its place yet
    lines: list[Any] = [line for line in axes.get_lines() if np.size(line.get_xdata())]
    points = [_dense_points(line) for line in lines]
    taken = [text.get_window_extent() for text in axes.texts]
    for number, line in enumerate(lines):
        if str(line.get_label()).startswith("_"):
            continue
        own, others = points[number], np.concatenate([np.empty((0, 2)), *points[:number], *points[number + 1 :]])
        text = write_beside(axes, str(line.get_label()), _spots(line)[0], line.get_color(), theme.page)
        text.set_in_layout(False)
        choices = [(spot, place) for place in PLACES for spot in _spots(line)]
        best = min(choices, key=lambda choice: _badness(_moved(text, *choice), axes, taken, own, others))
        taken.append(_moved(text, *best))


def _spots(line: Any) -> list[tuple[float, float]]:
    """Points of a line beside which its label may stand, best first: its ends, then points between them."""
    last = len(line.get_xdata()) - 1
    numbers = dict.fromkeys([last, 0, 3 * last // 4, last // 2, last // 4])
    return [(line.get_xdata()[number], line.get_ydata()[number]) for number in numbers]


def _moved(text: Any, spot: tuple[float, float], place: tuple[tuple[float, float], str, str]) -> Bbox:
    text.xy = spot
    text.set_position(place[0])
    text.set_horizontalalignment(place[1])
    text.set_verticalalignment(place[2])
    return text.get_window_extent()


def _dense_points(line: Any) -> np.ndarray:
    """Points on a line, so close to each other that no label slips between them; in pixels."""
    import numpy as np

    ends = line.get_transform().transform(np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float))
    return np.concatenate([ends, *(np.linspace(a, b, 40) for a, b in pairwise(ends))])


def _badness(box: Bbox, axes: Axes, taken: Sequence[Bbox], own: np.ndarray, others: np.ndarray) -> float:
    """What is bad about a label at `box`: other labels, a nearer line, the panel's border, covered lines."""
    frame = axes.get_window_extent()
    over = (frame.x0 - box.x0, frame.y0 - box.y0, box.x1 - frame.x1, box.y1 - frame.y1)
    labels = sum(box.padded(1).overlaps(other) for other in taken)
    covered = sum(float((_distances(box, points) == 0).sum()) for points in (own, others))
    is_nearer = len(others) > 0 and _distances(box, others).min() < 1.5 * _distances(box, own).min() + 4
    return 1000 * labels + 300 * is_nearer + 10 * sum(max(0.0, pixels) for pixels in over) + 4 * covered


def _distances(box: Bbox, points: np.ndarray) -> np.ndarray:
    """Distances of points from a box, 0 within it."""
    import numpy as np

    beside = np.maximum(np.maximum([box.x0, box.y0] - points, points - [box.x1, box.y1]), 0)
    return np.hypot(beside[:, 0], beside[:, 1])


# ---------------------------------------------------------------- ticks


def whole_ticks(axes: Axes, values: Sequence[int]) -> None:
    """Makes x logarithmic, with a tick at each of the whole numbers that occur."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sorted(set(values)), [str(value) for value in sorted(set(values))])
