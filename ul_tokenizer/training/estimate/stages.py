"""The estimate of each stage: sizes of the networks, and what a run of them costs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer
from ul_tokenizer.training.arguments import TrainingArguments
from ul_tokenizer.training.distill_arguments import DistillArguments
from ul_tokenizer.training.estimate.counting import count_inference, count_step, to_meta
from ul_tokenizer.training.estimate.networks import (
    make_base,
    make_distilled_autoencoder,
    make_frozen_autoencoder,
    make_stage1_networks,
)
from ul_tokenizer.training.estimate.plan import Plan, Weights
from ul_tokenizer.training.estimate.report import as_comments, describe_plan, hardware_of, precision_of
from ul_tokenizer.training.estimate.samples import (
    Latents,
    Pixels,
    distillation_loss,
    latents_of,
    stage1_loss,
    stage2_loss,
)
from ul_tokenizer.training.estimate.text import DEFAULT_TOKENS, TextPlan, plan_text
from ul_tokenizer.training.frozen import FrozenAutoencoder
from ul_tokenizer.training.stage1_arguments import Stage1Arguments
from ul_tokenizer.training.stage2_arguments import Stage2Arguments

# Bytes of an optimiser's state for each weight. Muon has one moment, but for what it leaves to AdamW.
OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2, "muon": 4}


def estimate_autoencoder(args: Stage1Arguments, stage: Any = None) -> str:
    """What a run of stage 1 needs, as YAML comments.

    Args:
        args: the arguments of the run.
        stage: the `Stage1` if there is one, whose networks are moved to the meta device; without it, they are made from
            the arguments, which takes no memory.

    Raises:
        ValueError: the networks can't be made, or don't fit the sizes.
    """
    autoencoder, prior = make_stage1_networks(args) if stage is None else (stage.autoencoder, stage.prior)
    parts = _parts(autoencoder, prior)
    lines = [] if stage is not None else _sizes(parts)
    pixels = Pixels(args.resolution, args.num_frames)
    shape = " × ".join(map(str, latents_of(autoencoder, pixels).shape))
    lines.append(f"sample: {' × '.join(map(str, pixels.shape))} pixels, a latent of {shape}")
    samples = "images" if args.num_frames is None else "clips"
    return as_comments(lines + describe_plan(args, plan_autoencoder(args, autoencoder, prior), samples))


def estimate_base(args: Stage2Arguments, stage: Any = None) -> str:
    """What a run of stage 2 needs, as YAML comments; arguments and errors as in `estimate_autoencoder`."""
    frozen: FrozenAutoencoder = make_frozen_autoencoder(args) if stage is None else stage.autoencoder
    text = plan_text(args, None if stage is None else stage.text)
    base = make_base(args, frozen, None if text is None else text.width) if stage is None else stage.transformer
    latents = _latents(args, frozen, base, text)
    lines = [] if stage is not None else _sizes({"base model": base, "frozen autoencoder": frozen.vae})
    lines += [] if text is None else [text.describe()]
    lines.append(f"sample: a latent of {' × '.join(map(str, latents.shape))}{_conditions(base, latents)}")
    samples = "images" if latents.frames is None else "clips"
    return as_comments(lines + describe_plan(args, plan_base(args, frozen, base, text), samples))


def estimate_distillation(args: DistillArguments, stage: Any = None) -> str:
    """What a distillation needs, as YAML comments; arguments and errors as in `estimate_autoencoder`."""
    student = make_distilled_autoencoder(args) if stage is None else stage.student
    lines = [] if stage is not None else _sizes({"encoder": student.encoder, "decoder": student.decoder})
    pixels = Pixels(args.resolution)
    shape = " × ".join(map(str, latents_of(student, pixels).shape))
    lines.append(f"sample: {' × '.join(map(str, pixels.shape))} pixels, a latent of {shape}")
    return as_comments(lines + describe_plan(args, plan_distillation(args, student), "images"))


def plan_distillation(args: DistillArguments, student: UnifiedLatentsAutoencoder) -> Plan:
    """How a distillation fits on the GPUs of its arguments; moves the student to the meta device.

    Raises:
        ValueError: the networks don't fit the resolution.
    """
    _check_side(args.resolution, student.spatial_compression_ratio)
    to_meta(student, _dtype(args))
    has_auxiliary, pixels = args.objective == "moments", Pixels(args.resolution)
    # In the costs of a step, the auxiliary network is a second pass of the student, which has the same size.
    cost = count_step((student,), distillation_loss([student] * (1 + has_auxiliary), pixels))
    x = torch.empty(1, *pixels.shape, device="meta", dtype=student.dtype)
    steps = 1 if has_auxiliary else args.teacher_inference_steps
    extra = count_inference(lambda: student.encode(x)) + _flops_of_decoding(student, x, steps)
    trained = count_weights(student.decoder) * (1 + has_auxiliary)
    weights = _weights(args, trained, count_weights(student.encoder) + count_weights(student))
    hardware = hardware_of(args, precision_of(args))
    return Plan(cost, extra, weights, hardware, args.gradient_checkpointing, extra_is_encoder=False)


def _flops_of_decoding(autoencoder: UnifiedLatentsAutoencoder, x: Tensor, num_steps: int) -> int:
    """FLOPs of decoding latents of images (B, 3, H, W) on the meta device; latents are embedded only once."""
    decoder, clip = autoencoder.decoder, x.unsqueeze(2)
    shape = (len(x), *latents_of(autoencoder, Pixels(x.shape[-1])).shape)
    z = torch.empty(shape, device="meta", dtype=x.dtype).unsqueeze(2)
    features, logsnr = decoder.embed_latents(z), torch.empty(len(x), device="meta")
    of_step = count_inference(lambda: decoder(clip, logsnr, features))
    return count_inference(lambda: decoder.embed_latents(z)) + num_steps * of_step


def plan_autoencoder(
    args: Stage1Arguments, autoencoder: UnifiedLatentsAutoencoder, prior: UnifiedLatentsTransformer
) -> Plan:
    """How a run of stage 1 fits on the GPUs of its arguments; moves the networks to the meta device.

    Raises:
        ValueError: the networks don't fit the resolution.
    """
    _check_side(args.resolution, autoencoder.spatial_compression_ratio * prior.size_multiple)
    to_meta(autoencoder, _dtype(args))
    to_meta(prior, _dtype(args))
    pixels = Pixels(args.resolution, args.num_frames)
    cost = count_step((autoencoder, prior), stage1_loss(autoencoder, prior, pixels, args.train_only))
    parts = _parts(autoencoder, prior)
    trained = sum(count_weights(part) for name, part in parts.items() if args.train_only in (None, name))
    weights = _weights(args, trained, sum(map(count_weights, parts.values())) - trained)
    return Plan(cost, 0, weights, hardware_of(args, precision_of(args)), args.gradient_checkpointing)


def plan_base(
    args: Stage2Arguments, frozen: FrozenAutoencoder, base: UnifiedLatentsTransformer, text: TextPlan | None = None
) -> Plan:
    """How a run of stage 2 fits on the GPUs of its arguments; moves the networks to the meta device.

    Raises:
        ValueError: the networks don't fit the resolution or the number of frames.
    """
    latents = _latents(args, frozen, base, text)
    frozen.vae.to("meta")
    cost = count_step((to_meta(base, _dtype(args)),), stage2_loss(base, latents))
    encodes = not (args.latent_dataset or args.cache_latents or latents.frames)
    pixels = torch.empty(1, *Pixels(args.resolution).shape, device="meta")
    extra = count_inference(lambda: frozen.encode(pixels)) if encodes else 0
    trained, kept = count_weights(base), count_weights(frozen.vae)
    hardware = hardware_of(args, precision_of(args))
    if text is None:
        return Plan(cost, extra, _weights(args, trained, kept), hardware, args.gradient_checkpointing)
    weights = _weights(args, trained + text.weights * text.is_trained, kept + text.weights * (not text.is_trained))
    beside = text.flops_beside
    return Plan(text.in_step(cost), extra, weights, hardware, args.gradient_checkpointing, text_flops=beside)


def _latents(args: Stage2Arguments, frozen: FrozenAutoencoder, base: Any, text: TextPlan | None) -> Latents:
    _check_side(args.resolution, frozen.ratio * base.size_multiple)
    frames = base.config.sample_frames or args.dry_run_latent_frames
    if args.num_context_latents and (frames is None or frames <= args.num_context_latents):
        raise ValueError(
            f"--dry_run with --num_context_latents {args.num_context_latents} needs more --dry_run_latent_frames, "
            f"got {frames}."
        )
    tokens = DEFAULT_TOKENS if text is None else text.tokens
    return Latents(frozen.latent_channels, args.resolution // frozen.ratio, frames, args.num_context_latents, tokens)


def _conditions(base: Any, latents: Latents) -> str:
    conditions = (
        (base.config.num_class_embeds, f"{base.config.num_class_embeds} classes"),
        (base.config.cross_attention_dim, f"texts of {latents.text_tokens} tokens"),
        (latents.context_frames, f"{latents.context_frames} given latent frames"),
    )
    return "".join(f"; {text}" for value, text in conditions if value)


def _weights(args: TrainingArguments, trained: int, frozen: int) -> Weights:
    decays: Any = args.ema_decay
    num_averages = (len(decays) if isinstance(decays, tuple) else 1) + len(getattr(args, "ema_std", ()))
    state = OPTIMIZER_BYTES[getattr(args, "optimizer", "adamw")]
    return Weights(trained, frozen, args.use_ema, precision_of(args) != "no", num_averages, state)


def _parts(autoencoder: UnifiedLatentsAutoencoder, prior: UnifiedLatentsTransformer) -> dict[str, nn.Module]:
    return {"encoder": autoencoder.encoder, "decoder": autoencoder.decoder, "prior": prior}


def _sizes(parts: dict[str, nn.Module]) -> list[str]:
    return [f"{name}: {count_weights(part):,} parameters" for name, part in parts.items()]


def count_weights(network: nn.Module) -> int:
    """Number of a network's weights."""
    return sum(parameter.numel() for parameter in network.parameters())


def _check_side(side: int, multiple: int) -> None:
    if side % multiple:
        raise ValueError(f"--resolution must be a multiple of {multiple} for these networks, got {side}.")


def _dtype(args: TrainingArguments) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision_of(args), torch.float32)
