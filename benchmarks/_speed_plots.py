"""Plots of a result file of `speed.py`: ratios as bars, growth as curves. matplotlib is imported where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from _speed_tasks import AXES

from ul_tokenizer.evaluation.report.style import LIGHT, SMALL, Look, Theme, legend_beside, render, whole_ticks
from ul_tokenizer.files import write_whole

Row = dict[str, Any]
AXIS_LABELS = {"resolution": "side, pixels", "batch": "pictures in a call", "clip length": "frames of a clip"}
BAR = 0.24  # inches


def write_plots(result: dict[str, Any], folder: Path, theme: Theme = LIGHT) -> Iterator[Path]:
    """Writes `ratios-….png` and `growth-….png` for each dtype, eager or compiled, and yields their paths.

    Args:
        result: the content of a result file.
        folder: where to; made if there is anything to plot.
        theme: light or dark.

    Raises:
        ImportError: matplotlib is not installed.
    """
    plots: dict[str, Callable[..., bytes]] = {"ratios": plot_ratios, "growth": plot_growth}
    for dtype, compiled in dict.fromkeys((row["dtype"], row["compiled"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["dtype"], row["compiled"]) == (dtype, compiled)]
        name = dtype + ("-compiled" if compiled else "")
        caption = f"{dtype}{', compiled' if compiled else ''} – {where(result['environment'])}"
        for kind, plot in plots.items():
            if part := [row for row in rows if bool(row["axis"]) == (kind == "growth")]:
                path, content = folder / f"{kind}-{name}.png", plot(part, caption, theme)
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(path, content)
                yield path


def where(environment: dict[str, Any]) -> str:
    """Machine and version, for the caption."""
    machine = environment["machine"] if environment["device"] == "cpu" else environment["device"]
    return f"{machine}, torch {environment['torch']}"


# ---------------------------------------------------------------- ratios


def plot_ratios(rows: Sequence[Row], caption: str, theme: Theme = LIGHT) -> bytes:
    """Bars from the peer's time to the left where a network is faster, to the right where it is slower; a PNG file."""
    panels = _panels([row for row in rows if row["peer"]])
    heights = [len(panel) + 0.4 for panel in panels.values()]
    height = BAR * sum(heights) + 0.34 * len(panels) + 1.1

    def draw(figure: Any, all_axes: Sequence[Any], theme: Theme) -> None:
        for axes, (title, panel) in zip(all_axes, panels.items(), strict=True):
            _draw_bars(axes, panel, theme)
            axes.set_title(title)
        _scale_ratios(all_axes[-1], [row["ratio_to_peer"]["median"] for row in rows if row["peer"]])
        figure.suptitle(f"Time as a ratio to a peer\n{caption}", x=0.01, ha="left", fontsize=11)

    size = (8, height / len(panels))
    return render(draw, rows=len(panels), size=size, theme=theme, sharex=True, height_ratios=heights)


def _scale_ratios(axes: Any, ratios: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(ratios) / min(ratios) < 1000 else (1,)))
    axes.set_xlim(min(*ratios, 1) / 1.9, max(*ratios, 1) * 1.9)  # room for the numbers
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("← faster than the peer      time ÷ the peer's      slower →")


def _panels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(f"{row['group']}, {size_label(row['size'])}, peer: {row['peer']}", []).append(row)
    return panels


def size_label(size: dict[str, Any]) -> str:
    """As in the table."""
    frames = [] if size["frames"] is None else [str(size["frames"])]
    return "×".join([str(size["batch"]), *frames, f"{size['side']}²"])


def _draw_bars(axes: Any, rows: Sequence[Row], theme: Theme) -> None:
    ours, others = theme.colours[0], theme.greys[-1]
    ratios = [row["ratio_to_peer"]["median"] for row in rows]
    places = range(len(rows))
    colours = [ours if row["is_ours"] else others for row in rows]
    axes.barh(places, [ratio - 1 for ratio in ratios], left=1, color=colours, height=0.72)
    axes.axvline(1, color=theme.text, linewidth=1)
    for place, ratio in zip(places, ratios, strict=True):
        side = -1 if ratio < 1 else 1
        axes.annotate(
            f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}",
            (ratio, place),
            xytext=(4 * side, 0),
            textcoords="offset points",
            ha="right" if side < 0 else "left",
            va="center",
            fontsize=SMALL,
        )
    axes.set_yticks(places, [f"{row['network']}, {row['job']}" for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(ours if row["is_ours"] else theme.text)
    axes.set_ylim(len(rows) - 0.3, -0.7)  # from top to bottom
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


# ---------------------------------------------------------------- growth


def plot_growth(rows: Sequence[Row], caption: str, theme: Theme = LIGHT) -> bytes:
    """Seconds along each axis: encoding above, decoding below; a PNG file."""
    jobs = [job for job in ("encode", "decode") if any(row["job"].startswith(job) for row in rows)]
    names = [axis for axis in AXES if any(row["axis"] == axis for row in rows)]

    def draw(figure: Any, panels: Sequence[Any], theme: Theme) -> None:
        styles = _looks(rows, theme)
        places = [(job, axis) for job in jobs for axis in names]
        for axes, (job, axis) in zip(panels, places, strict=True):
            part = [row for row in rows if row["axis"] == axis and row["job"].startswith(job)]
            _draw_curves(axes, part, axis, styles)
            axes.set_title(f"{'encode' if job == 'encode' else 'decode (ours: 1 step)'}, {_fixed(part, axis)}")
            if axis == names[0]:
                axes.set_ylabel("seconds")
            if job == jobs[-1]:
                axes.set_xlabel(AXIS_LABELS[axis])
        figure.suptitle(f"Growth of time\n{caption}", x=0.01, ha="left", fontsize=11)
        legend_beside(figure, *panels)

    size = (3.6, 2.3 + 1.2 / len(jobs))
    return render(draw, len(names), len(jobs), size, theme, sharex="col", sharey=True)


def _looks(rows: Sequence[Row], theme: Theme) -> dict[str, Look]:
    """Colours for our networks, grey for the others."""
    ours = dict.fromkeys(row["network"] for row in rows if row["is_ours"])
    others = dict.fromkeys(row["network"] for row in rows if not row["is_ours"])
    looks = {network: theme.look(index) for index, network in enumerate(ours)}
    return looks | {network: theme.background_look(index) for index, network in enumerate(others)}


def _fixed(rows: Sequence[Row], axis: str) -> str:
    """What does not grow, in words."""
    size = rows[0]["size"]
    if axis == "resolution":
        return "one picture" if size["batch"] == 1 else f"{size['batch']} pictures"
    return f"{size['side']}²" + (" pictures" if axis == "batch" else " clip")


def _draw_curves(axes: Any, rows: Sequence[Row], axis: str, looks: dict[str, Look]) -> None:
    key = {"resolution": "side", "batch": "batch", "clip length": "frames"}[axis]
    for network in dict.fromkeys(row["network"] for row in rows):
        points = sorted((row["size"][key], row["seconds"]["median"]) for row in rows if row["network"] == network)
        x, y = zip(*points, strict=True)
        axes.plot(x, y, **looks[network].options(), label=network)
    whole_ticks(axes, [row["size"][key] for row in rows])
    axes.set_yscale("log")
    axes.margins(x=0.15, y=0.15)  # room for labels
    axes.tick_params(axis="y", which="minor", left=False, labelleft=False)
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
