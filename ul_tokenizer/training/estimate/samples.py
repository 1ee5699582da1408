"""One training step of each stage on the meta device, for counting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ul_tokenizer.diffusion.objective import SigmoidWeighting, bits_per_pixel_divisor
from ul_tokenizer.diffusion.schedule import LogSNRSchedule
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.training.algorithm1 import Stage1Model, Stage1Noise
from ul_tokenizer.training.distillation import predict_x
from ul_tokenizer.training.estimate.counting import Loss

META = torch.device("meta")


@dataclass(frozen=True)
class Pixels:
    """The size of a picture or, with frames, of a clip."""

    side: int
    frames: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, [T,] H, W)."""
        return (3, *(() if self.frames is None else (self.frames,)), self.side, self.side)


@dataclass(frozen=True)
class Latents:
    """The size of a latent, and of what a base model sees beside it."""

    channels: int
    side: int
    frames: int | None = None
    context_frames: int = 0  # of `frames`, those that are given
    text_tokens: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, [t,] h, w)."""
        return (self.channels, *(() if self.frames is None else (self.frames,)), self.side, self.side)


def latents_of(autoencoder: UnifiedLatentsAutoencoder, pixels: Pixels) -> Latents:
    """The size of the latent of a picture or clip."""
    frames = None if pixels.frames is None else -(-pixels.frames // autoencoder.temporal_compression_ratio)
    side = pixels.side // autoencoder.spatial_compression_ratio
    return Latents(autoencoder.config.latent_channels, side, frames)


def stage1_loss(
    autoencoder: UnifiedLatentsAutoencoder, prior: UnifiedLatentsTransformer, pixels: Pixels, train_only: str | None
) -> Loss:
    """The loss of stage 1 as a function of the batch size."""
    schedule = LogSNRSchedule(autoencoder.config.latent_logsnr, -10.0, "linear")  # no size depends on it
    model = Stage1Model(autoencoder, prior, schedule, SigmoidWeighting(1.5, 2.0, 0.0)).train()
    for part in ("encoder", "decoder", "prior") if train_only else ():
        getattr(model, part).requires_grad_(part == train_only)
    latents, divisor = latents_of(autoencoder, pixels), bits_per_pixel_divisor(pixels.side, pixels.side)

    def loss(batch_size: int) -> Tensor:
        t, z, x = ((batch_size, *shape) for shape in ((), latents.shape, pixels.shape))
        noise = Stage1Noise(*(torch.empty(shape, device=META) for shape in (t, t, z, z, x)))
        if autoencoder.config.learned_variance:
            noise.variance = torch.empty(z, device=META)
        return model(torch.empty(x, device=META), noise).total(divisor)

    return loss


def distillation_loss(networks: Sequence[UnifiedLatentsAutoencoder], pixels: Pixels) -> Loss:
    """The passes of the trained decoders in a distillation, as a function of the batch size."""
    for network in networks:
        network.train()
    latents = latents_of(networks[0], pixels)

    def loss(batch_size: int) -> Tensor:
        x, z, logsnr = (torch.empty(batch_size, *shape, device=META) for shape in (pixels.shape, latents.shape, ()))
        predictions = [predict_x(network.decoder, x, logsnr, z) for network in networks]
        return torch.stack([prediction.square().mean() for prediction in predictions]).sum()

    return loss


def stage2_loss(transformer: UnifiedLatentsTransformer, latents: Latents) -> Loss:
    """A loss of stage 2 as a function of the batch size; its exact form costs next to nothing beside the network."""
    config = transformer.train().config

    def loss(batch_size: int) -> Tensor:
        z = torch.empty(batch_size, *latents.shape, device=META)
        context, target = None, z
        if latents.context_frames:
            context, target = z[:, :, : latents.context_frames], z[:, :, latents.context_frames :]
        labels, text = None, None
        if config.num_class_embeds is not None:
            labels = torch.zeros(batch_size, dtype=torch.int64, device=META)
        if config.cross_attention_dim is not None:
            text = torch.empty(batch_size, latents.text_tokens, config.cross_attention_dim, device=META)
        logsnr = torch.empty(batch_size, device=META)
        v: Tensor = transformer(target, logsnr, labels, text, context_latents=context).sample
        return v.square().mean()

    return loss
