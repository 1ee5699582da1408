"""Draw the curves of one or more runs (the phases of one training, in order), or of a bundled model.

python examples/plot_training.py runs/ul-photo-f8 runs/ul-photo-f8-large-crops -o curve.png
python examples/plot_training.py ul_tokenizer/pretrained/ul-photo-f8 -o curve.png --theme dark

A run has its figures in metrics.jsonl, a bundled model in training_curve.json. Needs matplotlib (the `plot` extra).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ul_tokenizer.evaluation.report.style import LIGHT, THEMES, Theme, label_lines, render
from ul_tokenizer.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[int, float]]
PANELS = {  # title → what it shows: name of a series → its label
    "Loss terms, bits per pixel": {
        "decoder_loss_bits_per_pixel": "decoder",
        "prior_bits_per_pixel": "prior",
        "terminal_kl_bits_per_pixel": "terminal KL",
    },
    "Held-out PSNR, dB": {
        "validation/mean_of_psnr_1_step": "1 step, mean of PSNRs",
        "validation/psnr_1_step": "1 step",
        "validation/psnr_4_steps": "4 steps",
    },
    "Held-out bits per pixel": {"validation/bits_per_pixel": ""},
    "Held-out bits per latent dimension": {"validation/bits_per_latent_dim": ""},
    "Held-out loss": {"validation/loss": ""},
    "Gap to another image's latent, dB": {"validation/latent_gap_db": ""},
    "Flicker of held-out clips": {"validation/flicker": ""},
}
LOGARITHMIC = ("Loss terms, bits per pixel",)
COLUMNS = 2


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The logged lines of a run, or of a bundled model."""
    curve = folder / "training_curve.json"
    if curve.is_file() and not (folder / "metrics.jsonl").exists():
        parts = json.loads(curve.read_text(encoding="utf-8"))
        return [*parts["training"], *parts["validation"]]
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def read_runs(folders: Sequence[Path]) -> tuple[dict[str, Points], list[int]]:
    """Series by name over steps counted through all runs, and the steps at which a run ends."""
    series: dict[str, Points] = {}
    borders, offset = [], 0
    for folder in folders:
        rows = read_rows(folder)
        for row in rows:
            for name, value in row.items():
                if name != "step" and value is not None:
                    series.setdefault(name, []).append((offset + row["step"], value))
        offset += max(row["step"] for row in rows)
        borders.append(offset)
    return series, borders[:-1]


def draw_panel(axes: Axes, title: str, series: dict[str, Points], theme: Theme) -> None:
    """One panel, with a label beside each line if there are several."""
    names = {name: label for name, label in PANELS[title].items() if name in series}
    for (name, label), colour in zip(names.items(), theme.colours, strict=False):
        steps, values = zip(*sorted(series[name]), strict=True)
        axes.plot(steps, values, label=label or "_", linewidth=1.4, color=colour)
    if title in LOGARITHMIC:
        axes.set_yscale("log")
    axes.set_title(title)


def draw_runs(folders: Sequence[Path], theme: Theme = LIGHT) -> bytes:
    """The curves of runs as a PNG file: a panel for whatever they logged."""
    series, borders = read_runs(folders)
    titles = [title for title, names in PANELS.items() if names.keys() & series.keys()]

    def draw(_: Figure, panels: Sequence[Axes], theme: Theme) -> None:
        for axes, title in zip(panels, titles, strict=False):
            draw_panel(axes, title, series, theme)
            for border in borders:
                axes.axvline(border, color=theme.floor, linestyle=":", linewidth=1, label="_")
        for axes in panels[len(titles) :]:
            axes.set_axis_off()
        for axes in panels[max(len(titles) - COLUMNS, 0) : len(titles)]:
            axes.set_xlabel("step")
        for axes in panels[: len(titles)]:
            label_lines(axes, theme)

    return render(draw, columns=COLUMNS, rows=-(-len(titles) // COLUMNS), size=(5.2, 2.7), theme=theme)


def main() -> None:
    """Reads, draws, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", type=Path, nargs="+", help="output folders of training runs, or a bundled model's folder"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("curve.png"))
    parser.add_argument("--theme", choices=[theme.name for theme in THEMES], default=LIGHT.name)
    args = parser.parse_args()
    (theme,) = (theme for theme in THEMES if theme.name == args.theme)
    write_whole(args.output, draw_runs(args.runs, theme))


if __name__ == "__main__":
    main()
