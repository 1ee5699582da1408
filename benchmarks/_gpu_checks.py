"""The checks of `gpu_check.py`: each yields figures, and raises `CheckError` if what it checks does not hold."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _gpu_steps import Job, StepFigures, measure_step
from _measure import convolution_peak, matmul_peak
from PIL import Image
from torch import Tensor

from ul_tokenizer.latents.job import encode_dataset
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.training.estimate.networks import make_base, make_frozen_autoencoder, make_stage1_networks
from ul_tokenizer.training.estimate.plan import Plan
from ul_tokenizer.training.estimate.stages import plan_autoencoder, plan_base
from ul_tokenizer.training.stage1 import Stage1, Stage1Arguments
from ul_tokenizer.training.stage2 import Stage2, Stage2Arguments

ROOT = Path(__file__).resolve().parent.parent
Figures = Iterator[tuple[str, Any]]
LEVELS = (-15.0, -10.0, -5.0, -2.0, 0.0, 2.0, 5.0, 9.0, 12.0)  # log-SNRs, beyond both ends of what is trained
LARGEST_DIFFERENCE = {
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
}  # of compiled outputs, in units of the outputs' deviation
SUITE = ("tests/training/test_stage1.py", "tests/training/test_stage2.py", "tests/training/engine", "tests/models")
QUICK_SUITE = ("tests/diffusion/test_schedule.py",)


class CheckError(Exception):
    """What a check found; one sentence."""


class Bench:
    """What the checks share: the device, sizes, and data that are made when they are first needed.

    Args:
        device: where everything is computed.
        is_quick: whether all networks are of no size.
        folder: for data and runs.
    """

    def __init__(self, device: torch.device, is_quick: bool, folder: Path) -> None:
        self.device, self.is_quick, self.folder = device, is_quick, folder
        self.preset = "ul-tiny-f8" if is_quick else "ul-imagenet512"
        self.small_preset = "ul-tiny-f8" if is_quick else "ul-small-f8"
        self.base_preset = "ul-base-tiny" if is_quick else "ul-base-imagenet512-medium"
        self.side = 32 if is_quick else 512
        self.steps = 2 if is_quick else 8
        self.largest_batch = 2 if is_quick else 1024
        self.precision = "no" if is_quick else "bf16"
        self.peaks: dict[str, float] = {}

    @cached_property
    def images(self) -> Path:
        """A folder with ten classes of JPEGs whose sides are a quarter longer than those of the crops."""
        folder, random = self.folder / "images", np.random.default_rng(0)
        for number in range(40 if self.is_quick else 1000):
            path = folder / str(number % 10) / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = random.integers(0, 255, (6, 6, 3), dtype=np.uint8)
            size = self.side * 5 // 4
            Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)
        return folder

    @cached_property
    def autoencoder(self) -> Path:
        """A folder with an untrained autoencoder."""
        build_autoencoder(self.preset).save_pretrained(self.folder / "autoencoder")
        return self.folder / "autoencoder"

    @cached_property
    def latents(self) -> Path:
        """Latents of all images, by the encoding job."""
        path = self.folder / "latents"
        self.job_seconds = _seconds(lambda: self.encode(path))
        return path

    def encode(self, output: Path) -> Any:
        """The encoding job, from JPEGs to a latent data set."""
        options: dict[str, Any] = {"num_workers": 0} if self.is_quick else {}
        dtype = "float32" if self.is_quick else "bfloat16"
        return encode_dataset(
            self.images,
            output,
            model=str(self.autoencoder),
            resolution=self.side,
            batch_size=4 if self.is_quick else 32,
            dtype=dtype,
            device=self.device,
            **options,
        )

    def peak(self) -> float:
        """FLOP/s of the fastest product or convolution in the precision of training."""
        if not self.peaks:
            dtype = torch.float32 if self.precision == "no" else torch.bfloat16
            self.peaks["convolution"] = convolution_peak(dtype, self.device)
            self.peaks["matmul"] = matmul_peak(dtype, self.device)
        return max(self.peaks.values())

    def empty_cache(self) -> None:
        """Gives memory back that the last check left behind."""
        torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


# ----------------------------------------------------------------------------------------------------------------
# Numbers
# ----------------------------------------------------------------------------------------------------------------


def awake(network: Any) -> Any:
    """Random weights in place of zeros, which would hide what lies before them."""
    for weight in network.parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.02)
    return network


def in_dtype(network: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The network for inference, except for what `from_pretrained` keeps in fp32."""
    network = network.eval().requires_grad_(False).to(device)
    for name, weight in network.named_parameters():
        if not set(name.split(".")) & set(network._keep_in_fp32_modules):
            weight.data = weight.data.to(dtype)
    return network


