"""The optimiser, its learning rate, and norms of gradients."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ul_tokenizer import _compat
from ul_tokenizer.training.arguments import TrainingArguments
from ul_tokenizer.training.engine.sharding import whole


def make_optimizer(args: TrainingArguments, model: nn.Module) -> torch.optim.AdamW:
    """Makes AdamW for all weights that are not frozen."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(parameters, fused=True, **_hyperparameters(args))


def make_lr_scheduler(args: TrainingArguments, optimizer: torch.optim.Optimizer, max_steps: int) -> LambdaLR:
    """Makes the schedule of the learning rate."""
    return get_scheduler(
        args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=max_steps
    )


def apply_arguments(args: TrainingArguments, optimizer: torch.optim.Optimizer, lr_scheduler: LambdaLR) -> None:
    """Sets the hyperparameters of the arguments after a checkpoint was loaded, because arguments may have changed."""
    rate = args.learning_rate * lr_scheduler.lr_lambdas[0](lr_scheduler.last_epoch)
    for group in optimizer.param_groups:
        group.update(_hyperparameters(args), lr=rate, initial_lr=args.learning_rate)
    lr_scheduler.base_lrs = [args.learning_rate]
    _compat.set_last_rates(lr_scheduler, [rate])


def is_trained(part: nn.Module) -> bool:
    """Whether any weight of a module is not frozen."""
    return any(parameter.requires_grad for parameter in part.parameters())


def gradient_norm(part: nn.Module) -> Tensor:
    """L2 norm of a trained module's gradients."""
    gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
    return whole(torch.linalg.vector_norm(torch.stack(_compat.norms(gradients))))


def _hyperparameters(args: TrainingArguments) -> dict[str, Any]:
    return {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "weight_decay": args.adam_weight_decay,
    }
