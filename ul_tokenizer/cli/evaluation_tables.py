"""What the commands `evaluate …` print: tables, or the results as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ul_tokenizer.cli.reporting import number, print_results, print_table
from ul_tokenizer.evaluation.results import label_of

Result = Mapping[str, Any]
Column = Callable[[Result], str]
LABEL_WIDTH = 26  # characters of a line of a model's label
ROW_NAMES = ("model", "distance", "images")  # columns that every part of a table repeats
INFINITE = "∞"  # the PSNR of exact copies


def print_all(results: Sequence[Result], output: Path | None, as_json: bool) -> None:
    """Prints results, on the main process only."""
    from ul_tokenizer.processes import Processes

    if not Processes.of().is_main:
        return
    if as_json:
        print_results(results, results[0]["skipped"])
        return
    for columns, rows in ((_FIDELITY, results), (_DISTANCES, _by_net(results)), (_COST, results)):
        for table in _tables(columns, rows, Console().width):
            print_table(table)
    for line in _notes(results):
        typer.echo(line)
    if output is not None:
        typer.echo(f"results in {output}; `ul-tokenizer evaluate report {output} -o report/` makes a page of them")


# ---------------------------------------------------------------- columns


def _figure(name: str, form: str) -> Column:
    def cell(result: Result) -> str:
        entry = result["metrics"].get(name)
        if entry is None or "reason" in entry:
            return "-"
        if entry["value"] is None:
            return INFINITE
        if entry.get("low") is None or entry["low"] == entry["high"]:
            return format(entry["value"], form)
        return f"{entry['value']:{form}}\n[{entry['low']:{form}}, {entry['high']:{form}}]"

    return cell


def _entry(kind: str, name: str, form: str) -> Column:
    return lambda result: number(result["distance"][kind].get(name), form)


def _cost(name: str, scale: float, form: str) -> Column:
    def cell(result: Result) -> str:
        value = result["cost"].get(name)
        return "-" if value is None else format(value * scale, form)

    return cell


def _flops(job: str) -> Column:
    def cell(result: Result) -> str:
        flops = result["cost"].get("flops")
        return "-" if flops is None else f"{sum(flops[job].values()) / 1e9:.1f}"

    return cell


def _parameters(result: Result) -> str:
    found = result["subject"].get("parameters")
    return "-" if found is None else f"{found['total'] / 1e6:.2f}"


def _is_generated(result: Result) -> bool:
    return bool(result["kind"] == "generation")


def _label(result: Result) -> str:
    return textwrap.fill(label_of(result), LABEL_WIDTH)


_FIDELITY: dict[str, Column] = {
    "model": _label,
    "accuracy": _figure("accuracy", ".3f"),
    "bits/pixel": _figure("bits_per_pixel", ".3f"),
    "PSNR of mean MSE": _figure("psnr_of_mean_mse", ".2f"),
    "mean PSNR": _figure("mean_psnr", ".2f"),
    "SSIM": _figure("ssim", ".4f"),
    "MS-SSIM": _figure("ms_ssim", ".4f"),
    "LPIPS": _figure("lpips", ".4f"),
    "sharpness": _figure("sharpness", ".3f"),
    "flicker": _figure("flicker", ".4f"),
    "source's change": _figure("source_change", ".4f"),
    "precision": _figure("precision", ".3f"),
    "recall": _figure("recall", ".3f"),
    "density": _figure("density", ".3f"),
    "coverage": _figure("coverage", ".3f"),
    "memorised": _figure("memorisation", ".3f"),
}
_DISTANCES: dict[str, Column] = {
    "model": _label,
    "distance": lambda result: str(result["distance"]["frechet"]["name"]),
    "images": lambda result: f"{result['distance']['num']:,} / {result['distance']['reference_num']:,}",
    "FD": _entry("frechet", "value", ".4g"),
    "floor of FD": _entry("frechet", "floor", ".4g"),
    "KID": _entry("kid", "value", ".5f"),
    "std of KID": _entry("kid", "std", ".5f"),
    "floor of KID": _entry("kid", "floor", ".5f"),
}
_COST: dict[str, Column] = {
    "model": _label,
    "M parameters": _parameters,
    "GFLOP to encode": _flops("encode"),
    "to decode": _flops("decode"),
    "ms to encode": _cost("encode_seconds", 1e3, ".1f"),
    "ms to decode": _cost("decode_seconds", 1e3, ".1f"),
    "ms to draw": lambda result: _cost("seconds_per_image", 1e3, ".1f")(result) if _is_generated(result) else "-",
    "peak MiB": _cost("peak_memory_bytes", 2**-20, ".0f"),
}


def _by_net(results: Sequence[Result]) -> list[Result]:
    """One row for each network of each result."""
    return [{**result, "distance": entry} for result in results for entry in result["distances"].values()]


def _tables(columns: Mapping[str, Column], results: Sequence[Result], width: int) -> Iterator[Table]:
    """Columns that have a value in some row, side by side as far as they fit into a width in characters."""
    cells = {name: [cell(result) for result in results] for name, cell in columns.items()}
    shown = [name for name, column in cells.items() if name not in ROW_NAMES and set(column) - {"-"}]
    names = [name for name in cells if name in ROW_NAMES]
    rest = width - 1 - sum(_width(name, cells[name]) for name in names)
    while shown:
        count, taken = 1, _width(shown[0], cells[shown[0]])
        while count < len(shown) and (taken := taken + _width(shown[count], cells[shown[count]])) <= rest:
            count += 1
        yield _table({name: cells[name] for name in names + shown[:count]})
        shown = shown[count:]


def _width(name: str, column: Sequence[str]) -> int:
    """Characters that a column takes, with its border and padding."""
    return 3 + max(len(line) for text in (_head(name, column), *column) for line in text.splitlines())


def _head(name: str, column: Sequence[str]) -> str:
    """A column's name in lines that are no longer than its cells, or than its longest word."""
    lines = [line for text in column for line in text.splitlines()]
    return textwrap.fill(name, max(map(len, [*lines, *name.split()])), break_on_hyphens=False)


