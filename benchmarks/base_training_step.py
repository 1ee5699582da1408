"""Stage 2's training step beside diffusers' DiTTransformer2DModel of equal FLOPs, as fractions of the machine's peak.

python benchmarks/base_training_step.py [--channels 384] [--layers 8] [--side 16] [--batch_size 16]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from _measure import convolution_peak, machine, median_seconds
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from ul_tokenizer.diffusion.objective import diffuse, eps_squared_error
from ul_tokenizer.evaluation.flops import count_flops
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer

LATENT_CHANNELS, NUM_CLASSES, HEAD_DIM = 16, 1000, 64


def make_base(channels: int, layers: int) -> UnifiedLatentsTransformer:
    """Our base model, of one stage, as a DiT is."""
    return UnifiedLatentsTransformer(
        in_channels=LATENT_CHANNELS,
        block_out_channels=(channels,),
        num_layers=(layers,),
        attention_head_dim=HEAD_DIM,
        num_class_embeds=NUM_CLASSES,
    )


def make_dit(channels: int, layers: int, side: int) -> DiTTransformer2DModel:
    """A DiT of the same width, depth and number of tokens."""
    return DiTTransformer2DModel(
        num_attention_heads=channels // HEAD_DIM,
        attention_head_dim=HEAD_DIM,
        in_channels=LATENT_CHANNELS,
        num_layers=layers,
        sample_size=side,
        patch_size=1,
        num_embeds_ada_norm=NUM_CLASSES,
    )


class Step:
    """A training step of one network on random latents."""

    def __init__(self, network: nn.Module, predict: Callable[[Tensor, Tensor, Tensor], Tensor], shape: tuple[int, ...]):
        self.network, self.predict = network.train(), predict
        self.optimizer = torch.optim.AdamW(network.parameters(), fused=True)
        self.latents, self.noise = torch.randn(shape), torch.randn(shape)
        self.logsnr = torch.linspace(-10, 5, shape[0])
        self.labels = torch.arange(shape[0]) % NUM_CLASSES

    def __call__(self, dtype: torch.dtype) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            v = self.predict(diffuse(self.latents, self.noise, self.logsnr), self.logsnr, self.labels)
        eps_squared_error(v, self.latents, self.noise, self.logsnr, "v_prediction").mean().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def make_steps(channels: int, layers: int, shape: tuple[int, ...]) -> dict[str, Step]:
    """Ours and DiT's, by name."""
    base, dit = make_base(channels, layers), make_dit(channels, layers, shape[-1])

    def predict_base(z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
        v: Tensor = base(z, logsnr, labels).sample
        return v

    def predict_dit(z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
        timesteps = (500 - 50 * logsnr).long()  # it knows steps, not levels
        v: Tensor = dit(z, timesteps, labels).sample
        return v

    return {
        "UnifiedLatentsTransformer": Step(base, predict_base, shape),
        "DiTTransformer2DModel": Step(dit, predict_dit, shape),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=16)
    args = parser.parse_args()
    torch.manual_seed(0)
    print(machine())
    steps = make_steps(args.channels, args.layers, (args.batch_size, LATENT_CHANNELS, args.side, args.side))
    for dtype in (torch.float32, torch.bfloat16):
        peak = convolution_peak(dtype)
        print(f"\n{args.batch_size} latents of {args.side}², {dtype}, convolution peak {peak / 1e9:.0f} GFLOP/s")
        seconds = {}
        for name, step in steps.items():
            run = partial(step, dtype)
            flops = count_flops(run)
            seconds[name] = median_seconds(run)
            parameters = sum(p.numel() for p in step.network.parameters()) / 1e6
            print(
                f"  {name:26}{parameters:6.1f} M, {flops / 1e9:.0f} GFLOP, {seconds[name] * 1e3:.0f} ms, "
                f"{flops / seconds[name] / peak:.2f} of the peak"
            )
        ours, theirs = seconds.values()
        print(f"  ours takes {ours / theirs:.2f} of its time")


if __name__ == "__main__":
    main()
