"""What a latent data set says of itself: one header, and one line per finished shard. `docs/latent_format.md`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ul_tokenizer.files import whole_lines

FORMAT, VERSION = "ul_tokenizer.latents", 1
HEADER = "header.json"
MANIFESTS = "manifest-r*.jsonl"
_FILE = re.compile(r"shard-r\d{3,}-\d{6,}\.safetensors")
REQUIRED = ("latent_channels", "latent_logsnr", "dtype")
DTYPES = ("float32", "float16", "bfloat16", "int8")

Header = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """A line of a manifest: a finished file, whose latents all have one shape.

    Attributes:
        file: its name in the folder.
        sha256: of its bytes.
        bytes: how many.
        shape: (N, c, [t,] h, w).
        dtype: as stored.
        ids: of the N samples.
        columns: per column a value per sample.
        statistics: of the latents before rounding, as `ChannelStatistics.to_json`.
        rounding: largest and root-mean-square error of what is stored.
    """

    file: str
    sha256: str
    bytes: int
    shape: tuple[int, ...]
    dtype: str
    ids: list[str]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    statistics: dict[str, Any] = field(default_factory=dict)
    rounding: dict[str, float] = field(default_factory=dict)

    def to_line(self) -> str:
        """Its JSON, without a line's end."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)


# ---------------------------------------------------------------- header


def read_header(folder: Path) -> Header:
    """The header.

    Raises:
        ValueError: none, a damaged one, or one of another format or version.
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
    """A header with format and version; see `docs/latent_format.md` for the fields.

    Raises:
        ValueError: a required field is missing.
    """
    header = {"format": FORMAT, "version": VERSION, **values}
    _check_required(header, "header")
    return json.loads(json.dumps(header))  # type: ignore[no-any-return]  # as it will be read


def check_header(header: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Refuses a header that differs in an expected field.

    Raises:
        ValueError: names the first field that differs.
    """
    for name, value in json.loads(json.dumps(dict(expected))).items():
        if header.get(name) != value:
            raise ValueError(f"{where} must have the {name} {value!r}, got {header.get(name)!r}.")


# ---------------------------------------------------------------- lines


def manifest_name(rank: int) -> str:
    """The manifest of one process."""
    return f"manifest-r{rank:03d}.jsonl"


def shard_name(rank: int, number: int) -> str:
    """The file of one process's shard."""
    return f"shard-r{rank:03d}-{number:06d}.safetensors"


def is_shard(name: str) -> bool:
    """Whether a file has the name of a shard."""
    return bool(_FILE.fullmatch(name))


def manifests(folder: Path) -> list[Path]:
    """All manifests of a folder, in order."""
    return sorted(folder.glob(MANIFESTS))


def read_shards(path: Path) -> list[Shard]:
    """The finished shards of one manifest; a last line that was cut short is none.

    Raises:
        ValueError: a damaged line, or one that names a file outside of the folder.
    """
    return [_parsed(path, number, line) for number, line in enumerate(whole_lines(path), 1)]


def _parsed(path: Path, number: int, line: str) -> Shard:
    try:
        values = json.loads(line)
        shard = Shard(**{spec.name: values[spec.name] for spec in fields(Shard)})
        shard = Shard(**{**vars(shard), "shape": tuple(int(size) for size in shard.shape)})
        is_sound = shard.shape[0] == len(shard.ids) and all(len(c) == len(shard.ids) for c in shard.columns.values())
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        is_sound = False
    if not is_sound:
        raise ValueError(f"{path} is damaged: line {number} describes no shard.")
    if not _FILE.fullmatch(shard.file):
        raise ValueError(f"{path} is damaged: line {number} names the file {shard.file!r}, which is no shard's.")
    return shard
