"""Starts an autoencoder from the encoder of a pretrained diffusers AutoencoderKL or AutoencoderDC.

    python conversion/init_from_autoencoder.py stabilityai/sd-vae-ft-mse -o start --preset ul-small-f8
    ul-tokenizer train autoencoder --pretrained_model_name_or_path start --prior_warmup …

Our encoder has residual blocks of the same two 3×3 convolutions, at the same halvings; so stages of equal grids are
matched, widths are taken over, and convolutions copied. What stands between them is composed of the other's linear
parts: the way in is its first convolution, halved and widened as its shortcuts do. Norms differ (theirs share
statistics over the picture), which is why stage 1 has to go on from here; decoder and prior are fresh, of the preset.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, AutoencoderKL
from torch import Tensor, nn

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.models.repository import PRIOR

SOURCES = {"AutoencoderKL": AutoencoderKL, "AutoencoderDC": AutoencoderDC}


class Layers(NamedTuple):
    """The weights of a residual block that can be copied."""

    conv_1: nn.Conv2d
    conv_2: nn.Conv2d


class Stage(NamedTuple):
    """The part of the other encoder that works at one resolution."""

    channels: int
    blocks: list[Layers]  # those that keep the width
    widen: Tensor | None  # (C', C, 1, 1) before them, from the stage before; None where its width is the same
    halve: Tensor | None  # (C or C', C, 2, 2) after them


def initialise(source: Any, preset: str) -> tuple[UnifiedLatentsAutoencoder, list[str]]:
    """Builds a fresh autoencoder of the preset with the source's encoder weights.

    Returns:
        the autoencoder, and the names of the weights that were copied.

    Raises:
        ValueError: an encoder of another kind, or one that is too shallow for the preset.
    """
    stages = read_stages(source)
    fresh = build_autoencoder(preset)
    patch = fresh.config.patch_size
    if patch not in (1, 2):
        raise ValueError(f"--preset must have a patch_size of 1 or 2, got {preset} with {patch}.")
    first = patch - 1  # a patch of 2 stands where the other's first halving is
    wanted = len(fresh.config.encoder_block_out_channels)
    if len(stages) - first < wanted:
        raise ValueError(
            f"--preset {preset} needs an encoder with {wanted + first} resolutions, got one with {len(stages)}."
        )
    used = stages[first : first + wanted]
    changes = {
        "encoder_block_out_channels": tuple(stage.channels for stage in used),
        "encoder_layers_per_block": tuple(max(1, len(stage.blocks)) for stage in used),
    }
    model = build_autoencoder(preset, changes)
    taken: dict[str, Tensor] = {"conv_in.weight": _way_in(source.encoder.conv_in, stages[: first + 1], patch)}
    for number, stage in enumerate(used):
        for position, block in enumerate(stage.blocks):
            for name, conv in zip(("conv_1", "conv_2"), block, strict=True):
                key = f"stages.{number}.blocks.{position}.{name}"
                taken[f"{key}.weight"] = conv.weight
                if conv.bias is not None:
                    taken[f"{key}.bias"] = conv.bias
        if number + 1 < wanted and stage.halve is not None:
            taken[f"stages.{number}.downsample.weight"] = _composed(stage.halve, used[number + 1].widen)
    taken = {key: weight.detach().float() for key, weight in taken.items()}
    model.encoder.load_state_dict({**model.encoder.state_dict(), **taken})
    return model, sorted(taken)


def _composed(halve: Tensor, widen: Tensor | None) -> Tensor:
    """(C, C, 2, 2), then (C', C, 1, 1) → (C', C, 2, 2); the other's halving may widen by itself."""
    return halve if widen is None else torch.einsum("oc,cihw->oihw", widen[:, :, 0, 0], halve)


