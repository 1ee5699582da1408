"""Stage 1's training step as a fraction of this machine's convolution peak, and where its time goes.

python benchmarks/training_step.py [--preset ul-small-f8] [--resolution 64] [--batch_size 32]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from functools import partial

import torch
from _measure import convolution_peak, machine, median_seconds
from torch.profiler import ProfilerActivity, profile

from ul_tokenizer.diffusion.objective import SigmoidWeighting, bits_per_pixel_divisor
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.evaluation.flops import count_flops
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.training.algorithm1 import Stage1Model, Stage1Noise

GROUPS = {  # operator → where the time goes
    "convolution": ("convolution",),
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "attention": ("scaled_dot_product", "softmax"),
    "normalisation": ("layer_norm",),
    "activation": ("silu",),
    "casts and copies": ("copy_", "cat", "pixel_", "clone"),
    "optimiser": ("adamw", "_foreach", "clip"),
    "element-wise": ("add", "mul", "sub", "div", "sum", "square", "addcmul", "neg"),
}


class Step:
    """A training step on random pixels."""

    def __init__(self, preset: str, resolution: int, batch_size: int) -> None:
        autoencoder, prior = build_autoencoder(preset), build_prior(preset)
        schedule = LogSNRSchedule(5.0, -10.0, "linear")
        model = Stage1Model(autoencoder, prior, schedule, SigmoidWeighting())
        self.model = model.to(torch.device("cpu"), memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        side = resolution // autoencoder.spatial_compression_ratio
        latent = (batch_size, autoencoder.config.latent_channels, side, side)
        self.pixels = torch.rand(batch_size, 3, resolution, resolution) * 2 - 1
        self.noise = Stage1Noise(
            t_prior=torch.rand(batch_size),
            t_decoder=torch.rand(batch_size),
            prior=torch.randn(latent),
            latent=torch.randn(latent),
            decoder=torch.randn_like(self.pixels),
        )
        self.divisor = bits_per_pixel_divisor(resolution, resolution)

    def __call__(self, dtype: torch.dtype) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = self.model(self.pixels, self.noise).total(self.divisor)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def breakdown(step: Step, dtype: torch.dtype) -> list[tuple[str, float]]:
    """Share of the step's time by kind of operator."""
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        step(dtype)
    shares: defaultdict[str, float] = defaultdict(float)
    events = trace.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    for event in events:
        name = event.key.lower()
        group = next((g for g, keys in GROUPS.items() if any(key in name for key in keys)), "other")
        shares[group] += event.self_cpu_time_total / total
    return sorted(shares.items(), key=lambda share: -share[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ul-small-f8")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args()
    torch.manual_seed(0)
    print(machine())
    for dtype in (torch.float32, torch.bfloat16):
        step = Step(args.preset, args.resolution, args.batch_size)
        step(dtype)
        run = partial(step, dtype)
        flops, peak = count_flops(run), convolution_peak(dtype)
        seconds = median_seconds(run)
        print(f"\n{args.preset}, {args.batch_size}×{args.resolution}², {dtype}: {flops / 1e9:.0f} GFLOP")
        rate = flops / seconds
        print(f"  {seconds * 1e3:.0f} ms, {args.batch_size / seconds:.0f} images/s, {rate / 1e9:.0f} GFLOP/s")
        print(f"  {rate / peak:.2f} of the convolution peak of {peak / 1e9:.0f} GFLOP/s")
        print("  " + ", ".join(f"{name} {share:.0%}" for name, share in breakdown(step, dtype)))


if __name__ == "__main__":
    main()
