"""Draw the curves of one or more runs (the phases of one training, in order) from their metrics.jsonl.

python examples/plot_training.py runs/ul-photo-f8 runs/ul-photo-f8-large-crops -o curve.png

Needs matplotlib (the `plot` extra).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ul_tokenizer.evaluation.report.style import COLOURS, render
from ul_tokenizer.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {  # title → the series in it
    "loss terms, bits per pixel": ["decoder_loss_bits_per_pixel", "prior_bits_per_pixel", "terminal_kl_bits_per_pixel"],
    "held-out PSNR, dB": ["validation/psnr_1_step", "validation/psnr_4_steps", "validation/mean_of_psnr_1_step"],
    "held-out latent: bits per pixel": ["validation/bits_per_pixel"],
    "prior's weight, and gap to another image's latent / 20 dB": ["prior_weight", "validation/latent_gap_db"],
}


def read_runs(folders: list[Path]) -> tuple[dict[str, list[tuple[int, float]]], list[int]]:
    """Series by name over steps counted through all runs, and the steps at which a run ends."""
    series: dict[str, list[tuple[int, float]]] = {}
    borders, offset = [], 0
    for folder in folders:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        for row in rows:
            for name, value in row.items():
                if name != "step" and value is not None:
                    series.setdefault(name, []).append((offset + row["step"], value))
        offset += max(row["step"] for row in rows)
        borders.append(offset)
    return series, borders[:-1]


def draw_panel(axes: Axes, title: str, names: list[str], series: dict[str, list[tuple[int, float]]]) -> None:
    """One panel."""
    for name, colour in zip(names, COLOURS, strict=False):
        points = series.get(name, [])
        scale = 1 / 20 if name.endswith("gap_db") else 1.0
        steps, values = [step for step, _ in points], [value * scale for _, value in points]
        axes.plot(steps, values, label=name, linewidth=1.2, color=colour)
    axes.set_title(title)
    axes.legend()


def main() -> None:
    """Reads, draws, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of training runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("curve.png"))
    args = parser.parse_args()
    series, borders = read_runs(args.runs)

    def draw(figure: Figure, panels: Sequence[Axes]) -> None:
        for axes, (title, names) in zip(panels, PANELS.items(), strict=True):
            draw_panel(axes, title, names, series)
            for border in borders:
                axes.axvline(border, color="grey", linestyle=":", linewidth=1)
        panels[0].set_yscale("log")
        for axes in panels[2:]:
            axes.set_xlabel("step")

    write_whole(args.output, render(draw, columns=2, rows=2, size=(5.5, 3.4)))


if __name__ == "__main__":
    main()