def check_precision(bench: Bench) -> Figures:
    """Outputs are finite in half precision at all levels, also for pictures beyond [−1, 1]."""
    x = 3 * torch.randn(2, 3, bench.side, bench.side, device=bench.device).clamp(-1, 1)
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        autoencoder, prior = (
            in_dtype(awake(build(bench.preset)), dtype, bench.device) for build in (build_autoencoder, build_prior)
        )
        with torch.inference_mode():
            z = autoencoder.encode(x.to(dtype)).latent
            outputs = {"encoder": z}
            features = autoencoder.decoder.embed_latents(z.unsqueeze(2))
            for level in LEVELS:
                logsnr = torch.full((2,), level, device=bench.device)
                outputs[f"decoder at {level:g}"] = autoencoder.decoder(x.to(dtype).unsqueeze(2), logsnr, features)
                outputs[f"prior at {level:g}"] = prior(z, logsnr).sample
        broken = [place for place, output in outputs.items() if not output.isfinite().all()]
        if broken:
            raise CheckError(f"in {name} these are not finite: {', '.join(broken)}.")
        yield f"finite outputs in {name}", f"{len(outputs)} of {len(outputs)}"


def check_compiled(bench: Bench) -> Figures:
    """The compiled encoder, denoiser and prior give what eager mode gives."""
    backend = "aot_eager" if bench.device.type == "cpu" else "inductor"
    side = 32 if bench.is_quick else 128
    for dtype, most in LARGEST_DIFFERENCE.items():
        autoencoder, prior = (
            in_dtype(awake(build(bench.small_preset)), dtype, bench.device)
            for build in (build_autoencoder, build_prior)
        )
        x = torch.randn(2, 3, 1, side, side, device=bench.device, dtype=dtype)
        logsnr = torch.tensor([-3.0, 3.0], device=bench.device)
        with torch.no_grad():
            z = autoencoder.encoder(x)[0].to(dtype)
            features = autoencoder.decoder.embed_latents(z)
            calls: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
                "encoder": (autoencoder.encoder, (x,)),
                "decoder": (autoencoder.decoder, (x, logsnr, features)),
                "prior": (prior, (z.squeeze(2), logsnr)),
            }
            for name, (network, inputs) in calls.items():
                eager, compiled = (_first(run(*inputs)) for run in (network, torch.compile(network, backend=backend)))
                difference = float((eager - compiled).abs().max() / eager.std())
                yield f"largest difference, {name}, {str(dtype).removeprefix('torch.')}", difference
                if not difference <= most:
                    raise CheckError(f"compiled, the {name} differs by {difference:.3g} deviations, more than {most}.")


def _first(output: Any) -> Tensor:
    value = output.sample if hasattr(output, "sample") else output
    first: Tensor = value[0] if isinstance(value, tuple) else value
    return first.float()


# ----------------------------------------------------------------------------------------------------------------
# Training steps
# ----------------------------------------------------------------------------------------------------------------


def check_stage1(bench: Bench) -> Figures:
    """A step of stage 1 at the paper's size."""

    def arguments(**options: Any) -> Stage1Arguments:
        return Stage1Arguments(preset=bench.preset, train_data_dir=str(bench.images), **_common(bench), **options)

    def plan(args: Stage1Arguments) -> Plan:
        return plan_autoencoder(args, *make_stage1_networks(args))

    yield from _steps(bench, "stage 1", Job(arguments, Stage1, plan))


def check_base(bench: Bench) -> Figures:
    """A step of stage 2 with the medium base model, on stored latents."""
    data: dict[str, Any] = {"pretrained_autoencoder": str(bench.autoencoder), "latent_dataset": str(bench.latents)}

    def arguments(**options: Any) -> Stage2Arguments:
        return Stage2Arguments(preset=bench.base_preset, **data, **_common(bench), **options)

    def plan(args: Stage2Arguments) -> Plan:
        frozen = make_frozen_autoencoder(args)
        return plan_base(args, frozen, make_base(args, frozen))

    yield from _steps(bench, "base", Job(arguments, Stage2, plan))


def _common(bench: Bench) -> dict[str, Any]:
    return {
        "output_dir": str(bench.folder / "run"),
        "resolution": bench.side,
        "max_train_steps": 1000,
        "mixed_precision": bench.precision,
        "num_validation_images": 4,
        "validation_metrics": None,
    }


def _steps(bench: Bench, name: str, job: Job) -> Figures:
    settings: list[tuple[str, dict[str, Any]]] = [("", {})]
    if bench.device.type == "cuda":
        settings = [
            (", eager", {"compile": False}),
            (", compiled", {"compile": True}),
            (", checkpointed", {"compile": False, "gradient_checkpointing": True}),
        ]
    for title, options in settings:
        figures = measure_step(job, bench.device, bench.steps, bench.largest_batch, **options)
        yield from _step_rows(f"{name}{title}", figures, bench.peak())
        bench.empty_cache()


def _step_rows(name: str, figures: StepFigures, peak: float) -> Figures:
    yield f"{name}: largest batch", figures.batch_size
    yield f"{name}: images/s", figures.images_per_second
    yield f"{name}: fraction of the measured peak", figures.flops_per_second / peak
    yield f"{name}: peak memory, GB", figures.peak_memory_gb
    yield f"{name}: waits for the GPU per step", figures.synchronizations
    if not figures.is_finite:
        raise CheckError(f"the loss of {name} is not finite.")


