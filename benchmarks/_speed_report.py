"""The table that `speed.py` prints, and its result file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _speed_rows import Row

FORMAT, VERSION = "ul_tokenizer.speed", 1
NETWORK, JOB, SIZE = 30, 21, 12  # widths
HEAD = (
    f"{'network':<{NETWORK}} {'job':<{JOB}} {'size':<{SIZE}} {'M params':>8} {'GFLOP':>8} {'ms':>9} "
    f"{'conv':>5} {'mm':>5} {'MB':>6} {'ratio':>7}"
)


def setting_of(row: Row) -> str:
    """In what a row is computed."""
    return row.dtype + (", compiled" if row.compiled else "")


def heading(row: Row, peer: str) -> str:
    """What stands above the rows of a contest."""
    what = f"{row.group} along {row.axis}" if row.axis else row.group
    return f"\n{what}, {setting_of(row)}: time as a ratio to {peer}\n{HEAD}"


def line(row: Row, peaks: dict[str, float]) -> str:
    """A row of the table; fractions are of the peaks of convolutions (conv) and matrix products (mm)."""
    fractions = row.fractions(peaks)
    memory = "–" if row.memory is None else f"{row.memory / 1e6:.0f}"
    ratio = "peer" if row.ratio is None else f"{row.ratio.median:.3f}"
    shares = "" if row.shares is None else "\n" + shares_line(row.shares)
    return (
        f"{row.network:<{NETWORK}.{NETWORK}} {row.job:<{JOB}.{JOB}} {row.size!s:<{SIZE}.{SIZE}} "
        f"{row.parameters / 1e6:>8.1f} {row.flops.total / 1e9:>8.{_digits(row.flops.total / 1e9)}f} "
        f"{row.seconds.median * 1e3:>9.1f} {fractions['convolution']:>5.2f} {fractions['matmul']:>5.2f} "
        f"{memory:>6} {ratio:>7}{shares}"
    )


def shares_line(shares: dict[str, float]) -> str:
    """Where a row's time goes, without what is below a hundredth."""
    return "  " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items() if share >= 0.01)


def _digits(value: float) -> int:
    return 0 if value >= 100 else 1


def as_json(
    rows: Sequence[Row],
    peaks: dict[str, dict[str, float]],
    missing: Sequence[str],
    environment: dict[str, Any],
    options: dict[str, Any],
) -> dict[str, Any]:
    """The result file.

    Args:
        rows: all figures.
        peaks: FLOP/s of "convolution" and "matmul" by dtype.
        missing: a sentence for each thing that was not measured.
        environment: machine, versions, commit, date.
        options: of the command.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "environment": environment,
        "options": options,
        "peaks_flops_per_second": peaks,
        "rows": [row.to_json(peaks[row.dtype]) for row in rows],
        "missing": list(missing),
    }


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Writes a result file; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
