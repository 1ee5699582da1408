"""The networks of a run on the meta device, made from its arguments alone: no data, no weights, no download."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.presets import BASE_PRESETS, build_autoencoder, build_base, build_prior, check_config_keys
from ul_tokenizer.models.repository import load_autoencoder, load_prior
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.pretrained import bundled_names
from ul_tokenizer.training.distill_arguments import DistillArguments
from ul_tokenizer.training.frozen import FrozenAutoencoder, load_other
from ul_tokenizer.training.stage1_arguments import Stage1Arguments
from ul_tokenizer.training.stage2_arguments import OTHERS_LOGSNR_MAX, Stage2Arguments

META = torch.device("meta")


def make_stage1_networks(args: Stage1Arguments) -> tuple[UnifiedLatentsAutoencoder, UnifiedLatentsTransformer]:
    """The autoencoder and its prior; of the preset if the pretrained model is not on this machine.

    Raises:
        ValueError: a config key or value is illegal.
    """
    name = args.pretrained_model_name_or_path
    if name is not None and _is_here(name):
        check_config_keys(UnifiedLatentsAutoencoder, args.autoencoder_config)
        autoencoder = load_autoencoder(name, **args.autoencoder_config)
        if not args.fresh_prior:
            check_config_keys(UnifiedLatentsTransformer, args.prior_config)
            return autoencoder.to(META), load_prior(name, **args.prior_config).to(META)
    else:
        with META:
            autoencoder = build_autoencoder(args.preset, args.autoencoder_config)
    latents = {"in_channels": autoencoder.config.latent_channels, "latent_logsnr": autoencoder.config.latent_logsnr}
    with META:
        prior = build_prior(args.preset, {**latents, **args.prior_config})
    return autoencoder.to(META), prior


def make_distilled_autoencoder(args: DistillArguments) -> UnifiedLatentsAutoencoder:
    """The autoencoder of a distillation; that of `--autoencoder_preset` if it is not on this machine.

    Raises:
        ValueError: it is not here, and there is no preset.
    """
    name = str(args.pretrained_model_name_or_path)
    if _is_here(name):
        return load_autoencoder(name, dropout=args.dropout).to(META)
    if args.autoencoder_preset is None:
        raise ValueError(f"--dry_run needs --autoencoder_preset, because the model {name} is not on this machine.")
    with META:
        return build_autoencoder(args.autoencoder_preset, {"dropout": args.dropout})


def make_frozen_autoencoder(args: Stage2Arguments) -> FrozenAutoencoder:
    """The autoencoder of stage 2; that of `--autoencoder_preset` if the trained one is not on this machine.

    Raises:
        ValueError: it is not here, and there is no preset.
    """
    name = args.pretrained_autoencoder or args.pretrained_vae
    if name is not None and _is_here(name):
        frozen = _load(name) if args.pretrained_autoencoder else load_other(name, args.vae_subfolder, args.revision)
        frozen.vae.to(META)
        return frozen
    if args.autoencoder_preset is None:
        raise ValueError(
            f"--dry_run needs --autoencoder_preset, because the autoencoder {name} is not on this machine."
        )
    with META:
        return FrozenAutoencoder(build_autoencoder(args.autoencoder_preset))


def make_base(
    args: Stage2Arguments, autoencoder: FrozenAutoencoder, text_width: int | None = None
) -> UnifiedLatentsTransformer:
    """The base model; of the preset if the pretrained one is not on this machine.

    Args:
        args: the arguments of the run.
        autoencoder: the frozen autoencoder.
        text_width: channels of the text encoder's hidden states; None without text, or if they aren't known.

    Raises:
        ValueError: a config key or value is illegal.
    """
    name = args.pretrained_model_name_or_path
    if name is not None and _is_here(name):
        check_config_keys(UnifiedLatentsTransformer, args.base_config)
        base: UnifiedLatentsTransformer = UnifiedLatentsTransformer.from_pretrained(name, **args.base_config)
        return base.to(META)
    level = autoencoder.vae.config.latent_logsnr if autoencoder.is_ours else args.logsnr_max or OTHERS_LOGSNR_MAX
    config: dict[str, Any] = {"in_channels": autoencoder.latent_channels, "latent_logsnr": float(level)}
    config["num_class_embeds"] = _preset(args).get("num_class_embeds") if args.class_conditional else None
    config["context_conditioning"] = args.num_context_latents > 0
    config |= {} if text_width is None else {"cross_attention_dim": text_width}
    with META:
        return build_base(args.preset, {**config, **args.base_config})


def _preset(args: Stage2Arguments) -> Mapping[str, Any]:
    return BASE_PRESETS[args.preset]


def _is_here(name: str) -> bool:
    return Path(name).is_dir() or name in bundled_names()


def _load(name: str) -> FrozenAutoencoder:
    return FrozenAutoencoder(load_autoencoder(name))
