"""Golden values: a few numbers of training and of the bundled models, which only an intended change may alter.

`python tests/golden.py` measures them and prints how far they are from `tests/golden/values.json`.
`python tests/golden.py --write` measures them and writes that file. Do this only if a change of the numbers is
intended, and say in the commit why they change. Both take about 15 seconds.

The inputs are computed, not read from JPEG files, because decoders of JPEG differ by a level here and there. Numbers
are stored with seven significant digits and must agree to `RTOL` and `ATOL`. CPUs with other instructions add in
another order, which changed no number by more than 3e-6 of its size (measured with AVX-512, with AVX2 and, by
`ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41`, with SSE). A wrong sign, scale, seed or weight changes them by
more than 1e-3.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from ul_tokenizer import UnifiedLatentsAutoencoder, UnifiedLatentsPipeline, UnifiedLatentsTransformer  # noqa: E402

VALUES = ROOT / "tests" / "golden" / "values.json"
RTOL, ATOL = 1e-4, 1e-5  # of the number itself, and of the largest number of the same figure
Figures = dict[str, list[float]]  # what was measured → its numbers, in a fixed order


# ----------------------------------------------------------------------------------------------------------------
# Inputs
# ----------------------------------------------------------------------------------------------------------------


def waves(*shape: int) -> Tensor:
    """Pixels (1, 3, [T,] H, W) in [−0.9, 0.9]: waves of several lengths that move with time, exact on any machine."""
    channel, *rest = (torch.arange(size, dtype=torch.float64) for size in shape)
    frame, row, column = rest if len(rest) == 3 else (torch.zeros(1, dtype=torch.float64), *rest)
    c, t, y, x = torch.meshgrid(channel, frame, row, column, indexing="ij")
    coarse = torch.sin(x / 9 + 2 * c + t / 3) * torch.cos(y / 7 - c)
    fine = torch.sin(x * y / 90 + t / 2)
    return (0.6 * coarse + 0.3 * fine).reshape(1, *shape).float()


def seeded(seed: int) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def make_photos(folder: Path, count: int = 8) -> Path:
    """PNG files of 48×40 pixels in two class folders."""
    for n in range(count):
        pixels = waves(3, 40, 48 + n)[0, :, :, n:].permute(1, 2, 0)
        path = folder / "train" / "ab"[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(((pixels + 1) * 127).round().byte().numpy()).save(path)
    return folder / "train"


# ----------------------------------------------------------------------------------------------------------------
# Training: the example scripts, for three steps
# ----------------------------------------------------------------------------------------------------------------


def run_script(name: str, *flags: object) -> None:
    """Runs a script of `examples/` in this process, without its output; raises RuntimeError if it fails."""
    words = [name, *map(str, flags)]
    with mock.patch.object(sys, "argv", words), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{name} ended with {end.code}: {errors.getvalue()[-1000:]}") from end


COMMON_FLAGS = {
    "--resolution": 32,
    "--train_batch_size": 4,
    "--max_train_steps": 3,
    "--logging_steps": 1,
    "--validation_steps": 1000,
    "--checkpointing_steps": 1000,
    "--num_validation_images": 2,
    "--mixed_precision": "no",
    "--seed": 5,
}


def steps_of(run: Path, *names: str) -> Figures:
    """Each metric at the three steps of a run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    return {name: [line[name] for line in steps] for name in names}


def train_stage_1(folder: Path) -> Figures:
    """Losses and gradient norms of encoder, decoder and prior."""
    flags = {**COMMON_FLAGS, "--preset": "ul-tiny-f8", "--prior_min_hold_steps": 1, "--prior_ramp_steps": 2}
    flags |= {"--clip_grad_norm": "global"}
    flags |= {"--train_data_dir": make_photos(folder), "--output_dir": folder / "stage-1"}
    run_script("train_autoencoder.py", *(word for pair in flags.items() for word in pair))
    losses = ("loss", "prior_bits_per_pixel", "terminal_kl_bits_per_pixel", "decoder_loss_bits_per_pixel")
    norms = ("grad_norm/encoder", "grad_norm/decoder", "grad_norm/prior")
    return steps_of(folder / "stage-1", *losses, *norms)


def train_base(folder: Path) -> Figures:
    """Losses and gradient norms of a class-conditional base model on latents of `ul-photo-f8`."""
    flags = {**COMMON_FLAGS, "--preset": "ul-base-tiny", "--pretrained_autoencoder": "ul-photo-f8"}
    flags |= {"--train_data_dir": make_photos(folder), "--output_dir": folder / "stage-2"}
    run_script("train_base_model.py", *(word for pair in flags.items() for word in pair))
    return steps_of(folder / "stage-2", "loss", "grad_norm")


