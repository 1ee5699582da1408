"""Checks of a pipeline's components and arguments, before anything is computed; each error is one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ul_tokenizer.models.any_autoencoder import latent_channels
from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.schedulers.log_snr import LogSNRScheduler

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_components(transformer: Any, scheduler: Any, vae: Any) -> None:
    """Checks that scheduler and transformer are ours, and that all parts are made for the same latents.

    Raises:
        ValueError: they are not; the sentence names the part.
    """
    if not isinstance(transformer, UnifiedLatentsTransformer):
        raise ValueError(f"transformer must be a UnifiedLatentsTransformer, got a {type(transformer).__name__}.")
    if not isinstance(scheduler, LogSNRScheduler):
        raise ValueError(f"scheduler must be a LogSNRScheduler, got a {type(scheduler).__name__}.")
    level = transformer.config.latent_logsnr
    if scheduler.config.logsnr_max != level:
        raise ValueError(
            f"scheduler must end at the transformer's latent_logsnr, {level}, "
            f"got one with a logsnr_max of {scheduler.config.logsnr_max}."
        )
    if scheduler.config.prediction_type != "v_prediction":
        raise ValueError(
            "scheduler must have the prediction_type of the transformer, v_prediction, "
            f"got {scheduler.config.prediction_type}."
        )
    if isinstance(vae, UnifiedLatentsAutoencoder) and vae.config.latent_logsnr != level:
        raise ValueError(
            f"vae must have the transformer's latent_logsnr, {level}, got one with {vae.config.latent_logsnr}."
        )
    channels = latent_channels(vae)
    if channels is not None and channels != transformer.config.in_channels:
        raise ValueError(f"vae must have {transformer.config.in_channels} latent channels, got {channels}.")


def check_options(output_type: str, tensor_inputs: Sequence[str], legal_inputs: Sequence[str]) -> None:
    """Checks the form of the result and the names of tensors for the callback.

    Raises:
        ValueError: an unknown form or tensor.
    """
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be pil, np, pt or latent, got {output_type!r}.")
    if unknown := set(tensor_inputs) - set(legal_inputs):
        raise ValueError(f"callback_on_step_end_tensor_inputs must be {list(legal_inputs)}, got {sorted(unknown)}.")


def check_steps(**steps: int | None) -> None:
    """Checks that numbers of steps are positive integers or None.

    Raises:
        ValueError: one is not; the sentence names it.
    """
    for name, value in steps.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, got {value}.")


def check_generators(generator: Any, batch_size: int) -> None:
    """Checks that `generator` is None, a single generator or a list with one per image.

    Raises:
        ValueError: a list of another length, or a tuple, which diffusers' functions don't know.
    """
    if isinstance(generator, tuple) or (isinstance(generator, list) and len(generator) != batch_size):
        raise ValueError(
            f"generator must be one or a list of {batch_size}, one per image, got a {type(generator).__name__} of "
            f"{len(generator)}."
        )


def check_initial_latents(latents: Tensor, shape: tuple[int, ...]) -> None:
    """Checks z_1, which must be floats of the given shape.

    Raises:
        ValueError: another shape, dtype or type.
    """
    if not isinstance(latents, torch.Tensor) or tuple(latents.shape) != shape or not latents.is_floating_point():
        got = f"{tuple(latents.shape)} {latents.dtype}" if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(f"latents must be floats {shape}, got {got}.")


def grid_size(
    transformer: UnifiedLatentsTransformer, vae: Any, ratio: int, height: int | None, width: int | None
) -> tuple[int, int]:
    """Height and width of the latents.

    Raises:
        ValueError: a size that is no positive multiple of what the networks need, or none given and none known.
    """
    sides, multiple = [], ratio * transformer.size_multiple
    for name, size in (("height", height), ("width", width)):
        size = _default_size(transformer, vae, ratio) if size is None else size
        if size is None:
            raise ValueError(f"{name} must be given: the model's config has no training size.")
        if not isinstance(size, int) or size < 1 or size % multiple:
            raise ValueError(f"{name} must be a positive multiple of {multiple}, got {size}.")
        sides.append(size // ratio)
    return sides[0], sides[1]


def _default_size(transformer: UnifiedLatentsTransformer, vae: Any, ratio: int) -> int | None:
    if transformer.config.sample_size is not None:
        return int(transformer.config.sample_size * ratio)
    size = vae.config.get("sample_size")
    return size if isinstance(size, int) else None
