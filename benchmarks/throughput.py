"""Encoding, decoding and training beside diffusers' autoencoders, as fractions of this machine's convolution peak.

python benchmarks/throughput.py [--sizes 256 512] [--dtypes float32 bfloat16]

All weights are random: only shapes matter here. One run measures everything, so that rows compare.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from _measure import convolution_peak, machine, median_seconds
from diffusers import AutoencoderDC, AutoencoderKL
from diffusers.utils import logging
from torch import Tensor
from training_step import Step

from ul_tokenizer.evaluation.flops import count_flops
from ul_tokenizer.models.presets import build_autoencoder

KL_CONFIG = {  # Stable Diffusion's, f8 c4
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
DC_CONFIG = {  # DC-AE f32 c32
    "in_channels": 3,
    "latent_channels": 32,
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
}
Task = tuple[str, str, int, Callable[[], Any]]  # model, job, parameters, call


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def our_tasks(preset: str, x: Tensor, dtype: torch.dtype) -> Iterator[Task]:
    """Encode, and one call of the denoiser with the latent's features ready, as every step after the first is."""
    model = build_autoencoder(preset).eval().to(dtype, memory_format=torch.channels_last)
    for name, parameter in model.named_parameters():  # as from_pretrained keeps them
        if any(key in name for key in model._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
    z = model.encode(x).latent
    features = model.decoder.embed_latents(z.unsqueeze(2))
    logsnr = torch.zeros(len(x))
    yield preset, "encode", parameters(model.encoder), lambda: model.encode(x).latent
    yield preset, "decode step", parameters(model.decoder), lambda: model.decoder(x.unsqueeze(2), logsnr, features)
    yield preset, "decode, 1 step", parameters(model.decoder), lambda: model.decode(z, num_inference_steps=1).sample


def peer_tasks(model: AutoencoderKL | AutoencoderDC, x: Tensor, dtype: torch.dtype) -> Iterator[Task]:
    name = type(model).__name__
    model = model.eval().to(dtype, memory_format=torch.channels_last)

    def encode() -> Tensor:
        output = model.encode(x)
        return output.latent_dist.mode() if hasattr(output, "latent_dist") else output.latent

    z = encode()
    yield name, "encode", parameters(model.encoder), encode
    yield name, "decode", parameters(model.decoder), lambda: model.decode(z).sample


def training_tasks(preset: str, size: int, dtype: torch.dtype) -> Iterator[Task]:
    """A stage-1 step, optimiser included, on as many pixels as one picture of the size has."""
    resolution = min(size, 64) if preset == "ul-small-f8" else size
    step = Step(preset, resolution, (size // resolution) ** 2)
    yield preset, "training step", parameters(step.model), partial(step, dtype)


def tasks(size: int, dtype: torch.dtype) -> Iterator[Task]:
    x = (torch.rand(1, 3, size, size) * 2 - 1).to(dtype).to(memory_format=torch.channels_last)
    yield from our_tasks("ul-imagenet512", x, dtype)
    yield from our_tasks("ul-small-f8", x, dtype)
    yield from peer_tasks(AutoencoderKL(**KL_CONFIG), x, dtype)
    yield from peer_tasks(AutoencoderDC(**DC_CONFIG), x, dtype)


def measure(task: Task, size: int, peak: float, runs: int) -> tuple[float, float]:
    """Prints a row; returns seconds and fraction of the peak."""
    model, job, count, call = task
    flops, seconds = count_flops(call), median_seconds(call, runs)
    fraction = flops / seconds / peak
    sizes = f"{count / 1e6:>9.1f} {flops / 1e9:>8.0f}"
    print(f"{size:>5} {model:<16} {job:<15} {sizes} {seconds * 1e3:>8.0f} {fraction:>8.2f}", flush=True)
    return seconds, fraction


def print_bars(results: dict[tuple[str, str], tuple[float, float]]) -> None:
    """What issue and card claim of the paper's size at the largest picture."""
    ours, peer = "ul-imagenet512", "AutoencoderKL"
    peers = [fraction for (model, _), (_, fraction) in results.items() if model.startswith("Autoencoder")]
    for job in ("encode", "decode step"):
        print(f"  fraction of the peak, {job}: {results[ours, job][1]:.2f}; peers {min(peers):.2f} to {max(peers):.2f}")
    for job, of, bar in (("encode", "encode", 1 / 4), ("decode step", "decode", 1 / 3)):
        ratio = results[ours, job][0] / results[peer, of][0]
        print(f"  {job} in {ratio:.3f} of {peer}'s time to {of}; at most {bar:.3f} wanted")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--largest_training_size", type=int, default=256, help="of the paper's networks; 266 M weights")
    args = parser.parse_args()
    torch.manual_seed(0)
    logging.set_verbosity_error()  # weights are random: that `to()` casts norms does not matter
    print(machine())
    for dtype_name in args.dtypes:
        dtype = getattr(torch, dtype_name)
        peak = convolution_peak(dtype)
        print(f"\n{dtype_name}: convolution peak {peak / 1e9:.0f} GFLOP/s")
        print(f"{'size':>5} {'model':<16} {'job':<15} {'M params':>9} {'GFLOP':>8} {'ms':>8} {'of peak':>8}")
        for size in args.sizes:
            results = {}
            with torch.inference_mode():
                for task in tasks(size, dtype):
                    results[task[:2]] = measure(task, size, peak, args.runs)
            for preset in ("ul-small-f8", "ul-imagenet512"):
                if preset == "ul-small-f8" or size <= args.largest_training_size:
                    for task in training_tasks(preset, size, dtype):
                        measure(task, size, peak, args.runs)
        print_bars(results)


if __name__ == "__main__":
    main()
