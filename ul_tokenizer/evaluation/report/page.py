"""A report from result files: a Markdown page, a CSV table, plots and pictures.

The same files give the same report, byte for byte. Results of different protocols never share a table.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ul_tokenizer.evaluation.report import pictures, plots
from ul_tokenizer.evaluation.report.style import MissingMatplotlibError, check_matplotlib
from ul_tokenizer.evaluation.results import ResultFile, Row, Section, by_protocol, is_codec
from ul_tokenizer.files import write_whole

PAGE, TABLE = "report.md", "results.csv"
MARK = "<!-- ul-tokenizer evaluate report -->"  # the first line of every page, by which we know our own folders
NOTHING, INFINITE = "–", "∞"

# Metric → heading and format, in the order of the columns. Other metrics follow under their own names.
METRICS: dict[str, tuple[str, str]] = {
    "psnr_of_mean_mse": ("PSNR of the mean MSE (dB) ↑", ".2f"),
    "mean_psnr": ("mean PSNR (dB) ↑", ".2f"),
    "ssim": ("SSIM ↑", ".4f"),
    "ms_ssim": ("MS-SSIM ↑", ".4f"),
    "lpips": ("LPIPS ↓", ".4f"),
    "sharpness": ("sharpness (1 is the original's)", ".3f"),
    "bits_per_pixel": ("bits/pixel ↓", ".3f"),
    "accuracy": ("accuracy ↑", ".3f"),
    "precision": ("precision ↑", ".3f"),
    "recall": ("recall ↑", ".3f"),
    "density": ("density ↑", ".3f"),
    "coverage": ("coverage ↑", ".3f"),
    "flicker": ("flicker ↓", ".4f"),
    "source_change": ("change in the source", ".4f"),
}
OTHER_FORMAT = ".4g"
KINDS = {
    "reconstruction": "Reconstruction of",
    "generation": "Generation, measured against",
    "prediction": "Prediction of frames of",
}
ENVIRONMENT_IS_NO_PART_OF_IT = ("date",)  # of what makes two machines different


@dataclass
class Report:
    """The files of a report, in memory."""

    files: dict[str, bytes] = field(default_factory=dict)
    sections: int = 0
    results: int = 0
    without_plots: str | None = None  # why, in a sentence
    families: plots.Families = field(default_factory=dict)  # models that the plots of rates join


# ---------------------------------------------------------------- making and writing


def make_report(files: Sequence[ResultFile], families: plots.Families | None = None) -> Report:
    """Makes a report.

    Args:
        files: as `read_results` gives them. Their pictures lie beside them.
        families: name → patterns of the names of models of several rates, which rate–distortion plots join to a line.

    Returns:
        the page, the table, plots and pictures. Without matplotlib there are no plots, and the page says so.

    Raises:
        ValueError: no result belongs to one of the families.
    """
    sections = by_protocol(files)
    report = Report(sections=len(sections), results=len(files), families=families or {})
    found = {plots.family_of(row, report.families) for section in sections for row in section.rows}
    for name, patterns in report.families.items():
        if name not in found:
            raise ValueError(f"families must have models among the results, got none for {name}={','.join(patterns)}.")
    try:
        check_matplotlib()
    except MissingMatplotlibError as error:
        report.without_plots = f"There are no plots: {error}"
    parts = [_head(sections, report.without_plots)]
    for number, section in enumerate(sections, 1):
        parts.append(_section(number, section, report))
    report.files[PAGE] = ("\n\n".join(parts) + "\n").encode()
    report.files[TABLE] = _csv(sections).encode()
    return report


def write_report(report: Report, folder: Path, force: bool = False) -> None:
    """Writes the files of a report into a folder.

    Args:
        report: as `make_report` gives it.
        folder: made if needed.
        force: overwrite an earlier report, and remove plots and pictures that only that one shows.

    Raises:
        ValueError: as `check_folder`.
        OSError: the disk is full or can't be written.
    """
    check_folder(folder, force)
    stale = _files_of(folder) - set(report.files)
    for name in sorted(report.files, key=lambda name: name == PAGE):  # the page last: what it shows is there
        write_whole(folder / name, report.files[name])
    for name in stale:
        (folder / name).unlink(missing_ok=True)


def check_folder(folder: Path, force: bool) -> None:
    """Refuses a folder that a report must not be written to.

    Raises:
        ValueError: it holds a report and `force` is not given, or it holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, got {folder}, a file.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not _page_of(folder).startswith(MARK):
        raise ValueError(f"output must be a new folder or one with a report, got {folder}, which holds other files.")
    if not force:
        raise ValueError(f"output must be a new folder, got {folder}, which holds a report; --force overwrites it.")


