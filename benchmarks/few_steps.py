"""Decoding in few steps: a distilled decoder beside its teacher, and how long small and large decoders take.

    python benchmarks/few_steps.py [DATA] -o benchmarks/results/few-steps

First it measures the teacher in 1, 2, 4, 8 and 16 steps and the student in 1 and 2, as `ul-tokenizer evaluate
reconstruction` does, on the crops of the card of ul-photo-f8: PSNR, sharpness, KID and Fréchet distance of
EfficientNet-Lite0's features, and seconds. A model without a teacher is measured as a teacher alone.

Then it times decoding a picture of --side by this model in one step, by the paper's size (the preset ul-imagenet512) in
one step, by AutoencoderTiny and by AutoencoderKL, each in turn with AutoencoderKL. All but the model have random
weights, since only sizes matter. Ratios are medians over these pairs.

Results are in OUTPUT: the evaluation's JSON files, and decode-times.json. What is there is not measured again; --again
times anew. Tables of documents need these definitions in benchmarks/tables.yaml:

    few-steps:
      files: [few-steps/ul-*-steps-*.json, few-steps/ul-*-1-step-*.json]
      sort: [subject.name, subject.num_inference_steps]
      columns:
        decoder: "{label}"
        PSNR of the mean MSE (dB): "{metrics.psnr_of_mean_mse.value:.2f}"
        sharpness: "{metrics.sharpness.value:.2f}"
        KID × 1000: "{1000 * distances.efficientnet-lite0.kid.value:.2f}"
        feature distance: "{distances.efficientnet-lite0.frechet.value:.1f}"
        ms per crop: "{1000 * cost.decode_seconds:.1f}"
    few-steps-times:
      files: [few-steps/decode-times.json]
      rows: rows
      columns:
        decoder: "{network}"
        M parameters: "{parameters / 1000000:.1f}"
        ms: "{1000 * seconds.median:.0f}"
        of AutoencoderKL's time: "{ratio_to_kl.median:.2f}"
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _measure import environment, seconds_of
from _speed_networks import Network, Setting, latents_of, parameters
from _speed_tasks import FULL, QUICK, Scale
from diffusers.utils import logging
from torch import Tensor

from ul_tokenizer.cli.evaluation_tables import print_all
from ul_tokenizer.evaluation.autoencoders import AnyAutoencoder, load_any_autoencoder
from ul_tokenizer.evaluation.job import evaluate_reconstruction
from ul_tokenizer.evaluation.samples import Crops
from ul_tokenizer.files import write_json
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.repository import MissingTeacherError, load_teacher

TEACHER_STEPS, STUDENT_STEPS = (1, 2, 4, 8, 16), (1, 2)
DATA = "~/.cache/ul_tokenizer/debian-photos/validation"
TIMES = "decode-times.json"


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA", nargs="?", default=DATA, help="photographs (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, help="folder for results; without it they are only printed")
    parser.add_argument("--model", default="ul-photo-f8", help="distilled autoencoder (%(default)s)")
    parser.add_argument("--resolution", type=int, default=320, help="shorter side (%(default)s)")
    parser.add_argument("--crop-size", type=int, default=128, help="side of the random crops (%(default)s)")
    parser.add_argument("-n", "--num", type=int, default=252, help="crops (%(default)s)")
    parser.add_argument("--features", default="efficientnet-lite0", help="network of distances, or none (%(default)s)")
    parser.add_argument("--side", type=int, default=256, help="side of the pictures that are timed (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="timed calls of each decoder (%(default)s)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda (%(default)s)")
    parser.add_argument("--again", action="store_true", help="time anew although there is a file")
    parser.add_argument("--quick", action="store_true", help="time small networks only, to try the command")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- quality


def decoders(model: str, device: torch.device) -> list[tuple[AnyAutoencoder, tuple[int, ...]]]:
    """Teacher and student with their numbers of steps; a model without a teacher is one.

    Raises:
        ValueError: it is none of our autoencoders.
    """
    student = load_any_autoencoder(model, device=device)
    if not student.is_ours:
        raise ValueError(f"--model must be a UnifiedLatentsAutoencoder, got a {type(student.model).__name__}.")
    try:
        teacher = load_teacher(model).eval().requires_grad_(False).to(device)
    except MissingTeacherError as error:
        print(f"{error} It is measured as a teacher alone.")
        return [(student, TEACHER_STEPS)]
    return [(AnyAutoencoder(f"{model}-teacher", teacher, student.prior), TEACHER_STEPS), (student, STUDENT_STEPS)]


def measure_quality(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A result for each decoder and number of steps."""
    crops = Crops(args.resolution, "random", args.crop_size, args.num)
    features = [] if args.features == "none" else [args.features]
    return [
        result
        for autoencoder, steps in decoders(args.model, args.device)
        for result in evaluate_reconstruction(
            args.data,
            [autoencoder],
            crops=crops,
            steps=steps,
            features=features,
            lpips=None,
            force_fd=True,
            output=args.output,
            device=args.device,
        )
    ]


