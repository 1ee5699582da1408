r"""Converts the encoder, decoder and prior of another implementation to our repository, with an explicit map of names.

    python conversion/from_split_components.py SRC --map map.json --like my-preset-or-repository -o my-model

SRC is a folder with `encoder/`, `decoder/` and `prior/` (diffusers folders), or with files of these names
(.safetensors, or .npz as a JAX or Flax tree is saved: names with slashes, kernels HWIO and (in, out)), or one such
file that holds all three below these names. The map:

    {"encoder": {"rename": [["^down\\.(\\d+)", "stages.\\1"]], "drop": ["num_batches_tracked$"]}, "decoder": …}

Rules are regular expressions, applied in order to each name; what they leave is the name with us. --like gives the
architecture: a preset, bundled name, folder or hub id. Every name without a place, on either side, is reported, and
nothing is written unless all fit (--partial keeps fresh weights where some are missing).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ModelMixin
from safetensors.torch import load_file
from torch import Tensor

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.presets import PRESETS, build_autoencoder, build_prior
from ul_tokenizer.models.repository import PRIOR, load_autoencoder, load_prior
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

PARTS = ("encoder", "decoder", "prior")
SUFFIXES = (".safetensors", ".npz")


@dataclass
class Report:
    """Lists the names that could not be mapped."""

    mapped: int = 0
    dropped: list[str] = field(default_factory=list)  # by a rule
    unmapped: list[str] = field(default_factory=list)  # of the source
    missing: list[str] = field(default_factory=list)  # of ours
    misshapen: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether every name on both sides was mapped."""
        return not (self.unmapped or self.missing or self.misshapen)

    def lines(self) -> list[str]:
        """Returns the report as lines of text."""
        kinds = ("dropped", "unmapped", "missing", "misshapen")
        return [f"mapped {self.mapped}"] + [f"{kind}: {name}" for kind in kinds for name in getattr(self, kind)]


# ---------------------------------------------------------------- the source


def read_parts(source: Path) -> dict[str, dict[str, Tensor]]:
    """Part → name → weight, in torch's layouts.

    Raises:
        ValueError: none of the parts is there.
    """
    if source.is_file():
        weights = _read(source)
        parts = {
            part: {k[len(part) + 1 :]: w for k, w in weights.items() if k.startswith(f"{part}.")} for part in PARTS
        }
    else:
        parts = {part: _read_all(_files_of(source, part)) for part in PARTS}
    if not any(parts.values()):
        raise ValueError(f"{source} holds none of {', '.join(PARTS)}.")
    return parts


def _files_of(source: Path, part: str) -> list[Path]:
    if (source / part).is_dir():
        return sorted(path for path in (source / part).iterdir() if path.suffix in SUFFIXES)
    return [path for path in (source / f"{part}{suffix}" for suffix in SUFFIXES) if path.is_file()]


def _read_all(files: Sequence[Path]) -> dict[str, Tensor]:
    return {key: weight for file in files for key, weight in _read(file).items()}


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            weights = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    else:
        weights = load_file(file)
    return dict(_from_flax(key, weight) if _is_flax(key) else (key, weight) for key, weight in weights.items())


def _is_flax(key: str) -> bool:
    return "/" in key or key.rpartition(".")[2] in ("kernel", "scale", "embedding")


def _from_flax(key: str, weight: Tensor) -> tuple[str, Tensor]:
    """Names by dots, `kernel`, `scale` and `embedding` as `weight`; HWIO → OIHW, (in, out) → (out, in)."""
    key = key.replace("/", ".").removeprefix("params.")
    stem, _, leaf = key.rpartition(".")
    if leaf == "kernel" and weight.ndim >= 2:
        spatial = range(weight.ndim - 2)
        weight = weight.permute(weight.ndim - 1, weight.ndim - 2, *spatial).contiguous()
    return (f"{stem}.weight" if leaf in ("kernel", "scale", "embedding") else key), weight


# ---------------------------------------------------------------- the map


def rename(name: str, rules: Mapping[str, Any]) -> str | None:
    """Returns our name for a weight, or None if a rule drops it."""
    if any(re.search(pattern, name) for pattern in rules.get("drop", ())):
        return None
    for pattern, replacement in rules.get("rename", ()):
        name = re.sub(pattern, replacement, name)
    return name


