"""What is computed a second time in the backward pass, and that it changes no gradient."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.presets import build_autoencoder
from ul_tokenizer.training.engine.recomputation import checkpointing_function

Policy = Literal["full", "selective"]
CONVOLUTIONS, NORMS = ("aten.convolution",), ("aten.native_group_norm", "aten.rsqrt")
PRODUCTS = ("aten.mm", "aten.addmm", "mkldnn._linear_pointwise", "aten._scaled_dot_product_flash_attention_for_cpu")


class Calls(TorchDispatchMode):
    """Counts calls of operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def run(policy: Policy | None) -> tuple[list[Tensor], int, dict[str, int]]:
    """Gradients, bytes that the forward pass saved, and calls in the backward pass."""
    torch.manual_seed(0)
    autoencoder: UnifiedLatentsAutoencoder = build_autoencoder("ul-tiny-f8", {"dropout": 0.2})
    autoencoder.train()
    if policy is not None:
        autoencoder.enable_gradient_checkpointing(checkpointing_function(policy))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        z, _ = autoencoder.encoder(x.unsqueeze(2))
        features = autoencoder.decoder.embed_latents(z)
        loss = autoencoder.decoder(x.unsqueeze(2), torch.zeros(2), features).square().sum()
    with Calls() as calls:
        loss.backward()
    weights = {id(p): p for p in autoencoder.parameters()}
    kept = sum(size for pointer, size in storages.items() if pointer not in {p.data_ptr() for p in weights.values()})
    return [p.grad for p in autoencoder.parameters() if p.grad is not None], kept, calls.counts


@pytest.mark.parametrize("policy", ["full", "selective"])
def test_computing_activations_again_changes_no_gradient(policy: Policy) -> None:
    plain, _, _ = run(None)
    again, _, _ = run(policy)
    assert len(plain) == len(again) > 20
    assert all(map(torch.equal, plain, again))


def test_selective_checkpointing_computes_no_convolution_and_no_product_twice() -> None:
    counts = {policy: run(policy)[2] for policy in (None, "full", "selective")}
    for name in CONVOLUTIONS:
        assert counts["selective"].get(name, 0) == counts[None].get(name, 0) < counts["full"][name]
    again = {policy: sum(calls.get(name, 0) for name in PRODUCTS) for policy, calls in counts.items()}
    assert again["selective"] == again[None] < again["full"]


def test_selective_checkpointing_saves_memory() -> None:
    bytes_of = {policy: run(policy)[1] for policy in (None, "full", "selective")}
    assert bytes_of["full"] < bytes_of[None] and bytes_of["selective"] < bytes_of[None]
