"""The plots of a report: rate against distortion, distances against steps, and PSNR frame by frame.

The README's plot of rates is `rate_plot`, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase as fnmatch
from typing import TYPE_CHECKING, NamedTuple

from ul_tokenizer.evaluation.report.style import (
    HEIGHT,
    LIGHT,
    WIDTH,
    Look,
    Theme,
    label_lines,
    legend_beside,
    render,
    whole_ticks,
    write_beside,
)
from ul_tokenizer.evaluation.results import Row, Section, is_codec, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BITS, PSNR = "metrics.bits_per_pixel", "metrics.psnr_of_mean_mse"
NOMINAL = "nominal"  # how the kind of bits begins that no prior and no file gave
FLOOR_LABEL = "floor: real against real"
Families = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Series:
    """Results that are joined by a line, in their order along it."""

    label: str
    rows: list[Row] = field(default_factory=list)
    is_family: bool = False  # whether these are models of several rates

    @property
    def is_codec(self) -> bool:
        """Whether these are qualities of one codec."""
        return is_codec(self.rows[0].result)


def series_of(rows: Iterable[Row], label: Callable[[Row], str]) -> list[Series]:
    """Groups rows by a label, in the order of their first rows."""
    found: dict[str, Series] = {}
    for row in rows:
        found.setdefault(label(row), Series(label(row))).rows.append(row)
    return list(found.values())


def looks(series: Sequence[Series], theme: Theme) -> list[Look]:
    """A look for each series: colours for models, grey for codecs."""
    models, codecs = 0, 0
    chosen = []
    for one in series:
        chosen.append(theme.background_look(codecs) if one.is_codec else theme.look(models))
        codecs, models = codecs + one.is_codec, models + (not one.is_codec)
    return chosen


# ---------------------------------------------------------------- rate and distortion


class Axis(NamedTuple):
    """What stands against the bits: a figure of a result, its name, and the factor that makes it readable."""

    path: str
    name: str
    scale: float = 1.0


QUALITY = Axis(PSNR, "PSNR of the mean MSE (dB)")


def rate_distortion(section: Section, families: Families | None = None) -> bytes | None:
    """Bits per pixel against PSNR: codecs as curves, models as points, those of several steps joined.

    Args:
        section: results of one protocol.
        families: see `rate_plot`.

    Returns:
        a PNG file; None if fewer than two results have both figures.
    """
    return rate_plot(section.rows, [QUALITY], families=families)


def rate_plot(
    rows: Sequence[Row],
    axes: Sequence[Axis],
    theme: Theme = LIGHT,
    intervals: bool = True,
    size: tuple[float, float] = (WIDTH, HEIGHT + 0.4),
    families: Families | None = None,
) -> bytes | None:
    """Bits per pixel against one or several figures, in a panel for each.

    Args:
        rows: results of one protocol.
        axes: the figures.
        theme: light or dark.
        intervals: whether to draw them.
        size: width and height of a panel in inches.
        families: name → patterns of the names of models that differ in their rate. Those of a family are joined, a
            line for each number of steps.

    Returns:
        a PNG file; None if no panel has two results.
    """
    found = {axis: [row for row in rows if _value(row, BITS) and _value(row, axis.path) is not None] for axis in axes}
    panels = {axis: _rate_series(part, families or {}) for axis, part in found.items() if len(part) > 1}
    if not panels:
        return None

    def draw(_: Figure, all_axes: Sequence[Axes], theme: Theme) -> None:
        for one, (axis, series) in zip(all_axes, panels.items(), strict=True):
            _draw_rate_panel(one, axis, series, theme, intervals)

    return render(draw, columns=len(panels), size=size, theme=theme)


def _rate_series(rows: Sequence[Row], families: Families) -> list[Series]:
    series = series_of(rows, lambda row: _rate_label(row, family_of(row, families)))
    return [_by_rate(one, family_of(one.rows[0], families)) for one in series]


def _by_rate(series: Series, family: str | None) -> Series:
    """Qualities of a codec and members of a family by their bits; steps of a model stay in their order."""
    rows = sorted(series.rows, key=lambda row: _known(row, BITS)) if series.is_codec or family else series.rows
    return Series(series.label, rows, family is not None)


def family_of(row: Row, families: Families) -> str | None:
    """The first family one of whose patterns fits the model's name, or the last part of its path; None if none does."""
    name = str(row.result["subject"]["name"])
    spellings = () if is_codec(row.result) else (name, name.rstrip("/").rpartition("/")[2])
    fits = (family for family, patterns in families.items() for p in patterns if any(fnmatch(s, p) for s in spellings))
    return next(fits, None)


