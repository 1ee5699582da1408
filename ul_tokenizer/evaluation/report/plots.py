"""The plots of a report: rate against distortion, distances against steps, and PSNR frame by frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase as fnmatch
from typing import TYPE_CHECKING, NamedTuple

from ul_tokenizer.evaluation.report.style import (
    FLOOR,
    HEIGHT,
    WIDTH,
    Look,
    background_look,
    legend_beside,
    look,
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


def looks(series: Sequence[Series]) -> list[Look]:
    """A look for each series: colours for models, grey for codecs."""
    models, codecs = 0, 0
    chosen = []
    for one in series:
        chosen.append(background_look(codecs) if one.is_codec else look(models))
        codecs, models = codecs + one.is_codec, models + (not one.is_codec)
    return chosen


# ---------------------------------------------------------------- rate and distortion


def rate_distortion(section: Section, families: Families | None = None) -> bytes | None:
    """Bits per pixel against PSNR: codecs as curves, models as points, those of several steps joined.

    Args:
        section: results of one protocol.
        families: name → patterns of the names of models that differ in their rate. Those of a family are joined, a
            line for each number of steps.

    Returns:
        a PNG file; None if fewer than two results have both figures.
    """
    rows = [row for row in section.rows if _value(row, BITS) and _value(row, PSNR) is not None]
    if len(rows) < 2:
        return None
    members = {row.path: family for row in rows if (family := family_of(row, families or {}))}
    series = series_of(rows, lambda row: _rate_label(row, members.get(row.path)))
    in_order = {row.path: _known(row, BITS) for row in rows if row.path in members or is_codec(row.result)}
    series = [Series(one.label, sorted(one.rows, key=lambda row: in_order.get(row.path, 0.0))) for one in series]

    def draw(figure: Figure, panels: Sequence[Axes]) -> None:
        axes = panels[0]
        axes.set_xscale("log")
        for one, style in zip(series, looks(series), strict=True):
            _draw_rates(axes, one, style)
            if len(one.rows) > 1 and one.rows[0].path not in members:
                _name_steps(axes, one, style)
        _plain_rate_ticks(axes)
        axes.set_xlabel("bits per pixel")
        axes.set_ylabel("PSNR of the mean MSE (dB)")
        legend_beside(figure, axes)

    return render(draw, size=(WIDTH, HEIGHT + 0.4))


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


def _draw_rates(axes: Axes, series: Series, style: Look) -> None:
    x, y = ([_known(row, path) for row in series.rows] for path in (BITS, PSNR))
    nominal = str(series.rows[0].figure(f"{BITS}.kind")).startswith(NOMINAL)
    label = f"{series.label} (nominal bits)" if nominal else series.label
    options = style.options()
    options["zorder"] = 2 if series.is_codec else 3
    if len(series.rows) == 1:
        options["linestyle"] = "none"
    if nominal:
        options |= {"markerfacecolor": "white", "markeredgecolor": style.color, "markeredgewidth": 1.4}
    axes.plot(x, y, **options, label=label)
    for row in series.rows:
        _draw_interval(axes, row, style)


def _draw_interval(axes: Axes, row: Row, style: Look) -> None:
    low, high = row.figure(f"{PSNR}.low"), row.figure(f"{PSNR}.high")
    if low is not None and high is not None:
        axes.vlines(_known(row, BITS), low, high, color=style.color, linewidth=1, alpha=0.55, zorder=1)


def _name_steps(axes: Axes, series: Series, style: Look) -> None:
    """Writes the numbers of steps of the first and of the last point beside them, if all points have one."""
    if not all(row.figure("subject.num_inference_steps") for row in series.rows):
        return
    for row in (series.rows[0], series.rows[-1]):
        steps, place = row.figure("subject.num_inference_steps"), (_known(row, BITS), _known(row, PSNR))
        write_beside(axes, f"{steps} step{'' if steps == 1 else 's'}", place, style.color)


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
    palette = {label: look(index) for index, label in enumerate(labels)}

    def draw(figure: Figure, axes: Sequence[Axes]) -> None:
        for one, panel in zip(axes, panels, strict=True):
            _draw_lines(one, lines[panel], panel, axis, palette)
            _draw_levels(one, others, panel, palette)
            _draw_floors(one, rows, panel)
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


def _draw_floors(axes: Axes, rows: Sequence[Row], panel: Panel) -> None:
    floors = {row.figure(f"{panel.path}.floor") for row in rows} - {None}
    for number, floor in enumerate(sorted(floors)):
        label = FLOOR_LABEL if number == 0 else None
        axes.axhline(panel.scale * floor, color=FLOOR, linestyle=":", linewidth=1.6, label=label, zorder=1)


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

    def draw(figure: Figure, panels: Sequence[Axes]) -> None:
        from matplotlib.ticker import MaxNLocator

        axes, series = panels[0], [Series(row.label, [row]) for row in rows]
        for one, style in zip(series, looks(series), strict=True):
            values = one.rows[0].figure("metrics.psnr_per_frame.value")
            known = [math.nan if value is None else value for value in values]  # null is infinite
            axes.plot(range(1, len(values) + 1), known, **style.options(), label=one.label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("frame")
        axes.set_ylabel("PSNR (dB)")
        legend_beside(figure, axes)

    return render(draw)