def _table(cells: Mapping[str, Sequence[str]]) -> Table:
    table = Table(show_lines=any("\n" in text for column in cells.values() for text in column))
    for name, column in cells.items():
        table.add_column(_head(name, column), justify="left" if name in ("model", "distance") else "right")
    for row in zip(*cells.values(), strict=True):
        table.add_row(*(text.replace("[", r"\[") for text in row))  # no markup
    return table


# ---------------------------------------------------------------- notes


def _notes(results: Sequence[Result]) -> list[str]:
    """The protocol in words, then what was not measured and why."""
    lines = [_protocol(results[0])]
    kinds = {(result["metrics"].get("bits_per_pixel") or {}).get("kind"): None for result in results}
    lines += [f"bits/pixel: {'; '.join(kind for kind in kinds if kind)}"] if any(kinds) else []
    for result in results:
        if named := result["nonfinite"]:
            others = f" and {len(named) - 1} more" if len(named) > 1 else ""
            lines.append(f"{label_of(result)}: no mean is given, since results are not finite: {named[0]}{others}")
        lines += _memorised(result)
    refused = {
        entry[kind].get("refused")
        for row in _by_net(results)
        for entry in [row["distance"]]
        for kind in ("frechet", "kid")
    }
    reasons = [*sorted(filter(None, refused)), *dict.fromkeys(line for result in results for line in result["missing"])]
    return lines + [f"not measured: {reason}" for reason in reasons]


def _memorised(result: Result) -> list[str]:
    """How many generated images are suspiciously near to a training image."""
    found = result["metrics"].get("memorisation") or {}
    if found.get("value") is None or "count" not in found:  # older results have no count
        return []
    return [
        f"{label_of(result)}: {found['count']:,} of {result['protocol']['num_generated']:,} images are nearer to a "
        "training image than 99 % of the real images are"
    ]


def _protocol(result: Result) -> str:
    protocol = result["protocol"]
    size = "" if protocol["resolution"] is None else f", shorter side {protocol['resolution']}"
    side = protocol["crop_size"] or protocol["resolution"]
    whole = "whole images" if protocol["clip_frames"] is None else f"clips of {protocol['clip_frames']} frames"
    crop = whole if protocol["crop"] == "none" else f"{protocol['crop']} crops of {side}×{side}"
    skipped = f", {len(result['skipped'])} skipped" if result["skipped"] else ""
    if _is_generated(result):
        count = f"{protocol['num_generated']:,} images against {protocol['num_samples']:,} real ones"
        return f"{protocol['data']}: {count}{size}, {crop}, 8-bit pixels{skipped}"
    count = f"{protocol['num_samples']:,} samples of {protocol['num_images']:,} images"
    return f"{protocol['data']}: {count}{size}, {crop}, seed {protocol['seed']}, 8-bit pixels{skipped}"
