"""What a checkpointed block computes a second time in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# Most of a block's time, and a small part of what it saves: norms, activations and casts save the most.
EXPENSIVE = {
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "linear",
    "convolution",
    "convolution_overrideable",
    "mkldnn_convolution",
    "_linear_pointwise",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
}


def checkpointing_function(policy: Literal["full", "selective"]) -> Callable[..., Any] | None:
    """The function for diffusers' `enable_gradient_checkpointing`; None for its own, which computes all again."""
    return _checkpointed if policy == "selective" else None


def _checkpointed(block: nn.Module, *args: Any) -> Any:
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(block.__call__, *args, use_reentrant=False, context_fn=contexts)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_expensive = str(operator).split(".")[1] in EXPENSIVE  # "aten.mm.default"
    return CheckpointPolicy.PREFER_SAVE if is_expensive else CheckpointPolicy.PREFER_RECOMPUTE
