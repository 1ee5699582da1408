"""Speed of everything, beside diffusers' networks and this machine's own peak.

    python benchmarks/speed.py [--quick] [--only encode,decode] [--output speed.json]

Weights are random, since only sizes matter. Six groups can be chosen by --only:

encode, decode  pictures of --sizes; decoding in 1, 2, 4 and 16 steps and one call of the denoiser; beside
                AutoencoderKL, to which ratios are, AutoencoderDC, AutoencoderTiny and the denoiser of
                ConsistencyDecoderVAE
train           a training step of stage 1, optimiser included, beside AutoencoderKL's without its GAN
base            a training step of the base model, and sampling, beside a DiTTransformer2DModel of its width and depth
growth          encoding and one-step decoding as pictures, batches and clips grow
video           clips, beside AutoencoderKLWan, to which ratios are, and AutoencoderKLLTXVideo

Each network is timed in turn with its peer (ours, peer, ours, peer, …). A ratio is the median over these pairs, a time
the median over the runs. "conv" and "mm" are FLOP/s as fractions of this machine's fastest 3×3 convolution and product
of matrices in the same dtype. These are measured before and after everything else; the file has fractions of the best.
MB is what a call needs beyond weights and inputs. bf16 is left out on CPUs that only emulate it, unless --dtypes asks
for it.

--output writes all figures as JSON, with the shortest and longest run, FLOPs by kind of operator, machine, versions and
commit; and plots into the folder of the same name that ends in ".pictures". On a GPU, batches are larger.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from _measure import convolution_peak, environment, machine, matmul_peak
from _speed_networks import Setting
from _speed_plots import write_plots
from _speed_report import as_json, heading, line, write_json
from _speed_rows import Row, Timer
from _speed_tasks import FULL, GROUPS, ON_GPUS, QUICK, Contest, Scale, contests
from diffusers.utils import logging

from ul_tokenizer import _compat

DTYPES = ("float32", "bfloat16")
MULTIPLE = 32  # of sides: the compression of AutoencoderDC


# ---------------------------------------------------------------- arguments


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command; a bad one ends it with a sentence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks, small sizes, fp32; below two minutes")
    parser.add_argument("--only", type=_groups, default=GROUPS, help=f"some of {','.join(GROUPS)}")
    parser.add_argument("--device", type=_device, default=torch.device("cpu"), help="cpu, cuda or cuda:1")
    parser.add_argument("--dtypes", type=_dtypes, help="float32,bfloat16; by default those that are native here")
    parser.add_argument("--compile", action="store_true", help="measure everything once more with torch.compile")
    parser.add_argument("--sizes", type=_sides, help="sides of pictures, such as 256,512")
    parser.add_argument("--batch", type=_positive, help="pictures or clips in a call; does not concern training")
    parser.add_argument("--runs", type=_positive, help="timed calls of each job (5; with --quick 3)")
    parser.add_argument("--shares", action="store_true", help="print where the time goes, by kind of operator")
    parser.add_argument("--output", type=Path, help="write the figures here as JSON, and plots beside it")
    return parser.parse_args(argv)


def _words(text: str, legal: Sequence[str], name: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(text.split(",")))
    if unknown := [word for word in words if word not in legal]:
        raise argparse.ArgumentTypeError(f"{name} must be some of {', '.join(legal)}, got {unknown[0]!r}.")
    return words


def _groups(text: str) -> tuple[str, ...]:
    return _words(text, GROUPS, "groups")


def _dtypes(text: str) -> tuple[str, ...]:
    return _words(text, DTYPES, "dtypes")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"the value must be a whole number of at least 1, got {text!r}.")
    return int(text)


def _sides(text: str) -> tuple[int, ...]:
    sides = tuple(_positive(word) for word in text.split(","))
    if odd := [side for side in sides if side % MULTIPLE]:
        raise argparse.ArgumentTypeError(f"sides must be multiples of {MULTIPLE}, got {odd[0]}.")
    return sides


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"the device must be cpu, cuda or cuda:N, got {text!r}.")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise argparse.ArgumentTypeError(f"the device must exist, got {text!r} where torch sees {count} CUDA devices.")
    return device


def scale_of(args: argparse.Namespace) -> Scale:
    """The networks and sizes that the arguments ask for."""
    scale = QUICK if args.quick else ON_GPUS if args.device.type == "cuda" else FULL
    if args.sizes:
        scale = dataclasses.replace(scale, sides=args.sizes, growing_sides=args.sizes)
    if args.batch:
        clip = dataclasses.replace(scale.clip, batch=args.batch)
        scale = dataclasses.replace(scale, batch=args.batch, clip=clip)
    return scale


def settings_of(args: argparse.Namespace) -> Iterator[Setting | str]:
    """Every combination of dtype and compilation; a sentence for a dtype that is left out."""
    for dtype in args.dtypes or (DTYPES[:1] if args.quick else DTYPES):
        is_slow = args.device.type == "cpu" and dtype == "bfloat16" and _compat.is_native_on_cpu("bf16") is False
        if is_slow and not args.dtypes:
            yield "bfloat16 is left out: this CPU only emulates it; --dtypes bfloat16 measures it all the same."
            continue
        for compiled in (False, True) if args.compile else (False,):
            yield Setting(args.device, getattr(torch, dtype), compiled)


# ---------------------------------------------------------------- the run


class Report:
    """Prints results as they come, and keeps them."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.missing: list[str] = []
        self.peaks: dict[str, dict[str, float]] = {}
        self._title = ""

    def measure_peaks(self, setting: Setting) -> None:
        """The best seen so far counts, since other processes may have taken their share of the machine before."""
        name = str(setting.dtype).removeprefix("torch.")
        best = self.peaks.setdefault(name, {"convolution": 0.0, "matmul": 0.0})
        for kind, measure in (("convolution", convolution_peak), ("matmul", matmul_peak)):
            best[kind] = max(best[kind], measure(setting.dtype, setting.device))
        rates = ", ".join(f"{kind} {peak / 1e9:.0f}" for kind, peak in best.items())
        print(f"\npeaks in {name}, GFLOP/s: {rates}", flush=True)

    def leave_out(self, sentence: str) -> None:
        """Says what is not measured."""
        self.missing.append(sentence)
        print(sentence, flush=True)

    def add(self, contest: Contest, results: Iterator[Row | str]) -> None:
        """Prints a contest's rows below a heading, which contests of one kind share."""
        for result in results:
            if isinstance(result, str):
                self.leave_out(result)
                continue
            title = heading(result, contest.peer.network)
            if title != self._title:
                print(title, flush=True)
                self._title = title
            self.rows.append(result)
            print(line(result, self.peaks[result.dtype]), flush=True)


