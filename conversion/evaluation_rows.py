"""Writes a bundled model's evaluation.jsonl, from which the tables of its card are made, from results of `evaluate`.

    make figures-fashion                                              # measures ul-fashion, then runs the next line
    python conversion/evaluation_rows.py benchmarks/results/fashion-card ul-fashion

Each result is a line with the figures and the settings on which they depend. The Fréchet distance is that of the only
network among the --features, with its floor; a result without a distance has none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ul_tokenizer import pretrained
from ul_tokenizer.evaluation.results import Result, figure, read_results
from ul_tokenizer.files import write_whole

FILE = "evaluation.jsonl"
DRAWN = ("generator", "solver", "num_inference_steps", "decoder_num_inference_steps", "guidance_scale")
MORE_DRAWN = ("guidance_interval", "decode", "unconditional", "seed")


def row_of(result: Result) -> dict[str, Any]:
    """The line of a result.

    Raises:
        ValueError: several networks measured distances.
    """
    if len(result["distances"]) > 1:
        names = ", ".join(result["distances"])
        raise ValueError(f"results must have distances of one network, got {names} for {result['subject']['name']}.")
    subject = result["subject"]
    net: dict[str, Any] = next(iter(result["distances"].values()), {})
    distance = net.get("frechet", {})
    value, floor = distance.get("value"), distance.get("floor")
    common = {
        "measured": result["kind"],
        "name": subject["name"],
        "weights_sha256": subject.get("weights_sha256"),
        "dtype": subject.get("dtype"),
        "metric": distance.get("name"),
        "reference": net.get("net"),
        "frechet_distance": value,
        "floor": floor,
        "ratio": value / floor if value is not None and floor else None,
        "accuracy": figure(result, "metrics.accuracy.value"),
    }
    return {**common, **(_generated(result) if result["kind"] == "generation" else _reconstructed(result))}


def _generated(result: Result) -> dict[str, Any]:
    return {
        "num_images": result["protocol"]["num_generated"],
        **{key: result["subject"].get(key) for key in (*DRAWN, *MORE_DRAWN)},
        "real_accuracy": figure(result, "metrics.real_accuracy.value"),
        "seconds_per_image": figure(result, "cost.seconds_per_image"),
    }


def _reconstructed(result: Result) -> dict[str, Any]:
    names = ("psnr_of_mean_mse", "mean_psnr", "bits_per_pixel")
    return {
        "num_images": result["protocol"]["num_samples"],
        "decoder_num_inference_steps": result["subject"]["num_inference_steps"],
        **{name: figure(result, f"metrics.{name}.value") for name in names},
    }


def write_rows(results: Sequence[Path], name: str) -> Path:
    """Writes the file of a bundled model and returns its path.

    Raises:
        ValueError: there are no results, or as `row_of`.
        OSError: a file can't be read or written.
    """
    lines = [json.dumps(row_of(file.result), ensure_ascii=False) + "\n" for file in read_results(results)]
    path = pretrained.ROOT / name / FILE
    write_whole(path, "".join(lines).encode())
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", metavar="RESULTS", type=Path, help="folder with the JSON files of `evaluate`")
    parser.add_argument("name", metavar="NAME", help="bundled model")
    args = parser.parse_args(argv)
    try:
        print(write_rows([args.results], args.name))
    except (ValueError, OSError) as error:
        print(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