def _rate_label(row: Row, family: str | None) -> str:
    """What the line of a result is called: its codec, its model whatever the steps, or its family at these steps."""
    if family is None:
        return label_of(row.result, without=("name", "num_inference_steps"))
    return label_of({**row.result, "subject": {**row.result["subject"], "name": family}})


def _draw_rate_panel(axes: Axes, axis: Axis, series: Sequence[Series], theme: Theme, intervals: bool) -> None:
    axes.set_xscale("log")
    axes.margins(x=0.12)  # room for labels
    for one, style in zip(series, looks(series, theme), strict=True):
        _draw_rates(axes, axis, one, style)
        for row in one.rows if intervals else ():
            _draw_interval(axes, axis, row, style)
    _plain_rate_ticks(axes)
    axes.set_xlabel("bits per pixel")
    axes.set_ylabel(axis.name)
    label_lines(axes, theme)


def _draw_rates(axes: Axes, axis: Axis, series: Series, style: Look) -> None:
    x, y = [_known(row, BITS) for row in series.rows], [axis.scale * _known(row, axis.path) for row in series.rows]
    nominal = str(series.rows[0].figure(f"{BITS}.kind")).startswith(NOMINAL)
    label = f"{series.label} (nominal bits)" if nominal else series.label
    options = style.options()
    options["zorder"] = 2 if series.is_codec else 3
    if len(series.rows) == 1:
        options["linestyle"] = "none"
    if nominal:
        options |= {"markerfacecolor": style.rim, "markeredgecolor": style.color, "markeredgewidth": 1.4}
    axes.plot(x, y, **options, label=label)
    has_steps = all(row.figure("subject.num_inference_steps") for row in series.rows)
    if len(series.rows) > 1 and has_steps and not series.is_family:
        _name_steps(axes, series, list(zip(x, y, strict=True)), style)


def _draw_interval(axes: Axes, axis: Axis, row: Row, style: Look) -> None:
    low, high = (row.figure(f"{axis.path}.{end}") for end in ("low", "high"))
    if low is not None and high is not None:
        ends = (axis.scale * low, axis.scale * high)
        axes.vlines(_known(row, BITS), *ends, color=style.color, linewidth=1, alpha=0.55, zorder=1)


def _name_steps(axes: Axes, series: Series, places: Sequence[tuple[float, float]], style: Look) -> None:
    """Writes the numbers of steps of the lowest and of the highest point beside them."""
    ordered = sorted(zip(places, series.rows, strict=True), key=lambda pair: pair[0][1])
    for place, row in (ordered[0], ordered[-1]):
        steps = row.figure("subject.num_inference_steps")
        write_beside(axes, f"{steps} step{'' if steps == 1 else 's'}", place, style.color, style.rim)


