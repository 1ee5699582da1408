"""Everything that needs a GPU to be proven, in one command of less than eight minutes, without a network.

    python benchmarks/gpu_check.py [--only precision,stage1] [--output benchmarks/results/gpu_check/h100.json]

Data are made on the spot and weights are random, since only sizes and numbers matter. Checks, in this order:

precision   outputs are finite in fp16 and bf16 at all noise levels
compiled    outputs of torch.compile are those of eager mode
stage1      a training step of ul-imagenet512 at 512², eager and compiled, with the largest batch that fits
job         the encoding job on images of 512²
base        a training step of ul-base-imagenet512-medium on latents, likewise
speed       encoding and decoding in 1 and 4 steps, beside AutoencoderKL and AutoencoderDC (benchmarks/speed.py)
training    60 seconds of training must lower the loss
suite       the fast tests that train and compute on the GPU

A step's figures are images/s, the fraction of this card's fastest product or convolution in the same run, the peak of
memory, and how often a step waits for the GPU. A check that fails does not stop the others; the exit status is then 1.

--device cpu --quick runs all of this on networks of no size, to test the script itself. Its figures say nothing, and
the file is labelled so.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _gpu_checks import CHECKS, Bench, CheckError
from _measure import environment, machine
from diffusers.utils import logging

FORMAT, VERSION = "ul_tokenizer.gpu_check", 1
NO_FIGURES = "a test of the script on networks of no size: these figures say nothing about any machine"


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command; a bad one ends it with a sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_names, default=tuple(CHECKS), help=f"some of {','.join(CHECKS)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu needs --quick")
    parser.add_argument("--quick", action="store_true", help="networks of no size, to test this script")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="write all figures here as JSON")
    args = parser.parse_args(argv)
    if args.device == "cpu" and not args.quick:
        parser.error("--device cpu needs --quick: it tests the script, and measures nothing.")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch sees; --device cpu --quick tests the script.")
    return args


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in CHECKS]:
        raise argparse.ArgumentTypeError(f"checks must be some of {', '.join(CHECKS)}, got {unknown[0]!r}.")
    return names


def run(bench: Bench, names: Sequence[str]) -> list[dict[str, Any]]:
    """Runs the checks one after another, and prints the figures of each as they come."""
    return [_run_one(bench, name) for name in CHECKS if name in names]


def _run_one(bench: Bench, name: str) -> dict[str, Any]:
    print(f"\n{name}", flush=True)
    start = time.perf_counter()
    result: dict[str, Any] = {"name": name, "passed": True, "figures": {}, "error": None}
    try:
        for figure, value in CHECKS[name](bench):
            result["figures"][figure] = value
            print(f"  {figure:<58} {_text(value)}", flush=True)
    except CheckError as error:
        result.update(passed=False, error=str(error))
    except Exception as error:  # the other checks must run all the same
        traceback.print_exc()
        result.update(passed=False, error=f"{type(error).__name__}: {error}".splitlines()[0])
    bench.empty_cache()
    result["seconds"] = round(time.perf_counter() - start, 1)
    print(f"  {'passed' if result['passed'] else 'FAILED: ' + result['error']} in {result['seconds']} s", flush=True)
    return result


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "–" if value is None else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    args = parsed(argv)
    torch.manual_seed(0)
    logging.set_verbosity_error()
    print(machine())
    note = NO_FIGURES if args.quick else None
    if note:
        print(note)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(torch.device(args.device), args.quick, Path(folder))
        checks = run(bench, args.only)
        report = {"format": FORMAT, "version": VERSION, "note": note, "environment": environment(bench.device)}
        report |= {"peaks_flops_per_second": bench.peaks, "checks": checks}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    failed = [check["name"] for check in checks if not check["passed"]]
    print(f"\nwritten: {args.output}; " + (f"failed: {', '.join(failed)}" if failed else "all passed"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