def read_map(path: Path) -> dict[str, dict[str, Any]]:
    """Reads the rules from a file.

    Raises:
        ValueError: no JSON object of parts with "rename" and "drop", or no regular expressions in them.
    """
    try:
        rules = json.loads(path.read_text(encoding="utf-8"))
        for part, entry in rules.items():
            if part not in PARTS or set(entry) - {"rename", "drop"}:
                raise ValueError(f"{part} is not a part, or it has keys other than rename and drop")
            for pattern in [*(pair[0] for pair in entry.get("rename", ())), *entry.get("drop", ())]:
                re.compile(pattern)
    except (ValueError, TypeError, AttributeError, IndexError, re.error) as error:
        raise ValueError(f"--map {path} is not a map of names: {error}.") from error
    return dict(rules)


def place(
    parts: Mapping[str, Mapping[str, Tensor]], rules: Mapping[str, Mapping[str, Any]], models: Mapping[str, ModelMixin]
) -> Report:
    """Copies the weights that fit into our networks."""
    report = Report()
    for part in PARTS:
        network = models[part]
        ours = network.state_dict()
        found: dict[str, Tensor] = {}
        for name, weight in parts.get(part, {}).items():
            target = rename(name, rules.get(part, {}))
            if target is None:
                report.dropped.append(f"{part}.{name}")
            elif target not in ours or target in found:
                report.unmapped.append(f"{part}.{name} → {target}")
            elif ours[target].shape != weight.shape:
                shapes = f"{tuple(weight.shape)}, not {tuple(ours[target].shape)}"
                report.misshapen.append(f"{part}.{name} → {target}: {shapes}")
            else:
                found[target] = weight
        report.missing += [f"{part}.{name}" for name in ours if name not in found]
        report.mapped += len(found)
        network.load_state_dict({**ours, **found})
    return report


# ---------------------------------------------------------------- the target


def models_like(name: str) -> tuple[UnifiedLatentsAutoencoder, UnifiedLatentsTransformer]:
    """Builds the networks of a preset, or with the architecture of a repository."""
    if name in PRESETS:
        return build_autoencoder(name), build_prior(name)
    autoencoder, prior = load_autoencoder(name), load_prior(name)
    return (
        UnifiedLatentsAutoencoder.from_config(dict(autoencoder.config)),
        UnifiedLatentsTransformer.from_config(dict(prior.config)),
    )


def convert(source: Path, rules: Mapping[str, Mapping[str, Any]], like: str, output: Path, partial: bool) -> Report:
    """Writes the repository into a new folder if all weights fit, or if `partial` is true.

    Raises:
        ValueError: an output that exists, nothing in the source, or an unknown architecture.
    """
    if output.exists():
        raise ValueError(f"--output must be a new folder, got {output}, which exists.")
    autoencoder, prior = models_like(like)
    report = place(
        read_parts(source), rules, {"encoder": autoencoder.encoder, "decoder": autoencoder.decoder, "prior": prior}
    )
    if report.fits or partial:
        autoencoder.save_pretrained(output)
        prior.save_pretrained(output / PRIOR)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status, which is 1 also if some names could not be mapped."""
    parser = argparse.ArgumentParser(description="Another implementation's components as one of our repositories.")
    parser.add_argument("source", metavar="SRC", type=Path, help="folder or file with encoder, decoder and prior")
    parser.add_argument("--map", type=Path, required=True, help="JSON file of names")
    parser.add_argument("--like", required=True, help="preset, bundled name, folder or hub id with the architecture")
    parser.add_argument("--output", "-o", type=Path, required=True, help="a new folder")
    parser.add_argument("--partial", action="store_true", help="write even if some names on either side are not mapped")
    args = parser.parse_args(argv)
    try:
        report = convert(args.source, read_map(args.map), args.like, args.output, args.partial)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(report.lines()))
    if not report.fits:
        print(
            f"error: some names could not be mapped{'' if args.partial else '; nothing was written'}", file=sys.stderr
        )
    return 0 if report.fits else 1


if __name__ == "__main__":
    raise SystemExit(main())
