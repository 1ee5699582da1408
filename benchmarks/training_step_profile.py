"""What a training step of stage 1 calls, copies and moves on a CPU, here and at another commit.

python benchmarks/training_step_profile.py --against HEAD~1

Each tree is measured in processes of its own, in turn, because this machine's speed changes from minute to minute.
Calls are those of torch's operators in the forward and backward pass, the optimiser and the averages. Bytes are those
that operators read and write, views left out: what a GPU would move if it fused nothing. Reads are values that the host
waits for; on a GPU, each of them is a synchronisation.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 3  # processes per tree
COPIES = {"aten.copy_", "aten._to_copy", "aten.clone", "aten._foreach_copy_"}
READS = {"aten._local_scalar_dense", "aten.is_nonzero", "aten.equal"}
ROWS = ("calls", "copies", "reads", "megabytes", "megabytes_copied", "seconds")


def main() -> None:
    """Prints a table of both trees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", help="measure this commit, too")
    parser.add_argument("--preset", default="ul-small-f8")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--micro-steps", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each process")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args)))
        return
    with trees(args.against) as found:
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in found}
        for _ in range(ROUNDS):
            for name, tree in found.items():
                runs[name].append(measure_elsewhere(tree))
    table = {name: {row: statistics.median(run[row] for run in those) for row in ROWS} for name, those in runs.items()}
    print(f"{'per step':<18}" + "".join(f"{name:>16}" for name in table))
    for row in ROWS:
        print(f"{row:<18}" + "".join(f"{figures[row]:>16,.3f}" for figures in table.values()))
    if args.json:
        args.json.write_text(json.dumps({"settings": sys.argv[1:], "runs": runs}, indent=1) + "\n", encoding="utf-8")


@contextmanager
def trees(commit: str | None) -> Iterator[dict[str, Path]]:
    """Name → working tree: this one and, in a temporary folder, that of a commit."""
    if commit is None:
        yield {"here": ROOT}
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, commit], cwd=ROOT, check=True)
        try:
            yield {commit: tree, "here": ROOT}
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


def measure_elsewhere(tree: Path) -> dict[str, float]:
    """The figures of a tree, from a process that imports it."""
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--child"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(args: argparse.Namespace) -> dict[str, float]:
    """The figures of the tree that this process imports."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from ul_tokenizer.training.engine.tracking import RunningMeans

    class Traffic(TorchDispatchMode):
        """Counts operators and what they read and write."""

        def __init__(self) -> None:
            super().__init__()
            self.figures = dict.fromkeys(ROWS, 0.0)

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func.is_view:
                return result
            name, moved = str(func.overloadpacket), (bytes_of(args) + bytes_of(result)) / 1e6
            self.figures["calls"] += 1
            self.figures["reads"] += name in READS
            self.figures["megabytes"] += moved
            if name in COPIES:
                self.figures["copies"] += 1
                self.figures["megabytes_copied"] += moved
            return result

    def bytes_of(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return value.numel() * value.element_size()
        return sum(map(bytes_of, value)) if isinstance(value, list | tuple) else 0

    with tempfile.TemporaryDirectory() as folder:
        stepper, means = make_stepper(args, Path(folder)), RunningMeans()
        loaded = stepper.batches(0)
        batches = iter([next(loaded) for _ in range((args.steps + 2) * args.micro_steps)])
        means.add(stepper.step(0, batches))
        with Traffic() as traffic:
            means.add(stepper.step(1, batches))
        seconds = []
        for number in range(2, args.steps + 2):
            start = time.perf_counter()
            means.add(stepper.step(number, batches))
            seconds.append(time.perf_counter() - start)
    return {**traffic.figures, "seconds": statistics.median(seconds)}


def make_stepper(args: argparse.Namespace, folder: Path) -> Any:
    """The steps of a small training on pictures of noise."""
    import numpy as np
    from PIL import Image

    from ul_tokenizer.training.engine.accelerator import make_accelerator
    from ul_tokenizer.training.engine.steps import Stepper
    from ul_tokenizer.training.parsing import parse_arguments
    from ul_tokenizer.training.stage1 import Stage1
    from ul_tokenizer.training.stage1_arguments import Stage1Arguments

    images = folder / "images"
    images.mkdir()
    for n in range(8):
        pixels = np.random.default_rng(n).integers(0, 255, (2 * args.resolution, 2 * args.resolution, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{n}.png")
    flags = {
        "train_data_dir": images,
        "output_dir": folder / "run",
        "preset": args.preset,
        "resolution": args.resolution,
        "train_batch_size": args.batch_size,
        "gradient_accumulation_steps": args.micro_steps,
        "num_validation_images": 2,
        "mixed_precision": "no",
    }
    training = parse_arguments(
        Stage1Arguments, [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    )
    accelerator = make_accelerator(training)
    stepper = Stepper(training, Stage1(training), accelerator, 1000, lambda message, everywhere=False: None)
    stepper.set_train_mode()
    return stepper


if __name__ == "__main__":
    main()