def _page_of(folder: Path) -> str:
    page = folder / PAGE
    return page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""


def _files_of(folder: Path) -> set[str]:
    """Pictures that the page in a folder shows; only plain names, so that nothing outside is touched."""
    return set(re.findall(r"^!\[[^]]*\]\(([\w.-]+\.png)\)$", _page_of(folder), re.MULTILINE))


# ---------------------------------------------------------------- the page


def _head(sections: Sequence[Section], without_plots: str | None) -> str:
    count = sum(len(section.rows) for section in sections)
    lines = [
        MARK,
        "# Evaluation",
        f"{counted(count, 'result')} under {counted(len(sections), 'protocol')}. Each section has one protocol; "
        "figures of different sections can't be compared. Brackets hold bootstrap intervals over images. "
        f"{INFINITE} means that nothing differs, {NOTHING} that a figure was not measured. "
        f"`{TABLE}` has all figures in full.",
    ]
    return "\n\n".join([*lines, *([without_plots] if without_plots else [])])


def _section(number: int, section: Section, report: Report) -> str:
    """A section of the page; adds its plots and pictures to the report's files."""
    protocol = section.protocol
    title = f"{KINDS[section.kind]} {_escaped(protocol['data'])}, {counted(protocol['num_samples'], 'sample')}"
    parts = [
        f"## {number}. {title}",
        "### Protocol",
        _protocol_table(protocol),
        "### Results",
        _results_table(section.rows),
    ]
    parts += _plot(report, f"{number}-rate-distortion.png", "Rate and distortion", _rates(report), section)
    parts += _plot(report, f"{number}-psnr-per-frame.png", "PSNR of each frame", plots.psnr_per_frame, section)
    parts += _distances(number, section.rows, report)
    parts += ["### Cost", _cost_table(section.rows), *_environments(section.rows)]
    parts += ["### What was measured", _subjects_table(section.rows)]
    parts += _gaps(section)
    parts += _pictures(number, section, report)
    return "\n\n".join(parts)


def _rates(report: Report) -> Callable[[Section], bytes | None]:
    return functools.partial(plots.rate_distortion, families=report.families)


def _plot(report: Report, name: str, title: str, draw: Callable[..., bytes | None], *arguments: Any) -> list[str]:
    """A picture for the page, where there is something to draw and something to draw with."""
    content = None if report.without_plots else draw(*arguments)
    return [] if content is None else _shown(report, name, title, content)


def _shown(report: Report, name: str, title: str, content: bytes) -> list[str]:
    report.files[name] = content
    return [f"![{_escaped(title)}]({name})"]


def _protocol_table(protocol: Mapping[str, Any]) -> str:
    lines = [[_words(key), _plain(value)] for key, value in protocol.items()]
    return _markdown(["", "value"], lines, numbers=False)


def _results_table(rows: Sequence[Row]) -> str:
    measured = [key for row in rows for key, entry in row.result["metrics"].items() if not _is_list(entry["value"])]
    columns: dict[str, Callable[[Row], str]] = {}
    for key in [*METRICS, *dict.fromkeys(key for key in measured if key not in METRICS)]:
        columns[METRICS[key][0] if key in METRICS else _words(key)] = functools.partial(_metric, key=key)
        if key == "bits_per_pixel":
            columns["kind of bits"] = lambda row: _plain(row.figure("metrics.bits_per_pixel.kind"))
    return _filled_columns(rows, columns) or "Nothing was measured."


