"""Plots of a result file of `speed.py`: ratios as bars, growth as curves. matplotlib is imported where it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from _speed_tasks import AXES

Row = dict[str, Any]
# Of Okabe and Ito's palette, which colour-blind readers can tell apart, as they can in print by marker and dash.
OURS, OTHERS, INK, FAINT = "#0072B2", "#999999", "#222222", "#DDDDDD"
CURVES = {  # colour, marker, dash: by whether it is ours
    True: ((OURS, "o", "-"), ("#56B4E9", "D", "-")),
    False: (("#E69F00", "s", "--"), ("#D55E00", "^", "--")),
}
AXIS_LABELS = {"resolution": "side, pixels", "batch": "pictures in a call", "clip length": "frames of a clip"}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.dpi": 150,
}
BAR = 0.24  # inches


def write_plots(result: dict[str, Any], folder: Path) -> Iterator[Path]:
    """Writes `ratios-….png` and `growth-….png` for each dtype, eager or compiled, and yields their paths.

    Args:
        result: the content of a result file.
        folder: where to; made if there is anything to plot.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    settings = dict.fromkeys((row["dtype"], row["compiled"]) for row in result["rows"])
    for dtype, compiled in settings:
        rows = [row for row in result["rows"] if (row["dtype"], row["compiled"]) == (dtype, compiled)]
        name = dtype + ("-compiled" if compiled else "")
        caption = f"{dtype}{', compiled' if compiled else ''} – {where(result['environment'])}"
        plots = {"ratios": [r for r in rows if not r["axis"]], "growth": [r for r in rows if r["axis"]]}
        for kind, part in plots.items():
            if part:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{kind}-{name}.png"
                with matplotlib.rc_context(STYLE):
                    (plot_ratios if kind == "ratios" else plot_growth)(part, caption, path)
                yield path


def where(environment: dict[str, Any]) -> str:
    """Machine and version, for the caption."""
    machine = environment["machine"] if environment["device"] == "cpu" else environment["device"]
    return f"{machine}, torch {environment['torch']}"


def _new_figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


# ---------------------------------------------------------------- ratios


def plot_ratios(rows: Sequence[Row], caption: str, path: Path) -> None:
    """Bars from the peer's time to the left where a network is faster, to the right where it is slower."""
    from matplotlib.ticker import LogLocator

    panels = _panels([row for row in rows if row["peer"]])
    heights = [len(panel) + 0.4 for panel in panels.values()]
    figure = _new_figure(8, BAR * sum(heights) + 0.34 * len(panels) + 1.1)
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, panel) in zip(all_axes, panels.items(), strict=True):
        _draw_bars(axes, panel)
        axes.set_title(title)
    low, high = (limit(row["ratio_to_peer"]["median"] for row in rows if row["peer"]) for limit in (min, max))
    bottom = all_axes[-1]
    bottom.set_xscale("log")
    bottom.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
    bottom.set_xlim(min(low, 1) / 1.9, max(high, 1) * 1.9)  # room for the numbers
    bottom.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    bottom.minorticks_off()
    bottom.set_xlabel("← faster than the peer      time ÷ the peer's      slower →")
    figure.suptitle(f"Time as a ratio to a peer\n{caption}", x=0.01, ha="left", fontsize=11)
    figure.savefig(path)


def _panels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(f"{row['group']}, {size_label(row['size'])}, peer: {row['peer']}", []).append(row)
    return panels


def size_label(size: dict[str, Any]) -> str:
    """As in the table."""
    frames = [] if size["frames"] is None else [str(size["frames"])]
    return "×".join([str(size["batch"]), *frames, f"{size['side']}²"])


def _draw_bars(axes: Any, rows: Sequence[Row]) -> None:
    ratios = [row["ratio_to_peer"]["median"] for row in rows]
    places = range(len(rows))
    colours = [OURS if row["is_ours"] else OTHERS for row in rows]
    axes.barh(places, [ratio - 1 for ratio in ratios], left=1, color=colours, height=0.72)
    axes.axvline(1, color=INK, linewidth=1)
    for place, ratio in zip(places, ratios, strict=True):
        side = -1 if ratio < 1 else 1
        axes.annotate(
            f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}",
            (ratio, place),
            xytext=(4 * side, 0),
            textcoords="offset points",
            ha="right" if side < 0 else "left",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(places, [f"{row['network']}, {row['job']}" for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(OURS if row["is_ours"] else INK)
    axes.set_ylim(len(rows) - 0.3, -0.7)  # from top to bottom
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


# ---------------------------------------------------------------- growth


def plot_growth(rows: Sequence[Row], caption: str, path: Path) -> None:
    """Seconds along each axis: encoding above, decoding below."""
    jobs = [job for job in ("encode", "decode") if any(row["job"].startswith(job) for row in rows)]
    axes_names = [axis for axis in AXES if any(row["axis"] == axis for row in rows)]
    figure = _new_figure(1.2 + 3.1 * len(axes_names), 1.6 + 2.3 * len(jobs))
    grid = figure.subplots(len(jobs), len(axes_names), squeeze=False, sharex="col", sharey=True)
    styles: dict[str, tuple[str, str, str]] = {}
    for is_ours, curves in CURVES.items():
        networks = dict.fromkeys(row["network"] for row in rows if row["is_ours"] == is_ours)
        styles |= dict(zip(networks, curves, strict=False))
    lines: dict[str, Any] = {}
    for line, job in zip(grid, jobs, strict=True):
        for axes, axis in zip(line, axes_names, strict=True):
            part = [row for row in rows if row["axis"] == axis and row["job"].startswith(job)]
            lines |= _draw_curves(axes, part, axis, styles)
            axes.set_title(f"{'encode' if job == 'encode' else 'decode (ours: 1 step)'}, {_fixed(part, axis)}")
        line[0].set_ylabel("seconds")
    for axes, axis in zip(grid[-1], axes_names, strict=True):
        axes.set_xlabel(AXIS_LABELS[axis])
    figure.suptitle(f"Growth of time\n{caption}", x=0.01, ha="left", fontsize=11)
    figure.legend(lines.values(), lines, loc="outside lower left", ncols=len(lines), frameon=False)
    figure.savefig(path)


def _fixed(rows: Sequence[Row], axis: str) -> str:
    """What does not grow, in words."""
    size = rows[0]["size"]
    if axis == "resolution":
        return "one picture" if size["batch"] == 1 else f"{size['batch']} pictures"
    return f"{size['side']}²" + (" pictures" if axis == "batch" else " clip")


def _draw_curves(axes: Any, rows: Sequence[Row], axis: str, styles: dict[str, tuple[str, str, str]]) -> dict[str, Any]:
    lines = {}
    key = {"resolution": "side", "batch": "batch", "clip length": "frames"}[axis]
    for network in dict.fromkeys(row["network"] for row in rows):
        points = sorted((row["size"][key], row["seconds"]["median"]) for row in rows if row["network"] == network)
        colour, marker, dash = styles[network]
        x, y = zip(*points, strict=True)
        (lines[network],) = axes.plot(x, y, color=colour, marker=marker, linestyle=dash, markersize=5)
    ticks = sorted({row["size"][key] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.grid(color=FAINT, linewidth=0.6)
    return lines
