"""FSDP: weights that are divided among the processes, their parts, and the weights made whole again.

```
parameter (DTensor) ─ part_of ─ this process's part: optimiser and averages work on it
        │   ▲
      whole  divided
        ▼   │
   whole tensor: checkpoints, and the copies of the models that the main process validates and saves
```
Functions here leave tensors as they are that aren't divided. Those that make tensors whole need all processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, recursively_apply
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

# Strategies of FSDP 1 and whether they free the gathered weights between the forward and the backward pass.
STRATEGIES = {"FULL_SHARD": True, "SHARD_GRAD_OP": False}
POLICIES = ("TRANSFORMER_BASED_WRAP", "NO_WRAP")
_NUMBERS = {"1": "FULL_SHARD", "2": "SHARD_GRAD_OP"}


# ---------------------------------------------------------------- set-up


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """The plugin that the launcher's variables describe, as FSDP 2; None if it asks for no FSDP.

    Raises:
        ValueError: the launcher asks for a strategy or an option that this training does not support.
    """
    if not _is_on("ACCELERATE_USE_FSDP"):
        return None
    if _is_on("FSDP_OFFLOAD_PARAMS"):
        raise ValueError("fsdp_offload_params must be false, because weights stay on the GPUs, got true.")
    if _is_on("FSDP_ACTIVATION_CHECKPOINTING"):
        raise ValueError("fsdp_activation_checkpointing must be false, got true; use --gradient_checkpointing.")
    policy = os.environ.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP").upper()
    if policy not in POLICIES:  # a network as a unit of its own could be used by its `forward` only
        raise ValueError(f"fsdp_auto_wrap_policy must be one of {', '.join(POLICIES)}, got {policy}.")
    # Every process makes or loads the whole weights anyway, so none has to receive them.
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, reshard_after_forward=_frees_after_forward(), cpu_ram_efficient_loading=False
    )


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")


def _frees_after_forward() -> bool:
    if os.environ.get("FSDP_VERSION", "1") == "2":
        return os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
    given = os.environ.get("FSDP_SHARDING_STRATEGY", "FULL_SHARD").upper()
    name = _NUMBERS.get(given, given)
    if name not in STRATEGIES:
        raise ValueError(f"fsdp_sharding_strategy must be one of {', '.join(STRATEGIES)}, got {given}.")
    return STRATEGIES[name]


def shard_on_cpu(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Turns FSDP on for processes on CPUs, for which accelerate silently ignores it although torch has it."""
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        accelerator.state.fsdp_plugin = plugin
        # Both states: accelerate copies the second over the first whenever it prepares something.
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP


def prepare_for_sharding(accelerator: Accelerator, model: nn.Module, parts: Mapping[str, ModelMixin]) -> None:
    """Names the blocks that FSDP gathers one at a time, where the launcher wraps by class but names no class."""
    if not is_sharding(accelerator):
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        names = {name for part in parts.values() for name in part._no_split_modules or ()}
        plugin.transformer_cls_names_to_wrap = sorted(names & {type(module).__name__ for module in model.modules()})


def is_sharding(accelerator: Accelerator) -> bool:
    """Whether the run divides its weights among the processes."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


# ---------------------------------------------------------------- parts


def part_of(tensor: Tensor) -> Tensor:
    """This process's part of a tensor of any shape; it shares memory with it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def divided(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, divided among the processes as another one of its shape; no process has to wait for others."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def joined(part: Tensor, like: Tensor) -> Tensor:
    """A tensor of which this process has a part; it has the shape of `like` and is divided in the same way."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies whole weights into a model, each process those that it has."""
    for name, tensor in model.state_dict().items():
        part_of(tensor).copy_(part_of(divided(weights[name], tensor)))


def fitted_state(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of an optimiser with its moments divided and laid out in memory as the weights are.

    Fused optimisers go through weights and moments in the order of their memory. A checkpoint of another run, with or
    without FSDP, may have another one.

    Raises:
        ValueError: the state is one of other weights.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    if len(parameters) != len(numbers):
        raise ValueError(f"the optimizer has {len(parameters)} weights, but its state has {len(numbers)}")
    moments = {}
    for number, parameter in zip(numbers, parameters, strict=True):
        values = state["state"].get(number, {})
        moments[number] = {key: _fitted(value, parameter) for key, value in values.items()}
    return {**state, "state": {number: values for number, values in moments.items() if values}}


@torch.no_grad()
def _fitted(value: Any, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor) or value.shape != parameter.shape:  # a number of steps, for example
        return value
    laid_out = torch.empty_like(part_of(parameter), dtype=value.dtype)
    return joined(laid_out.copy_(part_of(divided(value, parameter))), parameter)


# ---------------------------------------------------------------- whole again


def whole(tensor: Tensor) -> Tensor:
    """A tensor of any shape with the parts of all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cpu_copy(values: Any, accelerator: Accelerator, keep: bool = False) -> Any:
    """Nested lists and dicts with whole tensors on the CPU; on other processes than the main one, with empty ones.

    Args:
        values: the nested values; what is no tensor stays as it is.
        accelerator: tells which process this is.
        keep: tensors that are whole and on the CPU already may be given as they are, without a copy.
    """
    nothing = torch.empty(0)

    def copy(tensor: Tensor) -> Tensor:
        full = whole(tensor.detach())
        if not accelerator.is_main_process:
            return nothing
        return full.to("cpu", copy=not keep and full.device.type == "cpu" and not isinstance(tensor, DTensor))

    return recursively_apply(copy, values)


def whole_model(model: ModelMixin, weights: Mapping[str, Tensor], device: torch.device) -> ModelMixin:
    """A model of its own with the architecture of another one, in evaluation mode; for the main process.

    Args:
        model: one whose weights are divided.
        weights: name → whole tensor.
        device: where the new model computes.
    """
    with torch.random.fork_rng(devices=[]):
        replica: ModelMixin = type(model).from_config(model.config)
    replica.load_state_dict(weights)
    return replica.to(device).eval()
