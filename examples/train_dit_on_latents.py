"""Trains diffusers' DiTTransformer2DModel on a latent data set, samples with it, and decodes the samples to a picture.

    ul-tokenizer encode-dataset photos/ -o latents/ --resolution 128
    python examples/train_dit_on_latents.py latents/ -o runs/dit --steps 2000
    accelerate launch examples/train_dit_on_latents.py latents/ -o runs/dit   # several GPUs, or --mixed_precision bf16

The data set, the autoencoder and the noise schedule are ours. The network is diffusers' own, and any other network that
takes a noise level can stand in its place. The output folder holds the network, which
`DiTTransformer2DModel.from_pretrained` loads, the scheduler, and samples.png with one column for each class.

Latents of Unified Latents stay noisy: the decoder takes z_0, whose log-SNR is 5, and not a clean latent. Training never
shows the network a cleaner level, sampling ends at this level, and its result goes to the decoder as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DiTTransformer2DModel
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ul_tokenizer import LatentDataset, LogSNRScheduler, UnifiedLatentsAutoencoder
from ul_tokenizer.media.pixels import to_image

LABEL_DROPOUT = 0.1  # share of samples that are trained without their class, for guidance


def make_network(dataset: LatentDataset, width: int = 256, layers: int = 6) -> DiTTransformer2DModel:
    """A DiT for the shape and the classes of a data set; each block starts as the identity, as in the DiT paper."""
    ((channels, height, _),) = dataset.shapes  # all latents have one shape, a square
    network = DiTTransformer2DModel(
        num_attention_heads=width // 64,
        attention_head_dim=64,
        in_channels=channels,
        num_layers=layers,
        sample_size=height,
        patch_size=1 if height <= 16 else 2,
        num_embeds_ada_norm=max(1, len(dataset.class_names)),  # one more label stands for "no class"
    )
    for layer in [*(block.norm1.linear for block in network.transformer_blocks), network.proj_out_2]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    # There is no dropout but that of labels. Each block would draw it for itself, so `loss` drops labels instead.
    return network.eval()


def predict(network: nn.Module, scheduler: LogSNRScheduler, z: Tensor, logsnr: Tensor, labels: Tensor) -> Tensor:
    """v for latents (B, c, h, w) at log-SNRs (B,). DiT expects noise levels from 0 to 1000, rising with the noise."""
    low, high = scheduler.config.logsnr_min, scheduler.config.logsnr_max
    v: Tensor = network(z, 1000 * (high - logsnr) / (high - low), labels, return_dict=False)[0]
    return v


def loss(network: nn.Module, scheduler: LogSNRScheduler, z_clean: Tensor, labels: Tensor, no_class: int) -> Tensor:
    """Mean squared error of v at random levels between pure noise and z_0."""
    logsnr = scheduler.noise_schedule.logsnr(torch.rand(len(z_clean), device=z_clean.device))
    noise = torch.randn_like(z_clean)
    labels = torch.where(torch.rand(len(labels), device=labels.device) < LABEL_DROPOUT, no_class, labels)
    v = predict(network, scheduler, scheduler.add_noise(z_clean, noise, logsnr), logsnr, labels)
    return F.mse_loss(v, scheduler.get_velocity(z_clean, noise, logsnr))


def batches(dataset: LatentDataset, accelerator: Accelerator, batch_size: int, seed: int) -> Iterator[dict[str, Any]]:
    """Shuffled batches, epoch after epoch, divided among the processes."""
    share = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    loader = DataLoader(dataset.stream(seed, batch_size=batch_size, **share), batch_size=None)
    while True:
        yield from loader


def train(
    network: DiTTransformer2DModel,
    scheduler: LogSNRScheduler,
    data: Iterator[dict[str, Any]],
    accelerator: Accelerator,
    learning_rate: float,
) -> None:
    """Trains the network, which ends with the average of its weights over the last steps."""
    no_class = network.config.num_embeds_ada_norm
    average = EMAModel(network.parameters(), decay=0.995, use_ema_warmup=True, power=0.75)
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, betas=(0.9, 0.99))
    model, optimizer = accelerator.prepare(network, optimizer)
    average.to(accelerator.device)
    for step, batch in enumerate(data, 1):
        z = batch["latents"].to(accelerator.device)
        labels = torch.tensor(batch.get("label", [0] * len(z)), device=accelerator.device)
        value = loss(model, scheduler, z, labels, no_class)
        accelerator.backward(value)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())
        if step % 100 == 0 or step == 1:
            accelerator.print(f"step {step}: loss {value.item():.3f}", flush=True)
    average.copy_to(network.parameters())


@torch.no_grad()
def sample(
    network: DiTTransformer2DModel, scheduler: LogSNRScheduler, labels: Tensor, guidance: float = 1.5, steps: int = 32
) -> Tensor:
    """z_0 (B, c, h, w) for class labels (B,): noisy latents, as the decoder expects them."""
    size = network.config.sample_size
    z = torch.randn(len(labels), network.config.in_channels, size, size, device=labels.device)
    both = torch.cat([labels, torch.full_like(labels, network.config.num_embeds_ada_norm)])
    scheduler.set_timesteps(steps, device=labels.device)
    for logsnr in scheduler.timesteps:
        v, v_no_class = predict(network, scheduler, z.repeat(2, 1, 1, 1), logsnr.expand(len(both)), both).chunk(2)
        z = scheduler.step(v_no_class + guidance * (v - v_no_class), logsnr, z).prev_sample
    return z


def sample_sheet(
    network: DiTTransformer2DModel,
    scheduler: LogSNRScheduler,
    autoencoder: UnifiedLatentsAutoencoder,
    guidance: float,
    rows: int = 4,
) -> Any:
    """A picture with a column for each class, decoded by the autoencoder."""
    columns = network.config.num_embeds_ada_norm
    labels = torch.arange(columns, device=network.device).repeat(rows)
    with torch.no_grad():
        pictures = autoencoder.to(network.device).decode(sample(network, scheduler, labels, guidance)).sample
    return make_image_grid([to_image(picture) for picture in pictures], rows, columns)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a latent data set of one square shape")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--autoencoder", help="bundled name, folder or hub id (default: the name in the data set)")
    parser.add_argument("--steps", type=int, default=2000, help="training steps")
    parser.add_argument("--batch-size", type=int, default=64, help="latents per step and process")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--width", type=int, default=256, help="channels, a multiple of 64")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--guidance", type=float, default=1.5, help="1 for none")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    accelerator = Accelerator()
    set_seed(args.seed, device_specific=True)
    dataset = LatentDataset(args.data)
    autoencoder = UnifiedLatentsAutoencoder.from_pretrained(args.autoencoder or dataset.header["autoencoder"]).eval()
    scheduler = LogSNRScheduler(logsnr_max=dataset.header["latent_logsnr"])
    network = make_network(dataset, args.width, args.layers)
    data = islice(batches(dataset, accelerator, args.batch_size, args.seed), args.steps)
    train(network, scheduler, data, accelerator, args.learning_rate)
    if accelerator.is_main_process:
        network.save_pretrained(args.output)
        scheduler.save_pretrained(args.output / "scheduler")
        sample_sheet(network, scheduler, autoencoder, args.guidance).save(args.output / "samples.png")
        print(f"{args.output}: trained on {len(dataset)} latents; look at samples.png")
    accelerator.end_training()


if __name__ == "__main__":
    main()
