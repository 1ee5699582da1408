"""What a training step needs, counted on the meta device: FLOPs, and the activations that its backward pass reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from ul_tokenizer import _compat
from ul_tokenizer.evaluation.measures.flops import count_flops

Loss = Callable[[int], Tensor]  # batch size → the scalar loss of a batch, on the meta device


class StepCost(NamedTuple):
    """What one sample of a training step needs."""

    forward_flops: int
    flops: int  # forward and backward pass
    checkpointed_flops: int  # the same with gradient checkpointing, which computes blocks twice
    activations: int  # bytes that are kept for the backward pass
    checkpointed_activations: int
    recomputed_activations: int  # bytes of the largest block that gradient checkpointing computes again


def count_step(networks: Sequence[ModelMixin], loss: Loss) -> StepCost:
    """Counts what one sample of a training step needs.

    Args:
        networks: the networks in training mode on the meta device, in the dtypes in which they compute; they are left
            without gradient checkpointing.
        loss: evaluates them.
    """
    forward, total = count_flops(lambda: _on_gpu(loss, 1)), count_flops(lambda: _on_gpu(loss, 1).backward())
    with _checkpointing(networks, _computed_again):
        checkpointed = count_flops(lambda: _on_gpu(loss, 1).backward())
    # The difference of two batch sizes leaves out what a batch needs only once.
    plain = [_saved(networks, loss, size) for size in (1, 2)]
    with_checkpoints = [_saved_with_checkpoints(networks, loss, size) for size in (1, 2)]
    kept, recomputed = (after - before for before, after in zip(*with_checkpoints, strict=True))
    return StepCost(forward, total, checkpointed, plain[1] - plain[0], kept, recomputed)


def _on_gpu(function: Callable[..., Any], *inputs: Any) -> Any:
    with _OnGpu():
        return function(*inputs)


def _computed_again(block: nn.Module, *inputs: Any) -> Any:
    """Gradient checkpointing whose second pass takes the operators of a GPU, too."""
    return checkpoint(_on_gpu, block, *inputs, use_reentrant=False)


def count_inference(function: Callable[[], Any]) -> int:
    """Counts the FLOPs of a call without gradients on the meta device."""
    with torch.no_grad():
        return count_flops(lambda: _on_gpu(function))


def saved_bytes(networks: Sequence[nn.Module], function: Callable[[], Any]) -> int:
    """Bytes that a call on the meta device keeps for its backward pass."""
    return _saved(networks, lambda _: function(), 0)


def to_meta(network: ModelMixin, dtype: torch.dtype) -> ModelMixin:
    """Moves a network to the meta device, in the dtype in which autocast would compute its products.

    What always runs in fp32 keeps that dtype, as in `from_pretrained`.
    """
    kept = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    network.to("meta")
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if kept & set(name.split(".")) else dtype)
    return network


class _OnGpu(TorchFunctionMode):
    """Makes the meta device take the operators of a GPU.

    On the meta device, attention would keep all of its weights, which no kernel of a GPU does; dropout would keep its
    mask in the dtype of its input; and there is no autocast, which would convert the input of a layer.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        if func in (F.linear, F.conv1d, F.conv2d, F.conv3d) and args[0].dtype != args[1].dtype:
            args = (args[0].to(args[1].dtype), *args[1:])
        return func(*args, **kwargs)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    return _compat.fused_attention(query, key, value, attn_mask)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input


# ----------------------------------------------------------------------------------------------------------------
# Activations
# ----------------------------------------------------------------------------------------------------------------


class _Storages:
    """Memory that tensors occupy; views of one memory count once.

    Args:
        others: memory that does not count.
    """

    def __init__(self, others: Iterable[Tensor]) -> None:
        self._others = {id(storage): storage for storage in map(Tensor.untyped_storage, others)}
        self._kept: dict[int, torch.UntypedStorage] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        """Counts the memory of a tensor."""
        storage = tensor.untyped_storage()
        if id(storage) not in self._others:
            self._kept[id(storage)] = storage
        return tensor

    @property
    def bytes(self) -> int:
        """How much it is."""
        return sum(storage.nbytes() for storage in self._kept.values())


def _weights(networks: Sequence[nn.Module]) -> list[Tensor]:
    return [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]


def _saved(networks: Sequence[nn.Module], loss: Loss, batch_size: int) -> int:
    storages = _Storages(_weights(networks))
    with saved_tensors_hooks(storages.keep, _unchanged):
        kept = _on_gpu(loss, batch_size)
    del kept
    return storages.bytes


def _saved_with_checkpoints(networks: Sequence[ModelMixin], loss: Loss, batch_size: int) -> tuple[int, int]:
    """Bytes that are kept between the passes, and bytes of the largest block that is computed again."""
    storages, largest = _Storages(_weights(networks)), 0

    def run(block: nn.Module, *inputs: Any) -> Any:
        nonlocal largest
        inside = _Storages([*_weights(networks), *(x for x in inputs if isinstance(x, Tensor))])
        for tensor in (x for x in inputs if isinstance(x, Tensor)):
            storages.keep(tensor)
        with saved_tensors_hooks(inside.keep, _unchanged):
            output = block(*inputs)
        largest = max(largest, inside.bytes)
        return output

    with _checkpointing(networks, run), saved_tensors_hooks(storages.keep, _unchanged):
        kept = _on_gpu(loss, batch_size)
    del kept
    return storages.bytes, largest


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


@contextmanager
def _checkpointing(networks: Sequence[ModelMixin], function: Callable[..., Any]) -> Iterator[None]:
    for network in networks:
        network.enable_gradient_checkpointing(function)
    try:
        yield
    finally:
        for network in networks:
            network.disable_gradient_checkpointing()
