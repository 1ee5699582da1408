"""Converts an image model to a video model that treats images as before.

    python conversion/image_to_video.py ul-photo-f8 -o start [--temporal_compression_ratio 4]
    ul-tokenizer train autoencoder --pretrained_model_name_or_path start --num_frames 16 …

What is new, mixing and folding of frames, starts such that an image is encoded and decoded as by the image model. With
`--temporal_downsample latents`, so is every frame of a clip, almost: its latents have as many channels as those of all
their frames, and training need only find what is said twice. With `features` they keep the image model's number of
channels, the encoder is faster, and motion must be learned from next to nothing. The prior of such channels stays as it
is, since it attends to all frames of a latent clip; that of more channels is left to training (`--fresh_prior`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.config_checks import TEMPORAL_DOWNSAMPLES, derived_config
from ul_tokenizer.models.repository import PRIOR, MissingPriorError, load_autoencoder, load_prior


def inflate(
    image_model: UnifiedLatentsAutoencoder,
    ratio: int,
    decoder_num_layers: int | None = None,
    temporal_downsample: str = "latents",
    seed: int = 0,
) -> UnifiedLatentsAutoencoder:
    """Builds a video model with the weights of an image model.

    Args:
        image_model: the image model, with a temporal ratio of 1.
        ratio: frames per latent frame.
        decoder_num_layers: keep only this many of the decoder's first transformer layers, which changes its images;
            None keeps all.
        temporal_downsample: as in `UnifiedLatentsAutoencoder`; "latents" gives latents with `ratio` times as many
            channels as those of the image model.
        seed: seed of the weights that start at random.

    Raises:
        ValueError: a model of videos already, or a ratio that its stages can't give.
    """
    if image_model.temporal_compression_ratio != 1:
        raise ValueError("SRC must be an image model, got a video model.")
    config = {key: value for key, value in dict(image_model.config).items() if not key.startswith("_")}
    for key in derived_config(config).keys() - {"latents_mean", "latents_std"}:
        config.pop(key, None)
    layers = config["decoder_num_layers"] if decoder_num_layers is None else decoder_num_layers
    if not 0 < layers <= config["decoder_num_layers"]:
        raise ValueError(f"--decoder_num_layers must be from 1 to {config['decoder_num_layers']}, got {layers}.")
    config |= {
        "decoder_num_layers": layers,
        "temporal_compression_ratio": ratio,
        "temporal_downsample": temporal_downsample,
    }
    if temporal_downsample == "latents":
        config["latent_channels"] *= ratio
        for statistic in ("latents_mean", "latents_std", "scaling_factor", "shift_factor"):
            config.pop(statistic, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        video_model = UnifiedLatentsAutoencoder(**config)
    kept = video_model.state_dict().keys()
    weights = {key: weight for key, weight in image_model.state_dict().items() if key in kept}
    missing, _ = video_model.load_state_dict(weights, strict=False)
    assert all("temporal_" in key or "fold" in key for key in missing)
    return video_model.eval()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="An image model as the start of a video model.")
    parser.add_argument("source", metavar="SRC", help="bundled name, folder or hub id of an image model")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--temporal-compression-ratio",
        "--temporal_compression_ratio",
        type=int,
        default=4,
        help="frames per latent frame (default: %(default)s)",
    )
    parser.add_argument(
        "--temporal_downsample",
        choices=TEMPORAL_DOWNSAMPLES,
        default="latents",
        help="where the number of frames is reduced (default: %(default)s)",
    )
    parser.add_argument(
        "--decoder-num-layers",
        "--decoder_num_layers",
        type=int,
        help="keep only this many of the decoder's first transformer layers (default: all)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the weights that start at random (default: %(default)s)"
    )
    parser.add_argument("--output", "-o", type=Path, required=True, help="a new folder")
    args = parser.parse_args(argv)
    try:
        if args.output.exists():
            raise ValueError(f"--output must be a new folder, got {args.output}, which exists.")
        image_model = load_autoencoder(args.source, revision=args.revision)
        model = inflate(
            image_model, args.temporal_compression_ratio, args.decoder_num_layers, args.temporal_downsample, args.seed
        )
        try:
            prior = load_prior(args.source, revision=args.revision)
        except MissingPriorError:
            prior = None
        model.save_pretrained(args.output)
        if prior is not None and prior.config.in_channels == model.config.latent_channels:
            prior.save_pretrained(args.output / PRIOR)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(args.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