def _metric(row: Row, key: str) -> str:
    entry = row.result["metrics"].get(key)
    if entry is None:
        return NOTHING
    form = METRICS.get(key, ("", OTHER_FORMAT))[1]
    value = _number(entry["value"], form, NOTHING if "reason" in entry else INFINITE)
    if entry.get("low") is None and entry.get("high") is None:
        return value
    return f"{value} [{_number(entry.get('low'), form, INFINITE)}, {_number(entry.get('high'), form, INFINITE)}]"


# ---------------------------------------------------------------- distances


def _distances(number: int, rows: Sequence[Row], report: Report) -> list[str]:
    """A table and plots for each network, or none; networks with one name and other weights stand apart."""
    parts: list[str] = []
    names: list[str] = []
    for net, facts in _networks(rows):
        group = [row for row in rows if net in row.result["distances"] and row.result["distances"][net]["net"] == facts]
        names.append(net)
        slug = _slug(net) + (f"-{names.count(net)}" if names.count(net) > 1 else "")
        parts += [f"### Distances on {_escaped(net)}", f"Network: {_listed(facts)}.", _distance_table(group, net)]
        parts += [f"* {sentence}" for sentence in _refusals(group, net)]
        for axis in ("decoder", "sampling"):
            name, title = f"{number}-{slug}-{axis}-steps.png", f"Distances on {net} against {axis} steps"
            parts += _plot(report, name, title, plots.distance_against_steps, group, net, axis)
    return parts


def _networks(rows: Iterable[Row]) -> list[tuple[str, Any]]:
    """Names and facts of the networks that features came from, each once."""
    found = {
        json.dumps([net, entry["net"]], sort_keys=True): (net, entry["net"])
        for row in rows
        for net, entry in row.result["distances"].items()
    }
    return list(found.values())


def _distance_table(rows: Sequence[Row], net: str) -> str:
    """Each distance beside its floor and the numbers of images."""
    path = f"distances.{net}"
    name = next((name for row in rows if (name := row.figure(f"{path}.frechet.name"))), "Fréchet distance")
    head = ["", f"{name} ↓", "its floor", "ratio", "KID × 1000 ↓", "its floor", "KID subsets", "images", "real images"]
    lines = []
    for row in rows:
        value, floor = row.figure(f"{path}.frechet.value"), row.figure(f"{path}.frechet.floor")
        subsets, size = row.figure(f"{path}.kid.subsets"), row.figure(f"{path}.kid.subset_size")
        lines.append(
            [
                _escaped(row.label),
                _number(value, ".2f"),
                _number(floor, ".2f"),
                f"{value / floor:.1f}" if value is not None and floor and floor > 0 else NOTHING,
                _kid(row.figure(f"{path}.kid")),
                _number(_thousandfold(row.figure(f"{path}.kid.floor")), ".2f"),
                f"{subsets} × {size}" if subsets else NOTHING,
                f"{row.figure(f'{path}.num'):,}",
                f"{row.figure(f'{path}.reference_num'):,}",
            ]
        )
    return _markdown(head, lines)


def _kid(entry: Mapping[str, Any] | None) -> str:
    if not entry or entry.get("value") is None:
        return NOTHING
    spread = "" if entry.get("std") is None else f" ± {1000 * entry['std']:.2f}"
    return f"{1000 * entry['value']:.2f}{spread}"


def _thousandfold(value: float | None) -> float | None:
    return None if value is None else 1000 * value


def _refusals(rows: Sequence[Row], net: str) -> list[str]:
    pairs = ((_escaped(sentence), row) for row in rows if (sentence := row.figure(f"distances.{net}.frechet.refused")))
    return _by_sentence(pairs, rows)


# ---------------------------------------------------------------- cost and circumstances


def _cost_table(rows: Sequence[Row]) -> str:
    columns: dict[str, Callable[[Row], str]] = {
        "s/image": lambda row: _number(row.figure("cost.seconds_per_image"), ".3g"),
        "encode (s)": lambda row: _number(row.figure("cost.encode_seconds"), ".3g"),
        "decode (s)": lambda row: _number(row.figure("cost.decode_seconds"), ".3g"),
        "peak memory (MiB)": lambda row: _number(_scaled(row.figure("cost.peak_memory_bytes"), 2**-20), ",.0f"),
        "encode: GFLOP, linear and attention": lambda row: _gflop(row, "encode.linear_and_attention"),
        "encode: GFLOP, convolutions": lambda row: _gflop(row, "encode.convolutions"),
        "decode: GFLOP, linear and attention": lambda row: _gflop(row, "decode.linear_and_attention"),
        "decode: GFLOP, convolutions": lambda row: _gflop(row, "decode.convolutions"),
    }
    return _filled_columns(rows, columns) or "Not measured."


