"""The header and the manifests of a latent data set (`docs/reference/latent-format.md`); needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ul_tokenizer.files import whole_lines

FORMAT, VERSION = "ul_tokenizer.latents", 1
HEADER = "header.json"
MANIFESTS = "manifest-r*.jsonl"
_FILE = re.compile(r"shard-r\d{3,}-\d{6,}\.safetensors")
REQUIRED = ("latent_channels", "latent_logsnr", "dtype")
DTYPES = ("float32", "float16", "bfloat16", "int8")
VOLATILE = ("library_version", "created")  # header fields in which a continued job may differ

Header = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """A line of a manifest. It describes a finished file, whose latents all have one shape.

    Attributes:
        file: name of the file in the folder.
        sha256: hex digest of the file.
        bytes: size of the file.
        shape: (N, c, [t,] h, w).
        dtype: dtype of the stored latents.
        ids: ids of the N samples.
        columns: for each column N values; None where a sample has no value.
        statistics: statistics of the latents before rounding, as `ChannelStatistics.to_json` gives them.
        rounding: largest ("max") and root-mean-square ("rms") error of the stored latents.
    """

    file: str
    sha256: str
    bytes: int
    shape: tuple[int, ...]
    dtype: str
    ids: Sequence[str]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)

    def to_line(self) -> str:
        """The shard as JSON, without a line break."""
        columns = {name: list(values) for name, values in self.columns.items()}
        values = {**vars(self), "ids": list(self.ids), "columns": columns}
        return json.dumps(values, ensure_ascii=False, allow_nan=False)


# ---------------------------------------------------------------- header


def read_header(folder: Path) -> Header:
    """Reads the header of a folder.

    Raises:
        ValueError: there is no header, it is damaged, or it has another format or version.
    """
    path = folder / HEADER
    if not path.is_file():
        raise ValueError(f"Folder {folder} holds no latent data set: there is no {HEADER} in it.")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path} must be the header of a latent data set, which it is not.")
    if header.get("version") != VERSION:
        raise ValueError(
            f"{path} must be of version {VERSION}, got {header.get('version')}: another ul_tokenizer wrote it."
        )
    _check_required(header, str(path))
    return header


def _check_required(header: Mapping[str, Any], where: str) -> None:
    for name in REQUIRED:
        if header.get(name) is None:
            raise ValueError(f"{where} must have the field {name}, got none.")
    if header["dtype"] not in DTYPES:
        raise ValueError(f"{where} must have a dtype of {', '.join(DTYPES)}, got {header['dtype']!r}.")


def make_header(**values: Any) -> Header:
    """Makes a header with format and version; `docs/reference/latent-format.md` lists the fields.

    Raises:
        ValueError: a required field is missing.
    """
    header = {"format": FORMAT, "version": VERSION, **values}
    _check_required(header, "header")
    return json.loads(json.dumps(header))  # type: ignore[no-any-return]  # as it will be read


def check_header(header: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Compares a header with expected values; other fields may have any value.

    Raises:
        ValueError: a field differs; the message names the first one.
    """
    for name, value in json.loads(json.dumps(dict(expected))).items():
        if header.get(name) != value:
            raise ValueError(f"{where} must have the {name} {value!r}, got {header.get(name)!r}.")


# ---------------------------------------------------------------- lines


def manifest_name(rank: int) -> str:
    """Name of the manifest that a process writes."""
    return f"manifest-r{rank:03d}.jsonl"


def shard_name(rank: int, number: int) -> str:
    """Name of a shard that a process writes."""
    return f"shard-r{rank:03d}-{number:06d}.safetensors"


def is_shard(name: str) -> bool:
    """Whether a file name is that of a shard."""
    return bool(_FILE.fullmatch(name))


def manifests(folder: Path) -> list[Path]:
    """All manifests of a folder, sorted."""
    return sorted(folder.glob(MANIFESTS))


def read_shards(path: Path) -> Iterator[Shard]:
    """Yields the finished shards of one manifest, one at a time; an incomplete last line is ignored.

    Raises:
        ValueError: a damaged line, or one that names a file outside of the folder.
    """
    for number, line in enumerate(whole_lines(path), 1):
        yield _parsed(path, number, line)


def read_all_shards(folder: Path) -> Iterator[Shard]:
    """Yields the finished shards of all manifests of a folder; errors as `read_shards`."""
    for path in manifests(folder):
        yield from read_shards(path)


def _parsed(path: Path, number: int, line: str) -> Shard:
    try:
        values = json.loads(line)
        shard = Shard(**{spec.name: values[spec.name] for spec in fields(Shard)})
        shard = Shard(**{**vars(shard), "shape": tuple(int(size) for size in shard.shape)})
        is_sound = shard.shape[0] == len(shard.ids) and all(len(c) == len(shard.ids) for c in shard.columns.values())
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        is_sound = False
    if not is_sound:
        raise ValueError(f"{path} is damaged: line {number} does not describe a shard.")
    if not _FILE.fullmatch(shard.file):
        raise ValueError(f"{path} is damaged: line {number} names {shard.file!r}, which is not a shard's name.")
    return shard