# ----------------------------------------------------------------------------------------------------------------
# The bundled models
# ----------------------------------------------------------------------------------------------------------------


def summary(values: Tensor) -> list[float]:
    """Mean, standard deviation and six entries that lie far apart."""
    flat = values.double().flatten()
    return [float(flat.mean()), float(flat.std()), *flat[:: math.ceil(len(flat) / 6)].tolist()]


@torch.inference_mode()
def autoencoder_figures(name: str, pixels: Tensor) -> Figures:
    """Latent, noisy latent, bits and decoded pixels of a bundled autoencoder."""
    vae = UnifiedLatentsAutoencoder.from_pretrained(name).eval()
    subfolder = "vae/prior" if name == "ul-fashion" else "prior"
    prior = UnifiedLatentsTransformer.from_pretrained(name, subfolder=subfolder).eval()
    encoded = vae.encode(pixels)
    z_0 = encoded.latent_dist.sample(seeded(1))
    figures = {"latent": summary(encoded.latent), "z_0": summary(z_0)}
    figures["bits"] = vae.bits(pixels, prior, generator=seeded(2)).tolist()
    for steps in (1, 3):
        decoded = vae.decode(z_0, num_inference_steps=steps, generator=seeded(3)).sample
        figures[f"decoded in {steps}"] = summary(decoded)
    return figures


@torch.inference_mode()
def pipeline_figures() -> Figures:
    """Latents and images of `ul-fashion` for two classes, guided."""
    pipe = UnifiedLatentsPipeline.from_pretrained("ul-fashion")
    pipe.set_progress_bar_config(disable=True)
    figures = {}
    for output_type in ("latent", "pt"):
        options: Any = {"guidance_scale": 2.0, "num_inference_steps": 4, "output_type": output_type}
        (images,) = pipe(class_labels=[7, 3], generator=[seeded(1), seeded(2)], return_dict=False, **options)
        figures["z_0" if output_type == "latent" else "images"] = summary(images)
    return figures


# ----------------------------------------------------------------------------------------------------------------
# Measuring and comparing
# ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: the networks are small, and sums are then in one order on each machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_a_folder(measure: Callable[[Path], Figures]) -> Figures:
    """A measurement that needs a temporary folder, offline."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, HF_HUB_OFFLINE="1"):
        return measure(Path(folder))


MEASUREMENTS: dict[str, Callable[[], Figures]] = {
    "stage 1, three steps": lambda: in_a_folder(train_stage_1),
    "base model, three steps": lambda: in_a_folder(train_base),
    "ul-photo-f8": lambda: autoencoder_figures("ul-photo-f8", waves(3, 64, 96)),
    "ul-video": lambda: autoencoder_figures("ul-video", waves(3, 9, 64, 64)),
    "ul-fashion": lambda: autoencoder_figures("ul-fashion", waves(3, 32, 32)),
    "ul-fashion, generated": pipeline_figures,
}


def measured(name: str) -> Figures:
    """The figures of one entry of `MEASUREMENTS`, with seven significant digits."""
    with one_thread():
        figures = MEASUREMENTS[name]()
    return {key: [float(f"{value:.7g}") for value in values] for key, values in figures.items()}


def deviation(found: list[float], golden: list[float]) -> float:
    """Largest difference between numbers, in units of what is allowed: up to 1 they agree."""
    if len(found) != len(golden):
        return math.inf
    scale = max(map(abs, golden))
    allowed = [ATOL * scale + RTOL * abs(value) for value in golden]
    return max(abs(a - b) / limit for a, b, limit in zip(found, golden, allowed, strict=True))


def read_values() -> dict[str, Figures]:
    """The golden values: measurement → figure → numbers."""
    values: dict[str, Figures] = json.loads(VALUES.read_text(encoding="utf-8"))
    return values


def as_json(values: dict[str, Figures]) -> str:
    """The text of the file, one figure per line."""
    blocks = []
    for name, figures in values.items():
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(numbers)}" for key, numbers in figures.items())
        blocks.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def main() -> int:
    """Prints or writes the values; returns 1 if some of them differ and none were written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write tests/golden/values.json")
    args = parser.parse_args()
    values = {name: measured(name) for name in MEASUREMENTS}
    if args.write:
        VALUES.parent.mkdir(exist_ok=True)
        VALUES.write_text(as_json(values), encoding="utf-8")
        return 0
    golden, worst = read_values(), 0.0
    for name, figures in values.items():
        for key, numbers in figures.items():
            distance = deviation(numbers, golden.get(name, {}).get(key, []))
            worst = max(worst, distance)
            print(f"{distance:8.3f} of the tolerance  {name}: {key}")
    return int(worst > 1)


if __name__ == "__main__":
    sys.exit(main())