# ----------------------------------------------------------------------------------------------------------------
# Programs
# ----------------------------------------------------------------------------------------------------------------


def check_job(bench: Bench) -> Figures:
    """The encoding job; start-up of the model is not counted, that of its workers is."""
    bench.encode(bench.folder / "warm-up")
    count = sum(1 for _ in bench.images.rglob("*.jpg"))
    assert bench.latents.is_dir()
    yield "encoding job: images/s", count / bench.job_seconds


def check_speed(bench: Bench) -> Figures:
    """Encoding and decoding beside other autoencoders, by `speed.py`."""
    output = bench.folder / "speed.json"
    words = ["--device", bench.device.type, "--only", "encode,decode", "--runs", "3", "--output", str(output)]
    words += ["--quick", "--sizes", "32"] if bench.is_quick else ["--sizes", "512", "--dtypes", "bfloat16"]
    _run([str(ROOT / "benchmarks" / "speed.py"), *words], seconds=150)
    for row in json.loads(output.read_text(encoding="utf-8"))["rows"]:
        yield f"{row['network']}, {row['job']}: ms", 1e3 * row["seconds"]["median"]


def check_training(bench: Bench) -> Figures:
    """A minute of the real command, stopped by a signal, must lower the loss by a tenth."""
    seconds, output = (15 if bench.is_quick else 60), bench.folder / "minute"
    words = ["-m", "ul_tokenizer.train", "autoencoder", "--preset", bench.small_preset, "--resolution"]
    words += ["32", "--train_batch_size", "4"] if bench.is_quick else ["64", "--train_batch_size", "128"]
    words += ["--train_data_dir", str(bench.images), "--output_dir", str(output), "--mixed_precision", bench.precision]
    words += ["--logging_steps", "5", "--max_train_steps", "1000000", "--lr_scheduler", "constant_with_warmup"]
    words += ["--lr_warmup_steps", "20", "--learning_rate", "1e-3", "--dataloader_num_workers"]
    words += ["0" if bench.is_quick else "8", "--validation_steps", "1000000", "--checkpointing_steps", "1000000"]
    _run([*words, "--num_validation_images", "4"], seconds=180, stop_after=seconds, started=output / "metrics.jsonl")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    part = max(1, len(losses) // 5)
    first, last = (sum(some) / len(some) for some in (losses[:part], losses[-part:]))
    yield "training: loss at the start", first
    yield "training: loss at the end", last
    yield "training: steps", lines[-1]["step"]
    if not last < 0.9 * first:
        raise CheckError(f"the loss went from {first:.3f} to {last:.3f} only.")


def check_suite(bench: Bench) -> Figures:
    """Fast tests; those that train choose the GPU by themselves. After the time is up, the rest is left out."""
    report = bench.folder / "report.xml"
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", f"--junit-xml={report}"]
    shown = _run([*words, *(QUICK_SUITE if bench.is_quick else SUITE)], seconds=180, stop_after=120, legal=(0, 1, 2))
    counts = dict((what, int(number)) for number, what in re.findall(r"(\d+) (passed|failed|error|skipped)", shown))
    for what in ("passed", "failed", "skipped"):
        yield f"tests: {what}", counts.get(what, 0)
    if not counts.get("passed") or counts.get("failed") or counts.get("error"):
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", shown, re.MULTILINE)
        raise CheckError(f"{len(failed)} tests failed, such as {failed[0] if failed else 'none that is named'}.")


def _run(
    words: list[str], seconds: float, stop_after: float | None = None, started: Path | None = None, legal: Any = (0,)
) -> str:
    """Runs Python in a process of its own and returns what it prints.

    Args:
        words: arguments of Python.
        seconds: it is killed after this time.
        stop_after: it gets SIGINT after this time, from the moment at which `started` exists.
        started: a file; None for the start of the process.
        legal: exit statuses that are no errors.
    """
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + seconds
    try:
        if stop_after is not None:
            while started is not None and not started.exists() and process.poll() is None:
                time.sleep(0.2)
                if time.monotonic() > deadline:
                    raise CheckError(f"{words[1]} wrote no {started.name} in {seconds:.0f} s.")
            try:
                return _finished(process, words, stop_after, legal)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
        return _finished(process, words, max(30.0, deadline - time.monotonic()), legal)
    finally:
        process.kill()


def _finished(process: subprocess.Popen[str], words: list[str], seconds: float, legal: Any) -> str:
    shown, _ = process.communicate(timeout=seconds)
    if process.returncode not in legal:
        raise CheckError(f"{' '.join(words[:3])} ended with status {process.returncode}: {shown.strip()[-500:]}")
    return shown


CHECKS: dict[str, Callable[[Bench], Figures]] = {
    "precision": check_precision,
    "compiled": check_compiled,
    "stage1": check_stage1,
    "job": check_job,
    "base": check_base,
    "speed": check_speed,
    "training": check_training,
    "suite": check_suite,
}