def run(args: argparse.Namespace) -> Report:
    """Measures what the arguments ask for."""
    report, scale = Report(), scale_of(args)
    timer = Timer(args.runs or (3 if args.quick else 5), args.shares)
    for setting in settings_of(args):
        if isinstance(setting, str):
            report.leave_out(setting)
            continue
        report.measure_peaks(setting)
        for contest in contests(scale, args.only, args.device):
            if isinstance(contest, str):
                report.leave_out(contest)
            else:
                torch.compiler.reset()  # else many shapes count as recompilations of one function
                report.add(contest, timer.rows(contest, setting))
                written(report, args)  # a run that is cut off keeps what it has measured
        report.measure_peaks(setting)
    return report


def written(report: Report, args: argparse.Namespace) -> dict[str, Any] | None:
    """Writes all figures so far to --output, and returns them; None without it."""
    if args.output is None:
        return None
    result = as_json(report.rows, report.peaks, report.missing, environment(args.device), options_of(args))
    write_json(args.output, result)
    return result


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments as JSON."""
    return {key: value for key, value in vars(args).items() if key not in ("output", "device")}


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    args = parsed(argv)
    torch.manual_seed(0)
    logging.set_verbosity_error()
    print(machine())
    result = written(run(args), args)
    if result is not None:
        print(f"\nwritten: {args.output}")
        try:
            for picture in write_plots(result, args.output.with_suffix(".pictures")):
                print(f"written: {picture}")
        except ImportError:
            print("plots are left out, since matplotlib is not installed: pip install matplotlib.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
