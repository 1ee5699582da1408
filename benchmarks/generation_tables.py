"""The tables of a card on generation, from what `ul-tokenizer evaluate -o FILE` wrote.

python benchmarks/generation_tables.py ul_tokenizer/pretrained/ul-fashion/evaluation.jsonl [--card README.md]

With --card they take the place of what stands between `<!-- table: NAME -->` and `<!-- end -->` there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
HEADLINE = 10_000  # images
SOLVERS = {"ddim": "DDIM", "dpmsolver++": "DPM-Solver++", "ddpm": "DDPM"}


def read(path: Path) -> list[Row]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tables(rows: Sequence[Row]) -> dict[str, str]:
    """Markdown tables by name; a table without rows is left out."""
    made = {
        "headline": headline_table(rows),
        "solvers": solver_table(rows),
        "guidance": guidance_table(rows),
        "decoder": decoder_table(rows),
        "decoded": decoded_table(rows),
        "stages": stages_table(rows),
        "reconstruction": reconstruction_table(rows),
    }
    return {name: table for name, table in made.items() if table}


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    rule = "|".join(["---"] * len(head))
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)])


def _figures(row: Row) -> list[str]:
    accuracy = "–" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"
    return [accuracy, f"{row['frechet_distance']:.2f}", f"{row['ratio']:.1f}"]


def _base(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Conditional rows of the base, without what is named otherwise in `wanted`."""
    plain = {"measured": "generation", "generator": "base", "decode": "z0", "unconditional": False, **wanted}
    return [row for row in rows if all(row.get(key) == value for key, value in plain.items())]


def _group(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def solver_table(rows: Sequence[Row]) -> str:
    """Fréchet distance and accuracy, a line per number of steps and a column per solver, without guidance."""
    plain = _of_one_size(_base(rows, guidance_scale=1.0))
    by_steps = _group(plain, lambda row: (row["decoder_num_inference_steps"], row["num_inference_steps"]))
    grid = {steps: group for (_, steps), group in sorted(by_steps.items(), key=str) if len(group) == len(SOLVERS)}
    lines = []
    for steps, group in sorted(grid.items()):
        cells = {row["solver"]: row for row in group}
        figures = [f"{cells[s]['frechet_distance']:.2f} ({100 * cells[s]['accuracy']:.1f} %)" for s in SOLVERS]
        lines.append([str(steps), *figures])
    return _table(["steps", *SOLVERS.values()], lines)


def _of_one_size(rows: Sequence[Row]) -> list[Row]:
    """Rows of the number of images that most of them have, so that they can be compared."""
    sizes = Counter(row["num_images"] for row in rows)
    return [row for row in rows if row["num_images"] == sizes.most_common(1)[0][0]]


def headline_table(rows: Sequence[Row]) -> str:
    """A line per row of the full number of images."""
    found = [row for row in _base(rows) if row["num_images"] == HEADLINE]
    lines = [
        [SOLVERS[row["solver"]], str(row["num_inference_steps"]), f"{row['guidance_scale']:g}", *_figures(row)]
        for row in sorted(found, key=lambda row: row["guidance_scale"])
    ]
    return _table(["solver", "steps", "guidance", "accuracy", "FD", "FD / floor"], lines)


def guidance_table(rows: Sequence[Row]) -> str:
    """A line per guidance scale, where everything else is the same."""
    found = _of_one_size(_base(rows, solver="dpmsolver++", num_inference_steps=32))
    groups = _group(found, lambda row: row["decoder_num_inference_steps"])
    best = max(groups.values(), key=len, default=[])
    lines = [[f"{row['guidance_scale']:g}", *_figures(row)] for row in sorted(best, key=lambda r: r["guidance_scale"])]
    return _table(["guidance", "accuracy", "FD", "FD / floor"], lines)


def decoder_table(rows: Sequence[Row]) -> str:
    """A line per number of decoding steps."""
    found = _of_one_size(_base(rows, solver="dpmsolver++", num_inference_steps=32))
    groups = _group(found, lambda row: row["guidance_scale"])
    best = max(groups.values(), key=len, default=[])
    lines = [
        [str(row["decoder_num_inference_steps"]), *_figures(row)]
        for row in sorted(best, key=lambda r: r["decoder_num_inference_steps"])
    ]
    return _table(["decoding steps", "accuracy", "FD", "FD / floor"], lines) if len(lines) > 1 else ""


def decoded_table(rows: Sequence[Row]) -> str:
    """z_0 against the final estimate without noise, each in the way of the other row."""
    names = {"z0": "z₀, noisy at λ = 5 (right)", "clean": "the final ẑ (wrong)", "scaled-clean": "α₀ẑ (wrong)"}
    wrong = [row for row in rows if row.get("decode") in ("clean", "scaled-clean")]
    lines = []
    for row in wrong[:1]:
        same = {k: row[k] for k in ("solver", "num_inference_steps", "guidance_scale", "num_images")}
        same["decoder_num_inference_steps"] = row["decoder_num_inference_steps"]
        lines += [[names["z0"], *_figures(right)] for right in _base(rows, **same)]
    lines += [[names[row["decode"]], *_figures(row)] for row in wrong]
    return _table(["decoded", "accuracy", "FD", "FD / floor"], lines)


def stages_table(rows: Sequence[Row]) -> str:
    """The stage-1 prior as generator against a base of its size, both without classes."""
    names = {"prior": "stage-1 prior", "base": "stage-2 base of the same size"}
    found = [row for row in rows if row.get("unconditional") and row["measured"] == "generation"]
    return _table(["generator", "FD", "FD / floor"], [[names[row["generator"]], *_figures(row)[1:]] for row in found])


def reconstruction_table(rows: Sequence[Row]) -> str:
    """A line per number of decoding steps."""
    found = sorted(
        (row for row in rows if row["measured"] == "reconstruction"), key=lambda r: r["decoder_num_inference_steps"]
    )
    lines = [
        [
            str(row["decoder_num_inference_steps"]),
            f"{row['psnr_of_mean_mse']:.2f}",
            f"{row['mean_psnr']:.2f}",
            f"{row['bits_per_pixel']:.3f}",
            f"{row['frechet_distance']:.2f}",
            f"{100 * row['accuracy']:.1f} %",
        ]
        for row in found
    ]
    head = ["decoding steps", "PSNR of mean MSE (dB)", "mean of PSNRs (dB)", "bits/pixel", "FD", "accuracy"]
    return _table(head, lines)


def update(card: str, made: dict[str, str]) -> str:
    """A card with its tables made anew.

    Raises:
        ValueError: the card has a place for a table that isn't there, or none for one that is.
    """
    places = re.findall(r"<!-- table: (\S+) -->", card)
    if sorted(places) != sorted(made):
        raise ValueError(f"the card must have places for {', '.join(sorted(made))}, got {', '.join(sorted(places))}.")
    for name, table in made.items():
        start, end = f"<!-- table: {name} -->\n", "\n<!-- end -->"
        before, _, rest = card.partition(start)
        card = f"{before}{start}\n{table}\n{end}{rest.partition(end)[2]}"
    return card


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Tables of what `ul-tokenizer evaluate -o` wrote.")
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+", help="JSON lines")
    parser.add_argument("--card", type=Path, help="put the tables into this card")
    args = parser.parse_args()
    made = tables([row for path in args.files for row in read(path)])
    if args.card is None:
        print("\n".join(f"{name}\n\n{table}\n" for name, table in made.items()))
    else:
        args.card.write_text(update(args.card.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
