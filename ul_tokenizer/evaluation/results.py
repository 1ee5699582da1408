"""Result files: one JSON for each result of an evaluation. Reading, checking, writing, names and protocols.

JSON has neither NaN nor infinity. Infinity is written as null where it is legal, which is the PSNR of identical
pictures; a metric with the value null is therefore infinite, and one that was not measured is absent. NaN is refused:
whoever measures names such samples in `nonfinite` and leaves them out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ul_tokenizer.evaluation.json_paths import find
from ul_tokenizer.files import write_json

Result = dict[str, Any]

FORMAT, VERSION = "ul_tokenizer.evaluation", 1
KINDS = ("reconstruction", "generation", "prediction")
# Path → the type of what must be there.
REQUIRED: dict[str, type] = {
    "subject.name": str,
    "subject.type": str,
    "protocol.data": str,
    "protocol.num_samples": int,
    "metrics": dict,
    "distances": dict,
    "cost": dict,
    "missing": list,
    "skipped": list,
    "nonfinite": list,
    "environment": dict,
    "key": str,
}


# ---------------------------------------------------------------- reading


class ResultFile(NamedTuple):
    """A result and where it was read."""

    path: Path
    result: Result

    @property
    def pictures(self) -> Path:
        """The folder with the pictures of the result, which need not exist."""
        return pictures_folder(self.path)


def pictures_folder(path: Path) -> Path:
    """The folder beside a result file for its pictures: `<stem>.pictures`."""
    return path.with_name(f"{path.stem}.pictures")


def read_result(path: str | Path) -> Result:
    """Reads and checks one file.

    Raises:
        ValueError: no JSON, another format or version, or a part that is missing; one sentence names the file.
        OSError: the file can't be read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:  # broken JSON, or bytes that are no UTF-8
        raise ValueError(f"{path} must be a JSON file that `ul-tokenizer evaluate` wrote, got no JSON.") from None
    check_result(content, str(path))
    result: Result = content
    return result


def read_results(paths: Iterable[str | Path]) -> list[ResultFile]:
    """Reads files, and of each folder all its *.json in the order of their names. No file is read twice.

    Raises:
        ValueError: as `read_result`, there is nothing at a path, a folder without such files, or no path at all.
    """
    files = [file for path in paths for file in _files_at(Path(path))]
    if not files:
        raise ValueError("paths must name at least one result file or folder, got none.")
    unique: dict[Path, Path] = {}
    for file in files:
        unique.setdefault(file.resolve(), file)  # the first of several spellings stays
    return [ResultFile(file, read_result(file)) for file in unique.values()]


def _files_at(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(path.glob("*.json"))
        if not found:
            raise ValueError(f"{path} must be a folder with result files (*.json), got one without.")
        return found
    if not path.exists():
        raise ValueError(f"{path} must be a result file or a folder with some, but there is nothing.")
    return [path]


# ---------------------------------------------------------------- checking


def check_result(result: Any, name: str = "result") -> None:
    """Checks that a value has the format, the version and all parts of a result.

    Args:
        result: what was read, or what is about to be written.
        name: what the sentence calls it.

    Raises:
        ValueError: another format, another version, or a part that is missing or has another type.
    """
    form = result.get("format") if isinstance(result, Mapping) else None
    _require(form == FORMAT, f"{name} must have the format {FORMAT!r}, got {form!r}.")
    version = result.get("version")
    _require(version == VERSION, f"{name} must have version {VERSION} of the format, got version {version!r}.")
    kind = result.get("kind")
    _require(kind in KINDS, f"{name} must have a kind of {', '.join(KINDS)}, got {kind!r}.")
    for path, wanted in REQUIRED.items():
        value = find(result, path)
        _require(value is not None, f"{name} must have {path!r}, which is missing.")
        _require(isinstance(value, wanted), f"{name} must have a {wanted.__name__} as {path!r}, got {value!r}.")
    for metric, entry in result["metrics"].items():
        _require(_has(entry, "value"), f"{name} must have 'metrics.{metric}.value', which is missing.")
    for net, entry in result["distances"].items():
        for key in ("net", "num", "reference_num"):
            _require(_has(entry, key), f"{name} must have 'distances.{net}.{key}', which is missing.")


def _has(entry: Any, key: str) -> bool:
    return isinstance(entry, Mapping) and key in entry


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


# ---------------------------------------------------------------- writing


def write_result(path: str | Path, result: Mapping[str, Any]) -> None:
    """Checks a result and writes it, completely or not at all.

    Args:
        path: the file.
        result: JSON values; tuples are written as lists. An infinite PSNR is written as null.

    Raises:
        ValueError: as `check_result`, a NaN, or an infinity that is no PSNR; the sentence names the place.
        OSError: the disk is full or can't be written.
    """
    check_result(result, "result")
    write_json(path, _finite(result, ""), allow_nan=False)


def _finite(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry, f"{path}.{key}" if path else str(key)) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry, f"{path}[{index}]") for index, entry in enumerate(value)]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    if value == math.inf and path.startswith("metrics.") and "psnr" in path:
        return None
    raise ValueError(f"{path} must be finite, got {value}.")


# ---------------------------------------------------------------- what is in a result


