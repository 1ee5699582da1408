"""Trains diffusers' DiTTransformer2DModel on a latent data set, as a stranger's generator would.

    ul-tokenizer encode-dataset photos/ -o latents/ --resolution 256
    python examples/train_dit_on_latents.py latents/ --steps 1000 -o runs/dit

Only `LatentDataset` is ours: the noise schedule, the loss and the network are diffusers' own. The result is a folder
that `DiTTransformer2DModel.from_pretrained` loads.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiTTransformer2DModel
from torch.utils.data import DataLoader

from ul_tokenizer import LatentDataset


def make_network(dataset: LatentDataset, width: int, layers: int) -> DiTTransformer2DModel:
    """A DiT for the data set's latents and classes."""
    (channels, height, _) = next(iter(dataset.shapes))
    return DiTTransformer2DModel(
        num_attention_heads=width // 64,
        attention_head_dim=64,
        in_channels=channels,
        out_channels=channels,
        num_layers=layers,
        sample_size=height,
        patch_size=1,
        num_embeds_ada_norm=max(1000, len(dataset.class_names)),  # DiTPipeline takes label 1000 for "none"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a latent data set of one shape")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the trained network")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--width", type=int, default=256, help="channels, a multiple of 64")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    dataset = LatentDataset(args.data, normalize=True)
    stream = dataset.stream(args.seed, batch_size=args.batch_size)
    network = make_network(dataset, args.width, args.layers).train()
    optimizer = torch.optim.AdamW(network.parameters(), args.learning_rate)
    scheduler = DDPMScheduler()
    step = 0
    while step < args.steps:
        for batch in islice(DataLoader(stream, batch_size=None), args.steps - step):
            z = batch["latents"]
            noise, t = torch.randn_like(z), torch.randint(0, scheduler.config.num_train_timesteps, (len(z),))
            labels = torch.tensor(batch.get("label", [0] * len(z)))
            prediction = network(scheduler.add_noise(z, noise, t), t, labels).sample
            loss = F.mse_loss(prediction, noise)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % 50 == 0 or step == args.steps:
                print(f"step {step}: loss {loss.item():.4f}", flush=True)
    network.save_pretrained(args.output)
    print(f"{args.output}: trained on {len(dataset)} latents")


if __name__ == "__main__":
    main()
