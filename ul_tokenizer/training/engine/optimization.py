"""The optimisers by name, and their hyperparameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ul_tokenizer import _compat
from ul_tokenizer.models.blocks import TransformerBlock
from ul_tokenizer.training.arguments import TrainingArguments


def make_optimizer(args: TrainingArguments, model: nn.Module) -> torch.optim.Optimizer:
    """Makes the optimiser of the arguments for all weights that are not frozen.

    Raises:
        ValueError: it needs a package that is not installed, or a newer torch.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if args.optimizer == "muon":
        return _make_muon(args, parameters, hidden_matrices(model))
    if args.optimizer == "adamw8bit":
        return _make_8bit(args, parameters)
    return torch.optim.AdamW(parameters, fused=True, **_of_adamw(args))


def apply_arguments(args: TrainingArguments, optimizer: torch.optim.Optimizer, lr_scheduler: LambdaLR) -> None:
    """Sets the hyperparameters of the arguments after a checkpoint was loaded, because arguments may have changed."""
    rate = args.learning_rate * lr_scheduler.lr_lambdas[0](lr_scheduler.last_epoch)
    for group in optimizer.param_groups:
        changes = _of_adamw(args) if "betas" in group else _of_muon(args)
        group.update(changes, lr=rate, initial_lr=args.learning_rate)
    lr_scheduler.base_lrs = [args.learning_rate for _ in optimizer.param_groups]
    _compat.set_last_rates(lr_scheduler, [rate for _ in optimizer.param_groups])


def is_trained(part: nn.Module) -> bool:
    """Whether any weight of a module is not frozen."""
    return any(parameter.requires_grad for parameter in part.parameters())


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained matrices within transformer blocks: no embeddings, and neither first nor last layers."""
    blocks = [module for module in model.modules() if isinstance(module, TransformerBlock)]
    found = {id(weight): weight for block in blocks for weight in block.parameters() if weight.ndim == 2}
    return [weight for weight in found.values() if weight.requires_grad]


class ChainedOptimizer(torch.optim.Optimizer):
    """Several optimisers of different weights as one, with the groups and the state of all.

    Args:
        optimizers: the optimisers; they have no state yet.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)
        self._counts = [len(optimizer.param_groups) for optimizer in optimizers]
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        super().__init__(groups, {"lr": groups[0]["lr"]})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Makes a step of each optimiser."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        remaining = iter(self.param_groups)
        for optimizer, count in zip(self.optimizers, self._counts, strict=True):
            # A state that was loaded consists of new objects, so they are handed on in each step.
            optimizer.param_groups = [next(remaining) for _ in range(count)]
            optimizer.state = self.state
            optimizer.step()
        return loss


def _make_muon(
    args: TrainingArguments, parameters: Iterable[nn.Parameter], matrices: list[nn.Parameter]
) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"--optimizer muon needs torch 2.9 or newer, got {torch.__version__}.")
    chosen = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in parameters if id(parameter) not in chosen]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **_of_muon(args)))
    if others:
        optimizers.append(torch.optim.AdamW(others, fused=True, **_of_adamw(args)))
    return ChainedOptimizer(optimizers)


def _make_8bit(args: TrainingArguments, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            f"--optimizer {args.optimizer} needs the package bitsandbytes, which is not installed."
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, **_of_adamw(args))
    return optimizer


def _of_adamw(args: TrainingArguments) -> dict[str, Any]:
    return {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "weight_decay": args.adam_weight_decay,
    }


def _of_muon(args: TrainingArguments) -> dict[str, Any]:
    return {"lr": args.learning_rate, "momentum": args.muon_momentum, "weight_decay": args.adam_weight_decay}
