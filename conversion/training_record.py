"""What a bundled model's training was and cost, from its logs: training_phases.json in the model's folder.

    python conversion/training_record.py ul-photo-f8 --machine "2 cores of an AMD EPYC" --watts 60

`conversion/bundle_weights.py` writes the file when it bundles a model. This command writes it anew from the arguments
and the curve that were kept, for example to state the machine. `make figures` then inserts the card's table of phases,
which benchmarks/tables.yaml defines, and `make pictures` draws the curve.

Seconds are those of the training steps, from the logged rates; validations and interruptions don't count. The energy is
hours × the stated power of the machine, an estimate; without a stated power there is none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ul_tokenizer import pretrained
from ul_tokenizer.files import read_json_object, write_json

FILE, CURVE = "training_phases.json", "training_curve.json"
NAMES = {"autoencoder": "autoencoder and prior", "base": "base model", "distill": "distilled decoder"}
PARTS = {"encoder": "encoder", "decoder": "decoder", "prior": "prior"}  # --train_only
KEPT = ("resolution", "train_batch_size", "learning_rate", "lr_scheduler", "mixed_precision", "seed")
Row = Mapping[str, Any]


def record(
    configs: Sequence[Row], rows: Sequence[Row], machine: str | None = None, watts: float | None = None
) -> dict[str, Any]:
    """What the phases of a training were and cost.

    Args:
        configs: the arguments of each phase.
        rows: the logged lines of all phases, whose steps are counted through all of them.
        machine: what trained, in words.
        watts: power of that machine while it trains.

    Raises:
        ValueError: a phase has no logged rates, or its number of steps isn't known.
    """
    phases, first_step = [], 0
    for number, config in enumerate(configs, 1):
        last_step = first_step + _steps(config, rows, first_step, is_last=number == len(configs))
        own = [row for row in rows if first_step < row["step"] <= last_step]
        phases.append(_phase(number, config, own, first_step, last_step))
        first_step = last_step
    hours = sum(phase["hours"] for phase in phases)
    return {
        "machine": machine,
        "watts": watts,
        "phases": phases,
        "hours": hours,
        "kwh": None if watts is None else hours * watts / 1000,
    }


def _steps(config: Row, rows: Sequence[Row], first_step: int, is_last: bool) -> int:
    """Steps of a phase, which may have ended before all that were asked for."""
    logged = max((row["step"] for row in rows), default=0) - first_step
    steps = config.get("max_train_steps")
    if steps is None and not is_last:
        raise ValueError("each phase but the last must have max_train_steps, got one with epochs.")
    return int(logged if steps is None else min(steps, logged))


def _phase(number: int, config: Row, rows: Sequence[Row], first_step: int, last_step: int) -> dict[str, Any]:
    size = int(config.get("train_batch_size", 1)) * int(config.get("gradient_accumulation_steps") or 1)
    seconds = seconds_of(rows, size, first_step, last_step)
    stage = stage_of(config)
    part = PARTS.get(str(config.get("train_only")), "")
    has_rate = part != "prior"  # neither its weight nor the decoder's bias matters to a prior alone
    return {
        "number": number,
        "stage": stage,
        "what": f"{part} alone" if part else NAMES[stage],
        **{name: config.get(name) for name in KEPT},
        "loss_factor": config.get("loss_factor") if has_rate else None,
        "bias": config.get("decoder_bias", config.get("sigmoid_bias")) if has_rate else None,
        "steps": last_step - first_step,
        "samples": (last_step - first_step) * size,
        "seconds": seconds,
        "hours": seconds / 3600,
    }


def stage_of(config: Row) -> str:
    """The stage of a run whose paths were left out of its arguments."""
    if "base_config" in config:
        return "base"
    return "distill" if "teacher_inference_steps" in config else "autoencoder"


def seconds_of(rows: Sequence[Row], batch_size: int, first_step: int, last_step: int) -> float:
    """Seconds of training steps: each logged rate holds since the line before it.

    Raises:
        ValueError: there is no rate.
    """
    logged = [row for row in rows if row.get("images_per_second")]
    if not logged:
        raise ValueError(f"the log must have rates of the steps from {first_step} to {last_step}, got none.")
    seconds, step = 0.0, first_step
    for row in logged:
        seconds += (row["step"] - step) * batch_size / row["images_per_second"]
        step = row["step"]
    return seconds + (last_step - step) * batch_size / logged[-1]["images_per_second"]


# ---------------------------------------------------------------- of a bundled model


def kept_configs(folder: Path) -> list[dict[str, Any]]:
    """The arguments of each phase, as bundling keeps them."""
    paths = sorted(folder.glob("training-phase-*.yaml"), key=lambda path: int(path.stem.rpartition("-")[2]))
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths]


def write_record(folder: Path, rows: Sequence[Row] | None, machine: str | None, watts: float | None) -> dict[str, Any]:
    """Writes training_phases.json beside the kept arguments; machine and power stay as they were unless given.

    Args:
        folder: of the bundled model.
        rows: all logged lines; None for those of the kept curve.
        machine: what trained, in words.
        watts: its power.

    Raises:
        ValueError: there is no record of a training.
    """
    configs = kept_configs(folder)
    if not configs or not (folder / CURVE).is_file():
        raise ValueError(f"{folder} must hold training-phase-1.yaml and {CURVE}, got a model without them.")
    if rows is None:
        curve = json.loads((folder / CURVE).read_text(encoding="utf-8"))
        rows = sorted([*curve["training"], *curve["validation"]], key=lambda row: int(row["step"]))
    known = read_json_object(folder / FILE) if (folder / FILE).is_file() else {}
    made = record(configs, rows, machine or known.get("machine"), watts or known.get("watts"))
    write_json(folder / FILE, made)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="+", help="bundled models")
    add_options(parser)
    args = parser.parse_args(argv)
    try:
        for name in args.names:
            folder = pretrained.ROOT / name
            made = write_record(folder, None, args.machine, args.watts)
            print(f"{name}: {len(made['phases'])} phases, {made['hours']:.2f} hours")
    except (ValueError, OSError) as error:
        print(f"error: {error}")
        return 1
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options about the machine, which the logs don't name."""
    parser.add_argument("--machine", metavar="WORDS", help="what trained, such as '2 cores of an AMD EPYC'")
    parser.add_argument("--watts", metavar="W", type=float, help="power of this machine while it trains")


if __name__ == "__main__":
    raise SystemExit(main())
