"""The text encoder of a planned run: its weights, and what encoding a text costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ul_tokenizer.training.estimate.counting import StepCost, count_inference, saved_bytes
from ul_tokenizer.training.fresh_text import VOCAB_SIZE, build_text_model, full_config
from ul_tokenizer.training.stage2_arguments import Stage2Arguments
from ul_tokenizer.training.text import load_text_encoder

META = torch.device("meta")
DEFAULT_TOKENS = 77  # if no argument and no config says how many a text has


@dataclass(frozen=True)
class TextPlan:
    """A text encoder.

    Args:
        model: the encoder on the meta device; None if it is not on this machine.
        tokens: the most tokens of a text.
        is_trained: whether it is trained along.
        is_cached: whether hidden states are computed once and stored.
    """

    model: Any
    tokens: int
    is_trained: bool
    is_cached: bool

    @property
    def width(self) -> int | None:
        """Channels of the hidden states; None if the encoder isn't known."""
        return None if self.model is None else int(self.model.config.hidden_size)

    @property
    def weights(self) -> int:
        """Number of its weights."""
        return 0 if self.model is None else sum(weight.numel() for weight in self.model.parameters())

    def flops(self) -> int:
        """FLOPs of encoding one text of this length."""
        return 0 if self.model is None else count_inference(self._forward(1))

    def in_step(self, cost: StepCost) -> StepCost:
        """What a step costs with a trained encoder in it, whose backward pass costs twice its forward pass."""
        if self.model is None or not self.is_trained:
            return cost
        flops = self.flops()
        kept = saved_bytes([self.model], self._forward(2)) - saved_bytes([self.model], self._forward(1))
        return cost._replace(
            forward_flops=cost.forward_flops + flops,
            flops=cost.flops + 3 * flops,
            checkpointed_flops=cost.checkpointed_flops + 4 * flops,
            activations=cost.activations + kept,
            checkpointed_activations=cost.checkpointed_activations + kept,
        )

    @property
    def flops_beside(self) -> int:
        """FLOPs of each sample beside the training step: those of a frozen encoder that isn't cached."""
        return 0 if self.is_trained or self.is_cached else self.flops()

    def describe(self) -> str:
        """A line for the plan."""
        if self.model is None:
            return "text encoder: not counted, because it is not on this machine"
        how = "trained" if self.is_trained else "frozen, its hidden states cached" if self.is_cached else "frozen"
        flops = self.flops()
        shown = f"{flops / 1e9:,.0f} G" if flops >= 1e10 else f"{flops / 1e9:.3g} G"
        return f"text encoder: {self.weights:,} parameters, {how}; {shown} FLOPs for a text of {self.tokens} tokens"

    def _forward(self, batch_size: int) -> Callable[[], Any]:
        ids = torch.zeros(batch_size, self.tokens, dtype=torch.int64, device=META)
        return lambda: self.model(input_ids=ids).last_hidden_state


def plan_text(args: Stage2Arguments, text: Any = None) -> TextPlan | None:
    """The text encoder of a run; None for a run without text.

    Args:
        args: the arguments of the run.
        text: the `TextEncoder` if there is one, which is moved to the meta device.

    Raises:
        ValueError: the arguments give no text encoder.
    """
    if not args.has_text:
        return None
    if text is None:
        model, tokens = _made(args)
    else:
        model, tokens = text.model.to(META), text.tokenizer.model_max_length
    tokens = args.max_text_tokens or tokens or DEFAULT_TOKENS
    return TextPlan(model, tokens, args.trains_text_encoder, bool(args.cache_text_embeddings))


def _made(args: Stage2Arguments) -> tuple[Any, int | None]:
    """An encoder and the most tokens that it takes; a fresh one has the most tokens that its tokenizer may learn."""
    if args.text_encoder_config is not None:
        with META:
            model = build_text_model(full_config(args.text_encoder_config, _vocab_size(args.text_encoder_config)))
        return model, getattr(model.config, "max_position_embeddings", None)
    if args.text_encoder is None or not Path(args.text_encoder).is_dir():
        return None, None
    text = load_text_encoder(args.text_encoder, args.text_encoder_subfolder, max_tokens=args.max_text_tokens)
    return text.model.to(META), text.tokenizer.model_max_length


def _vocab_size(config: dict[str, Any]) -> int:
    size = config.get("vocab_size", VOCAB_SIZE)
    if type(size) is not int or size < 1:
        raise ValueError(f"--text_encoder_config must have a positive number as vocab_size, got {size!r}.")
    return size
