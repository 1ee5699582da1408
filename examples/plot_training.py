"""Draw the curves of one or more runs (the phases of one training, in order) from their metrics.jsonl.

python examples/plot_training.py runs/ul-photo-f8 runs/ul-photo-f8-large-crops -o curve.png

Needs matplotlib (the `dev` extra).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

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


def draw(axes: Axes, title: str, names: list[str], series: dict[str, list[tuple[int, float]]]) -> None:
    """One panel."""
    for name in names:
        points = series.get(name, [])
        scale = 1 / 20 if name.endswith("gap_db") else 1.0
        axes.plot([step for step, _ in points], [value * scale for _, value in points], label=name, linewidth=1)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def main() -> None:
    """Reads, draws, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of training runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("curve.png"))
    args = parser.parse_args()
    series, borders = read_runs(args.runs)
    figure, grid = plt.subplots(2, 2, figsize=(10, 6), constrained_layout=True)
    for axes, (title, names) in zip(grid.flat, PANELS.items(), strict=True):
        draw(axes, title, names, series)
        for border in borders:
            axes.axvline(border, color="grey", linestyle=":", linewidth=1)
    grid[0, 0].set_yscale("log")
    for axes in grid[1]:
        axes.set_xlabel("step")
    figure.savefig(args.output, dpi=110)


if __name__ == "__main__":
    main()
