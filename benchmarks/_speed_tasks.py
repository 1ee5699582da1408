"""What `speed.py` measures: contests of our networks against a peer, at one size each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from _speed_networks import (
    BaseShape,
    Entrant,
    Network,
    Size,
    base_sampling,
    base_training,
    consistency_decoder,
    dit_sampling,
    dit_training,
    encoder,
    our_decoder,
    peer_decoder,
    peer_training,
    stage1_training,
)
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    AutoencoderTiny,
    ConsistencyDecoderVAE,
)

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.presets import build_autoencoder

GROUPS = ("encode", "decode", "train", "base", "growth", "video")
AXES = ("resolution", "batch", "clip length")
LARGEST_CONSISTENCY_SIDE = 256  # on CPUs: a call at 512² has 34 TFLOP and takes minutes

KL = {  # Stable Diffusion's, f8 c4
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
DC = {  # DC-AE f32 c32
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
NARROW_DC = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (32, 64, 128, 128, 128, 128))
NARROW_KL = {"block_out_channels": (32, 64, 128, 128)}
NARROW_LTX = {"block_out_channels": (32, 64, 128, 128), "decoder_block_out_channels": (32, 64, 128, 128)}


@dataclass(frozen=True)
class Contest:
    """Entrants that are timed in turn with one peer, which has a single job.

    Attributes:
        group: one of GROUPS.
        size: what goes into each call.
        peer: what ratios are to.
        entrants: all others.
        axis: what grows from contest to contest, one of AXES, or nothing.
    """

    group: str
    size: Size
    peer: Entrant
    entrants: tuple[Entrant, ...]
    axis: str | None = None


@dataclass(frozen=True)
class Scale:
    """The networks and sizes of a whole run.

    Attributes:
        pictures: our autoencoders for pictures; the growth curves are the first one's.
        video: our autoencoders for clips; the growth curves are the first one's.
        kl, others, consistency: peers for pictures; ratios are to the first.
        wan, ltx: peers for clips; ratios are to the first.
        base: width and depth of base models.
        sides: of pictures, for encoding and decoding.
        batch: pictures in a call, for encoding and decoding.
        steps: of decoding.
        training: sizes of stage-1 training steps by preset.
        base_size: latents of a training step of the base.
        sampling_size: latents that are sampled together.
        sampling_steps: steps of that.
        clip: frames and size of clips.
        growing_sides, growing_batches, growing_frames: points of the growth curves.
        growing_size: pictures and clips there, along the other axes.
    """

    pictures: tuple[Network, ...]
    video: tuple[Network, ...]
    kl: Network
    others: tuple[Network, ...]
    consistency: Network
    wan: Network
    ltx: Network
    base: BaseShape
    sides: tuple[int, ...]
    batch: int
    steps: tuple[int, ...]
    training: Mapping[str, Size]
    base_size: Size
    sampling_size: Size
    sampling_steps: int
    clip: Size
    growing_sides: tuple[int, ...]
    growing_batches: tuple[int, ...]
    growing_frames: tuple[int, ...]  # 8n + 1, which every peer takes
    growing_size: Size


def of_preset(preset: str, **changes: Any) -> Network:
    """An autoencoder of ours with random weights."""
    name = ", ".join([preset, *(f"{value}" for value in changes.values())])
    return Network(name, partial(build_autoencoder, preset, changes))


FULL = Scale(
    pictures=(of_preset("ul-imagenet512"), of_preset("ul-small-f8")),
    video=(
        of_preset("ul-k600"),
        of_preset("ul-k600", temporal_downsample="latents"),
        Network("ul-video", partial(UnifiedLatentsAutoencoder.from_pretrained, "ul-video")),
    ),
    kl=Network("AutoencoderKL", partial(AutoencoderKL, **KL)),
    others=(
        Network("AutoencoderDC", partial(AutoencoderDC, **DC)),
        Network("AutoencoderTiny", AutoencoderTiny),
    ),
    consistency=Network("ConsistencyDecoderVAE", ConsistencyDecoderVAE),
    wan=Network("AutoencoderKLWan", AutoencoderKLWan),
    ltx=Network("AutoencoderKLLTXVideo", AutoencoderKLLTXVideo),
    base=BaseShape(channels=384, layers=8),
    sides=(256, 512),
    batch=1,
    steps=(1, 2, 4, 16),
    training={"ul-small-f8": Size(32, 64), "ul-imagenet512": Size(1, 256)},
    base_size=Size(16, 16),
    sampling_size=Size(4, 16),
    sampling_steps=32,
    clip=Size(1, 128, frames=17),
    growing_sides=(64, 128, 256, 512),
    growing_batches=(1, 2, 4, 8),
    growing_frames=(1, 9, 17, 33),
    growing_size=Size(1, 64),
)
ON_GPUS = replace(  # full batches, as an accelerator is used
    FULL,
    batch=8,
    training={"ul-small-f8": Size(256, 64), "ul-imagenet512": Size(16, 256)},
    base_size=Size(256, 16),
    sampling_size=Size(64, 16),
    clip=Size(2, 256, frames=17),
    growing_batches=(1, 4, 16, 64),
    growing_size=Size(1, 256),
)
QUICK = replace(
    FULL,
    pictures=(of_preset("ul-small-f8"),),
    video=(of_preset("ul-small-4x8x8"),),
    kl=Network("AutoencoderKL, narrow", partial(AutoencoderKL, **{**KL, **NARROW_KL})),
    others=(
        Network("AutoencoderDC, narrow", partial(AutoencoderDC, **{**DC, **NARROW_DC})),
        Network("AutoencoderTiny", AutoencoderTiny),
    ),
    consistency=Network(
        "ConsistencyDecoderVAE, narrow",
        partial(ConsistencyDecoderVAE, decoder_block_out_channels=(32, 64, 128, 128)),
    ),
    wan=Network("AutoencoderKLWan, narrow", partial(AutoencoderKLWan, base_dim=16)),
    ltx=Network("AutoencoderKLLTXVideo, narrow", partial(AutoencoderKLLTXVideo, **NARROW_LTX)),
    base=BaseShape(channels=192, layers=4),
    sides=(128,),
    training={"ul-small-f8": Size(4, 64)},
    base_size=Size(4, 16),
    sampling_size=Size(1, 16),
    sampling_steps=8,
    clip=Size(1, 64, frames=9),
    growing_sides=(32, 64, 128),
    growing_batches=(1, 2, 4),
    growing_frames=(1, 9, 17),
    growing_size=Size(1, 32),
)


def contests(scale: Scale, groups: tuple[str, ...], device: torch.device) -> Iterator[Contest | str]:
    """Everything to measure in order; a sentence where something is left out."""
    if "encode" in groups:
        yield from (encoding(scale, Size(scale.batch, side)) for side in scale.sides)
    if "decode" in groups:
        for side in scale.sides:
            yield from decoding(scale, Size(scale.batch, side), device)
    if "train" in groups:
        for preset, size in scale.training.items():
            yield Contest("train", size, peer_training(scale.kl), (stage1_training(preset),))
    if "base" in groups:
        yield from base_models(scale)
    if "growth" in groups:
        yield from growth(scale)
    if "video" in groups:
        yield from clips(scale)


def encoding(scale: Scale, size: Size) -> Contest:
    """Every encoder for pictures."""
    ours = (encoder(network, is_ours=True) for network in scale.pictures)
    return Contest("encode", size, encoder(scale.kl), (*ours, *map(encoder, scale.others)))


def decoding(scale: Scale, size: Size, device: torch.device) -> Iterator[Contest | str]:
    """Every decoder for pictures."""
    entrants = [our_decoder(network, scale.steps, with_call=True) for network in scale.pictures]
    entrants += map(peer_decoder, scale.others)
    if device.type == "cuda" or size.side <= LARGEST_CONSISTENCY_SIDE:
        entrants.append(consistency_decoder(scale.consistency))
    else:
        yield f"decode: {scale.consistency.name} at {size} is left out, since a call takes minutes on a CPU."
    yield Contest("decode", size, peer_decoder(scale.kl), tuple(entrants))


def base_models(scale: Scale) -> Iterator[Contest]:
    """A training step, and sampling."""
    shape, steps = scale.base, scale.sampling_steps
    yield Contest("base", scale.base_size, dit_training(shape), (base_training(shape),))
    yield Contest("base", scale.sampling_size, dit_sampling(shape, steps), (base_sampling(shape, steps),))


def growth(scale: Scale) -> Iterator[Contest]:
    """Encoding and one-step decoding as pictures, batches and clips grow."""
    side = scale.growing_size.side
    points = {
        "resolution": [Size(1, side) for side in scale.growing_sides],
        "batch": [Size(batch, side) for batch in scale.growing_batches],
        "clip length": [Size(1, side, frames) for frames in scale.growing_frames],
    }
    for axis in AXES:
        clip = axis == "clip length"
        ours, peer = (scale.video[0], scale.wan) if clip else (scale.pictures[0], scale.kl)
        for size in points[axis]:
            yield Contest("growth", size, encoder(peer), (encoder(ours, is_ours=True),), axis)
            yield Contest("growth", size, peer_decoder(peer), (our_decoder(ours, (1,)),), axis)


def clips(scale: Scale) -> Iterator[Contest]:
    """Every autoencoder for clips."""
    encoders = [*(encoder(network, is_ours=True) for network in scale.video), encoder(scale.ltx)]
    decoders = [*(our_decoder(network, (1,)) for network in scale.video), peer_decoder(scale.ltx)]
    yield Contest("video", scale.clip, encoder(scale.wan), tuple(encoders))
    yield Contest("video", scale.clip, peer_decoder(scale.wan), tuple(decoders))