# ---------------------------------------------------------------- time


class Decoder(NamedTuple):
    """What is timed."""

    network: str
    parameters: int  # of the decoder
    call: Callable[[], Any]


@torch.inference_mode()
def decoder_of(network: Network, setting: Setting, side: int) -> Decoder:
    """A call that decodes the latents of a picture, in one step."""
    model = setting.for_inference(network.make())
    z = latents_of(model, setting.random(1, 3, side, side))
    options = {"num_inference_steps": 1} if isinstance(model, UnifiedLatentsAutoencoder) else {}

    @torch.inference_mode()
    def call() -> Tensor:
        decoded: Tensor = model.decode(z, **options).sample
        return decoded

    return Decoder(network.name, parameters(model.decoder), call)


def measure_times(model: str, scale: Scale, side: int, runs: int, device: torch.device) -> dict[str, Any]:
    """Seconds of each decoder in turn with AutoencoderKL."""
    setting = Setting(device, torch.float32, compiled=False)
    own = Network(f"{model}, 1 step", lambda: load_any_autoencoder(model).model)
    paper = scale.pictures[0]
    tiny = next(network for network in scale.others if network.name == "AutoencoderTiny")
    entrants = [own, replace(paper, name=f"{paper.name}, 1 step"), tiny]
    kl = decoder_of(scale.kl, setting, side)
    rows, of_kl = [], []
    for network in entrants:
        decoder = decoder_of(network, setting, side)
        pairs = timed_pairs(decoder.call, kl.call, runs, device)
        of_kl += [second for _, second in pairs]
        ratios = [first / second for first, second in pairs]
        rows.append({**row_of(decoder, [first for first, _ in pairs]), "ratio_to_kl": spread(ratios)})
    rows.append({**row_of(kl, of_kl), "ratio_to_kl": spread([1.0])})
    return {"side": side, "runs": runs, "rows": rows, "environment": environment(device)}


def timed_pairs(
    ours: Callable[[], Any], peer: Callable[[], Any], runs: int, device: torch.device
) -> list[tuple[float, float]]:
    """Seconds of both calls in turn, after one call of each that doesn't count."""
    ours(), peer()
    return [(seconds_of(ours, device), seconds_of(peer, device)) for _ in range(runs)]


def row_of(decoder: Decoder, seconds: Sequence[float]) -> dict[str, Any]:
    """A row of the times."""
    return {"network": decoder.network, "parameters": decoder.parameters, "seconds": spread(seconds)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    args = parsed(argv)
    logging.disable_progress_bar()
    path = None if args.output is None else args.output / TIMES
    try:
        print_all(measure_quality(args), args.output, as_json=False)
        if path is None or args.again or not path.exists():
            scale = QUICK if args.quick else FULL
            times = measure_times(args.model, scale, args.side, args.runs, args.device)
            print_times(times)
            if path is not None:
                write_json(path, times)
    except (ValueError, OSError) as error:
        print(f"error: {error}")
        return 1
    return 0


def print_times(times: dict[str, Any]) -> None:
    """A line for each decoder."""
    print(f"decoding a picture of {times['side']}x{times['side']}, median of {times['runs']} calls:")
    for row in times["rows"]:
        of_kl = f"{row['ratio_to_kl']['median']:.2f} of AutoencoderKL's time"
        print(f"  {row['network']:32} {1000 * row['seconds']['median']:9.1f} ms  {of_kl}")


if __name__ == "__main__":
    raise SystemExit(main())