def _subjects_table(rows: Sequence[Row]) -> str:
    columns: dict[str, Callable[[Row], str]] = {
        "type": lambda row: _plain(row.figure("subject.type")),
        "parameters (M)": lambda row: _number(_scaled(row.figure("subject.parameters.total"), 1e-6), ".2f"),
        "encoder (M)": lambda row: _number(_scaled(row.figure("subject.parameters.encoder"), 1e-6), ".2f"),
        "decoder (M)": lambda row: _number(_scaled(row.figure("subject.parameters.decoder"), 1e-6), ".2f"),
        "compression in space": lambda row: _plain(row.figure("subject.spatial_compression_ratio")),
        "in time": lambda row: _plain(row.figure("subject.temporal_compression_ratio")),
        "latent channels": lambda row: _plain(row.figure("subject.latent_channels")),
        "latent": lambda row: _plain(row.figure("subject.latent")),
        "dtype": lambda row: NOTHING if is_codec(row.result) else _plain(row.figure("subject.dtype")),
        "weights (sha256)": lambda row: _code((row.figure("subject.weights_sha256") or "")[:12]),
        "file": lambda row: _code(row.path.name),
    }
    return _filled_columns(rows, columns, numbers=False)


def _filled_columns(rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]], numbers: bool = True) -> str:
    """A table without the columns in which no row has anything."""
    cells = {head: [cell(row) for row in rows] for head, cell in columns.items()}
    filled = {head: column for head, column in cells.items() if set(column) != {NOTHING}}
    lines = [[_escaped(row.label), *(column[i] for column in filled.values())] for i, row in enumerate(rows)]
    return _markdown(["", *filled], lines, numbers) if filled else ""


def _environments(rows: Sequence[Row]) -> list[str]:
    """Where and with what the results were measured, each circumstance once."""
    texts = [
        _listed({k: v for k, v in row.result["environment"].items() if k not in ENVIRONMENT_IS_NO_PART_OF_IT})
        for row in rows
    ]
    dates = sorted({str(date) for row in rows if (date := row.figure("environment.date"))})
    days = f" ({' to '.join(dict.fromkeys([dates[0], dates[-1]]))})" if dates else ""
    if len(set(texts)) == 1:
        return [f"Measured with {texts[0]}{days}."]
    lines = _by_sentence(((f"{text}.", row) for text, row in zip(texts, rows, strict=True)), rows)
    return [f"Measured with different machines or versions{days}:", "\n".join(f"* {line}" for line in lines)]


def _gaps(section: Section) -> list[str]:
    """What was not measured and why, what was skipped, and what was not finite."""
    missing = _by_sentence(
        ((_escaped(sentence), row) for row in section.rows for sentence in row.result["missing"]), section.rows
    )
    lines = [f"* {line}" for line in missing]
    lines += [f"* {_escaped(row.label)}: {_nonfinite(row)}" for row in section.rows if _nonfinite(row)]
    found = {entry["id"]: entry["reason"] for row in section.rows for entry in row.result["skipped"]}
    skipped = [f"* {_escaped(name)}: {_escaped(reason)}" for name, reason in found.items()]
    parts = ["### What was not measured", "\n".join(lines)] if lines else []
    return [*parts, *(["### Skipped samples", "\n".join(skipped)] if skipped else [])]


def _nonfinite(row: Row) -> str:
    ids = row.figure("nonfinite") or []
    named = ", ".join(_escaped(str(name)) for name in ids[:10]) + (", …" if len(ids) > 10 else "")
    return (
        f"{counted(len(ids), 'reconstruction')} with NaN or infinity, so that no mean is given: {named}." if ids else ""
    )