def figure(result: Mapping[str, Any], path: str) -> Any:
    """The value at a path such as `metrics.psnr_of_mean_mse.value`; None if it was not measured (or is infinite)."""
    return find(result, path)


def is_codec(result: Mapping[str, Any]) -> bool:
    """Whether the subject is a classical codec, such as jpeg:30."""
    return bool(result["subject"]["type"] == "codec")


def is_ours(result: Mapping[str, Any]) -> bool:
    """Whether the subject is a class of this library."""
    return str(result["subject"]["type"]).startswith("UnifiedLatents")


def label_of(result: Mapping[str, Any], without: Sequence[str] = ()) -> str:
    """What a table or a legend calls a result, such as "ul-photo-f8, 4 steps" or "jpeg:30".

    Args:
        result: as read.
        without: keys of `subject` that are left out of the label, to name what several results have in common.
    """
    subject = result["subject"]
    name = str(subject["name"])
    if is_codec(result):
        return name.partition(":")[0] if "name" in without else name
    words = _words_on_generation(subject) if result["kind"] == "generation" else _words_on_decoding(subject)
    return ", ".join([name, *(text for key, text in words.items() if text and key not in without)])


def _words_on_decoding(subject: Mapping[str, Any]) -> dict[str, str | None]:
    return {
        "num_inference_steps": _counted(subject.get("num_inference_steps"), "step"),
        "latent": "latent without noise" if subject.get("latent") == "mode" else None,
        "dtype": None if subject.get("dtype") in (None, "float32") else subject["dtype"],
    }


def _words_on_generation(subject: Mapping[str, Any]) -> dict[str, str | None]:
    scale, interval = subject.get("guidance_scale"), subject.get("guidance_interval")
    return {
        "generator": "stage-1 prior" if subject.get("generator") == "prior" else None,
        "solver": subject.get("solver"),
        "num_inference_steps": _counted(subject.get("num_inference_steps"), "step"),
        "guidance_scale": None if scale in (None, 1) else f"guidance {scale:g}",
        "guidance_interval": f"within [{interval[0]:g}, {interval[1]:g}]" if interval else None,
        "unconditional": "without classes" if subject.get("unconditional") else None,
        "prompts": _prompted(subject.get("prompts")),
        "decode": None if subject.get("decode") in (None, "z0") else f"decoded {subject['decode']}",
        "decoder_num_inference_steps": _counted(subject.get("decoder_num_inference_steps"), "decoding step"),
        "dtype": None if subject.get("dtype") in (None, "float32") else subject["dtype"],
    }


def _prompted(prompts: Mapping[str, Any] | None) -> str | None:
    return None if prompts is None else "with captions and classes" if prompts["with_classes"] else "with captions"


def _counted(number: int | None, noun: str) -> str | None:
    return None if number is None else f"{number} {noun}{'' if number == 1 else 's'}"


# ---------------------------------------------------------------- protocols


@dataclass(frozen=True)
class Row:
    """A result in a table: its label differs from all others of its section."""

    label: str
    path: Path
    result: Result

    @property
    def pictures(self) -> Path:
        """As `ResultFile.pictures`."""
        return pictures_folder(self.path)

    def figure(self, path: str) -> Any:
        """As the function `figure`."""
        return find(self.result, path)


@dataclass(frozen=True)
class Section:
    """Results that may stand in one table, because they have the same kind and the same protocol."""

    kind: str
    protocol: dict[str, Any]
    rows: list[Row]


def by_protocol(files: Iterable[ResultFile]) -> list[Section]:
    """Groups results by what they were measured on and how.

    Args:
        files: as `read_results` gives them.

    Returns:
        a section for each kind and protocol, in the order of their first files. Within a section, our models come
        first, then others, then codecs, each in the order of names and numbers, so the order of files does not matter.
    """
    groups: dict[str, list[ResultFile]] = {}
    for file in files:
        groups.setdefault(json.dumps([file.result["kind"], protocol_of(file.result)], sort_keys=True), []).append(file)
    return [
        Section(group[0].result["kind"], protocol_of(group[0].result), _labelled(sorted(group, key=_order)))
        for group in groups.values()
    ]


def protocol_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What two results must have in common to stand in one table."""
    return dict(result["protocol"])


def _order(file: ResultFile) -> tuple[Any, ...]:
    subject, label = file.result["subject"], label_of(file.result)
    rank = 0 if is_ours(file.result) else 2 if is_codec(file.result) else 1
    family, _, quality = str(subject["name"]).partition(":")
    steps = (subject.get("num_inference_steps") or 0, subject.get("decoder_num_inference_steps") or 0)
    return rank, family, float(quality) if _is_number(quality) else 0.0, *steps, label, file.path.name


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _labelled(files: Sequence[ResultFile]) -> list[Row]:
    """Rows with labels; results with the same label also get the name of their file, or its path if need be."""
    labels = [label_of(file.result) for file in files]
    for where in ([file.path.stem for file in files], [file.path.as_posix() for file in files]):
        labels = [
            label if labels.count(label) == 1 else f"{label_of(file.result)} ({place})"
            for label, place, file in zip(labels, where, files, strict=True)
        ]
    return [Row(label, file.path, file.result) for label, file in zip(labels, files, strict=True)]
