"""Trains diffusers' DiTTransformer2DModel on a latent data set, samples with it, and decodes the samples to a picture.

    ul-tokenizer encode-dataset photos/ -o latents/ --resolution 256
    python examples/train_dit_on_latents.py latents/ --steps 1000 -o runs/dit

The data set and the autoencoder are ours; the network, the noise schedule and the solver are diffusers' own. The output
folder holds the network, which `DiTTransformer2DModel.from_pretrained` loads, the scheduler, the statistics that undo
the normalisation (latent_statistics.json), and samples.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiTTransformer2DModel, DPMSolverMultistepScheduler
from diffusers.utils import make_image_grid
from torch import Tensor
from torch.utils.data import DataLoader

from ul_tokenizer import LatentDataset, UnifiedLatentsAutoencoder
from ul_tokenizer.media.pixels import to_image


def make_network(dataset: LatentDataset, width: int, layers: int) -> DiTTransformer2DModel:
    """A DiT for the shape and the classes of a data set."""
    (channels, height, _) = next(iter(dataset.shapes))
    return DiTTransformer2DModel(
        num_attention_heads=width // 64,
        attention_head_dim=64,
        in_channels=channels,
        out_channels=channels,
        num_layers=layers,
        sample_size=height,
        patch_size=1,
        num_embeds_ada_norm=max(1000, len(dataset.class_names)),  # DiTPipeline uses label 1000 for "no class"
    )


def batches(dataset: LatentDataset, batch_size: int, seed: int) -> Iterator[dict[str, Any]]:
    """Shuffled batches, epoch after epoch."""
    loader = DataLoader(dataset.stream(seed, batch_size=batch_size), batch_size=None)
    while True:
        yield from loader


def train(
    network: DiTTransformer2DModel, scheduler: DDPMScheduler, data: Iterator[dict[str, Any]], learning_rate: float
) -> None:
    """Teaches the network to predict the noise in normalised latents."""
    optimizer = torch.optim.AdamW(network.train().parameters(), learning_rate)
    for step, batch in enumerate(data, 1):
        z = batch["latents"]
        noise, t = torch.randn_like(z), torch.randint(0, scheduler.config.num_train_timesteps, (len(z),))
        labels = torch.tensor(batch.get("label", [0] * len(z)))
        prediction = network(scheduler.add_noise(z, noise, t), t, labels).sample
        loss = F.mse_loss(prediction, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == 1:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def sample(network: DiTTransformer2DModel, scheduler: DDPMScheduler, labels: Tensor, num_steps: int) -> Tensor:
    """Normalised latents (B, c, h, w) for class labels (B,)."""
    network.eval()
    solver = DPMSolverMultistepScheduler.from_config(scheduler.config)
    solver.set_timesteps(num_steps)
    z = torch.randn(len(labels), network.config.in_channels, *[network.config.sample_size] * 2)
    for t in solver.timesteps:
        z = solver.step(network(z, t.expand(len(z)), labels).sample, t, z).prev_sample
    return z


@torch.no_grad()
def decode(autoencoder: UnifiedLatentsAutoencoder, latents: Tensor, statistics: dict[str, list[float]]) -> Tensor:
    """Normalised latents (B, c, h, w) → pictures (B, 3, H, W) in [−1, 1]."""
    mean, std = (torch.tensor(statistics[name]).reshape(1, -1, 1, 1) for name in ("mean", "std"))
    z = latents * std + mean
    # The decoder was trained on latents with a little noise, of this log-SNR.
    level = torch.tensor(autoencoder.config.latent_logsnr)
    z_0 = level.sigmoid().sqrt() * z + (-level).sigmoid().sqrt() * torch.randn_like(z)
    pictures: Tensor = autoencoder.decode(z_0).sample
    return pictures


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a latent data set of one square shape")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--autoencoder", help="bundled name, folder or hub id (default: the name in the data set)")
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--width", type=int, default=256, help="channels, a multiple of 64")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--num-samples", type=int, default=4)
    parser.add_argument("--sampling-steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    dataset = LatentDataset(args.data, normalize=True)
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(args.autoencoder or dataset.header["autoencoder"]).eval()
    network = make_network(dataset, args.width, args.layers)
    scheduler = DDPMScheduler(clip_sample=False)  # latents may lie outside [−1, 1]
    train(network, scheduler, islice(batches(dataset, args.batch_size, args.seed), args.steps), args.learning_rate)

    statistics = {name: getattr(dataset.statistics, name).tolist() for name in ("mean", "std")}
    network.save_pretrained(args.output)
    scheduler.save_pretrained(args.output / "scheduler")
    (args.output / "latent_statistics.json").write_text(json.dumps(statistics))
    labels = torch.arange(args.num_samples) % max(1, len(dataset.class_names))
    pictures = decode(autoencoder, sample(network, scheduler, labels, args.sampling_steps), statistics)
    make_image_grid([to_image(p) for p in pictures], 1, len(pictures)).save(args.output / "samples.png")
    print(f"{args.output}: trained on {len(dataset)} latents")


if __name__ == "__main__":
    main()