def _by_sentence(pairs: Iterable[tuple[str, Row]], rows: Sequence[Row]) -> list[str]:
    """Markdown sentences, each once, after the labels of the results that it is about."""
    found: dict[str, list[str]] = {}
    for sentence, row in pairs:
        found.setdefault(sentence, []).append(_escaped(row.label))
    return [
        f"{'all' if len(labels) == len(rows) > 1 else '; '.join(labels)}: {sentence}"
        for sentence, labels in found.items()
    ]


# ---------------------------------------------------------------- pictures


def _pictures(number: int, section: Section, report: Report) -> list[str]:
    parts: list[str] = []
    grid = pictures.picture_grid(section)
    if grid:
        parts += _shown(report, f"{number}-pictures.png", "Originals, reconstructions and differences", grid.content)
        parts.append(_caption(grid))
    for row in section.rows:
        for kind, title in (("grid", "Generated by"), ("neighbours", "Nearest training images of")):
            path = row.pictures / f"{kind}.png"
            if path.is_file():
                name = f"{number}-{_slug(row.path.stem)}-{kind}.png"
                parts += [
                    f"{title} {_escaped(row.label)}:",
                    *_shown(report, name, f"{title} {row.label}", path.read_bytes()),
                ]
    return ["### Pictures", *parts] if parts else []


def _caption(grid: pictures.PictureGrid) -> str:
    sentences = [
        f"From the left: original, {_escaped('; '.join(grid.labels))}. Below each its difference to the original, "
        f"{pictures.DIFFERENCE_GAIN} times enlarged around grey. Pixels are shown one to one or enlarged by "
        f"whole numbers; of larger pictures, the {pictures.SIDE} × {pictures.SIDE} in the centre."
    ]
    if grid.bits_of:
        sentences.append(f"Of each codec, the quality closest in bits/pixel to {_escaped(grid.bits_of)} is shown.")
    if grid.left_out:
        sentences.append(f"Not shown: {_escaped('; '.join(grid.left_out))}.")
    return " ".join(sentences)


# ---------------------------------------------------------------- CSV


def _csv(sections: Sequence[Section]) -> str:
    """All results with all their values, one a row; lists are JSON."""
    rows = []
    for number, section in enumerate(sections, 1):
        for row in section.rows:
            rows.append({"section": number, "label": row.label, "file": row.path.name, **_flat(row.result)})
    columns = list(dict.fromkeys(key for group in _key_groups(rows) for key in group))
    content = io.StringIO()
    writer = csv.DictWriter(content, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return content.getvalue()


def _key_groups(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Columns by the first part of their names, so that those that few rows have stand beside their like."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        for key in row:
            groups.setdefault(key.split(".")[0], []).append(key)
    return list(groups.values())


def _flat(value: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            flat |= _flat(entry, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = json.dumps(entry, ensure_ascii=False) if isinstance(entry, list) else entry
    return flat


# ---------------------------------------------------------------- Markdown


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """A table; columns of numbers are flush right."""
    rule = ["---", *(["--:" if numbers else "---"] * (len(head) - 1))]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, within a table, too."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text.replace("\n", " "))


def _code(text: str) -> str:
    return f"`{text.replace('|', '')}`" if text else NOTHING


def _plain(value: Any) -> str:
    """One value as words; hashes as code."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (Mapping, list)):
        return _listed(value) if isinstance(value, Mapping) else ", ".join(map(_plain, value)) or "none"
    if value is None or value == "":
        return NOTHING
    return _code(value) if re.fullmatch(r"[0-9a-f]{12,}", str(value)) else _escaped(str(value))


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{_words(key)} {_plain(value)}" for key, value in facts.items())


def _words(key: str) -> str:
    return _escaped(key.replace("_", " "))


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text, flags=re.ASCII).strip("-") or "x"


def _number(value: float | None, form: str, otherwise: str = NOTHING) -> str:
    return otherwise if value is None else format(value, form)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def _gflop(row: Row, path: str) -> str:
    return _number(_scaled(row.figure(f"cost.flops.{path}"), 1e-9), ",.2f")


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless there is one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