def _way_in(conv_in: nn.Module, stages: Sequence[Stage], patch: int) -> Tensor:
    """The other's first convolution (C, 3, 3, 3), for patches of 2 with the halving and widening behind it."""
    if not isinstance(conv_in, nn.Conv2d):  # it halves by itself
        if patch != 2:
            raise ValueError("--preset must have a patch_size of 2, as the other encoder does.")
        together = _step_dc(conv_in)
    elif patch == 1:
        return conv_in.weight
    else:
        halve = stages[0].halve
        assert halve is not None  # there is a second stage
        step = _composed(halve, stages[1].widen)  # (C', C, 2, 2), stride 2
        together = F.conv2d(conv_in.weight.transpose(0, 1), step.flip(2, 3), padding=1).transpose(0, 1)
    # They see 4×4 pixels from −1 to 2 of each patch, inside the 6×6 of three patches, −2 to 3.
    whole = F.pad(together, (1, 1, 1, 1))
    out, colours = whole.shape[:2]
    return whole.reshape(out, colours, 3, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(out, colours * 4, 3, 3)


# ---------------------------------------------------------------- the other encoders


def read_stages(source: Any) -> list[Stage]:
    """Returns the stages of the other encoder, from fine to coarse."""
    return _stages_kl(source.encoder) if isinstance(source, AutoencoderKL) else _stages_dc(source.encoder)


def _stages_kl(encoder: Any) -> list[Stage]:
    stages = []
    for block in encoder.down_blocks:
        layers = [Layers(r.conv1, r.conv2) for r in block.resnets if r.conv1.in_channels == r.conv1.out_channels]
        first = block.resnets[0]
        widen = None if first.conv_shortcut is None else first.conv_shortcut.weight.detach()
        # A 3×3 convolution of stride 2 on pixels 0, 1, 2 of each pair; ours has 0 and 1.
        halve = block.downsamplers[0].conv.weight.detach()[:, :, :2, :2] if block.downsamplers else None
        stages.append(Stage(first.conv2.out_channels, layers, widen, halve))
    return stages


def _stages_dc(encoder: Any) -> list[Stage]:
    """Its stages end with a step that widens and halves at once; the first may have no blocks at all."""
    stages: list[Stage] = []
    for block in encoder.down_blocks:
        layers = [Layers(part.conv1, part.conv2) for part in block if hasattr(part, "conv1") and hasattr(part, "conv2")]
        down = next((part for part in block if hasattr(part, "group_size")), None)
        coarser = encoder.conv_out.in_channels if down is None else down.conv.in_channels
        width = layers[0].conv_2.out_channels if layers else coarser
        stages.append(Stage(width, layers, None, None if down is None else _step_dc(down)[:, :, 1:3, 1:3]))
    return stages


def _step_dc(down: Any) -> Tensor:
    """(C', C, 4, 4) of a `DCDownBlock2d`, which is linear, over the pixels −1 to 2 of each pair of rows and columns."""
    weight: Tensor = down.conv.weight.detach()
    out, channels = weight.shape[:2]
    if down.downsample:  # a convolution whose pixels are then folded into channels
        step = weight.new_zeros(out, 4, channels, 4, 4)
        for row in range(2):
            for column in range(2):
                step[:, 2 * row + column, :, row : row + 3, column : column + 3] = weight
        step = step.flatten(0, 1)
    else:  # one of stride 2
        step = F.pad(weight, (0, 1, 0, 1))
    if down.shortcut:  # means of the folded pixels, in groups
        folded = torch.arange(4 * channels)
        rows, columns = folded % 4 // 2, folded % 2
        step[folded // down.group_size, folded // 4, 1 + rows, 1 + columns] += 1 / down.group_size
    return step


def load_source(name: str, subfolder: str | None, revision: str | None) -> Any:
    """Loads the other autoencoder.

    Raises:
        ValueError: it is neither of the two, or can't be loaded.
    """
    try:
        config = AutoencoderKL.load_config(name, subfolder=subfolder, revision=revision)
        kind = config.get("_class_name")
        if kind not in SOURCES:
            raise ValueError(f"SRC must be one of {', '.join(SOURCES)}, got {kind}.")
        return SOURCES[kind].from_pretrained(name, subfolder=subfolder, revision=revision, use_safetensors=True)
    except OSError as error:
        raise ValueError(f"SRC {name} can't be loaded: {str(error).splitlines()[0].rstrip('.')}.") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="An autoencoder that starts from another one's encoder.")
    parser.add_argument("source", metavar="SRC", help="folder or hub id of an AutoencoderKL or AutoencoderDC")
    parser.add_argument("--subfolder", help="subfolder of a repository, for example vae")
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument("--preset", default="ul-small-f8", help="configuration of the networks (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the fresh weights (default: %(default)s)")
    parser.add_argument("--output", "-o", type=Path, required=True, help="a new folder")
    args = parser.parse_args(argv)
    try:
        if args.output.exists():
            raise ValueError(f"--output must be a new folder, got {args.output}, which exists.")
        source = load_source(args.source, args.subfolder, args.revision)
        torch.manual_seed(args.seed)
        model, taken = initialise(source, args.preset)
        prior = build_prior(args.preset)
        model.save_pretrained(args.output)
        prior.save_pretrained(args.output / PRIOR)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    ours = model.encoder.state_dict()
    share = sum(ours[key].numel() for key in taken) / sum(weight.numel() for weight in ours.values())
    print(f"copied {len(taken)} of {len(ours)} tensors, {share:.0%} of the encoder's weights:")
    print("\n".join(f"  encoder.{key}" for key in taken))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