def _plain_rate_ticks(axes: Axes) -> None:
    """Ticks as plain numbers: 1, 2, 5, 10, …, and more of them where the axis is shorter than a power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 4, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _value(row: Row, path: str) -> float | None:
    value = row.figure(f"{path}.value")
    return None if value is None else float(value)


def _known(row: Row, path: str) -> float:
    """The same where it is known to have been measured."""
    return float(row.figure(f"{path}.value"))


# ---------------------------------------------------------------- distances


class Panel(NamedTuple):
    """One distance in a figure: its title, where it stands in a result, and the factor that makes it readable."""

    title: str
    path: str
    scale: float


def steps_of(row: Row, axis: str) -> int | None:
    """Steps of the decoder or of the sampler that made a result.

    Args:
        row: the result.
        axis: "decoder" or "sampling".
    """
    key = _steps_key(row, axis)
    return None if key is None else row.figure(f"subject.{key}")


def _steps_key(row: Row, axis: str) -> str | None:
    """The part of a subject that holds the steps; the steps of a reconstruction are those of its decoder."""
    if row.result["kind"] == "generation":
        return "decoder_num_inference_steps" if axis == "decoder" else "num_inference_steps"
    return "num_inference_steps" if axis == "decoder" else None


def distance_against_steps(rows: Sequence[Row], net: str, axis: str) -> bytes | None:
    """Fréchet distance and KID against numbers of steps, with the floor, real images against real ones, as a line.

    Args:
        rows: results of one section whose distances were measured on the same network.
        net: its key in `distances`.
        axis: "decoder" or "sampling".

    Returns:
        a PNG file; None if nothing was measured at several numbers of steps.
    """
    panels = [panel for panel in _panels(rows, net) if _lines(rows, panel, axis)]
    if not panels:
        return None

    lines = {panel: _lines(rows, panel, axis) for panel in panels}
    others = [row for row in rows if not is_codec(row.result) and steps_of(row, axis) is None]
    labels = dict.fromkeys([*(one.label for panel in panels for one in lines[panel]), *(row.label for row in others)])

    def draw(figure: Figure, axes: Sequence[Axes], theme: Theme) -> None:
        palette = {label: theme.look(index) for index, label in enumerate(labels)}
        for one, panel in zip(axes, panels, strict=True):
            _draw_lines(one, lines[panel], panel, axis, palette)
            _draw_levels(one, others, panel, palette)
            _draw_floors(one, rows, panel, theme)
            if one.dataLim.y0 >= 0:  # a KID can be negative
                one.set_ylim(bottom=0)
            one.set_xlabel("steps of the decoder" if axis == "decoder" else "steps of the sampler")
            one.set_title(panel.title)
        legend_beside(figure, *axes, last=FLOOR_LABEL)

    return render(draw, columns=len(panels), size=(4.2, HEIGHT))


def _panels(rows: Sequence[Row], net: str) -> list[Panel]:
    names = [name for row in rows if (name := row.figure(f"distances.{net}.frechet.name"))]
    return [
        Panel(names[0] if names else "Fréchet distance", f"distances.{net}.frechet", 1.0),
        Panel(f"KID × 1000 ({net})", f"distances.{net}.kid", 1000.0),
    ]


def _lines(rows: Sequence[Row], panel: Panel, axis: str) -> list[Series]:
    """What has the distance at several numbers of steps."""
    found = [row for row in rows if _value(row, panel.path) is not None and steps_of(row, axis)]
    series = series_of(found, lambda row: label_of(row.result, without=(str(_steps_key(row, axis)),)))
    return [one for one in series if len(one.rows) > 1]


def _draw_lines(axes: Axes, lines: Sequence[Series], panel: Panel, axis: str, palette: Mapping[str, Look]) -> None:
    steps: list[int] = []
    for one in lines:
        x = [steps_of(row, axis) or 1 for row in one.rows]
        y = [panel.scale * _known(row, panel.path) for row in one.rows]
        axes.plot(x, y, **palette[one.label].options(), label=one.label)
        steps += x
    whole_ticks(axes, steps)


def _draw_levels(axes: Axes, rows: Sequence[Row], panel: Panel, palette: Mapping[str, Look]) -> None:
    """Draws models without steps as lines across the panel."""
    for row in rows:
        value = _value(row, panel.path)
        if value is not None:
            colour = palette[row.label].color
            axes.axhline(panel.scale * value, color=colour, linewidth=1.2, label=f"{row.label} (no steps)")


def _draw_floors(axes: Axes, rows: Sequence[Row], panel: Panel, theme: Theme) -> None:
    floors = {row.figure(f"{panel.path}.floor") for row in rows} - {None}
    for number, floor in enumerate(sorted(floors)):
        label = FLOOR_LABEL if number == 0 else None
        axes.axhline(panel.scale * floor, color=theme.floor, linestyle=":", linewidth=1.6, label=label, zorder=1)


# ---------------------------------------------------------------- frames


def psnr_per_frame(section: Section) -> bytes | None:
    """PSNR of each frame of a clip.

    Args:
        section: results of one protocol.

    Returns:
        a PNG file; None if no result has these figures.
    """
    rows = [row for row in section.rows if row.figure("metrics.psnr_per_frame.value")]
    if not rows:
        return None

    def draw(figure: Figure, panels: Sequence[Axes], theme: Theme) -> None:
        from matplotlib.ticker import MaxNLocator

        axes, series = panels[0], [Series(row.label, [row]) for row in rows]
        for one, style in zip(series, looks(series, theme), strict=True):
            values = one.rows[0].figure("metrics.psnr_per_frame.value")
            known = [math.nan if value is None else value for value in values]  # null is infinite
            axes.plot(range(1, len(values) + 1), known, **style.options(), label=one.label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("frame")
        axes.set_ylabel("PSNR (dB)")
        legend_beside(figure, axes)

    return render(draw)
