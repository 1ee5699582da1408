"""Tiny networks for these tests."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ul_tokenizer.models.autoencoder import UnifiedLatentsAutoencoder
from ul_tokenizer.models.presets import build_autoencoder, build_prior
from ul_tokenizer.models.transformer import UnifiedLatentsTransformer


def move_weights(network: nn.Module) -> None:
    """Moves all weights a little: some start at 0, and the layers that they multiply would not be tested."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)


@pytest.fixture
def model() -> UnifiedLatentsAutoencoder:
    torch.manual_seed(0)
    network = build_autoencoder("ul-tiny-f8")
    move_weights(network)
    network.eval()
    return network


@pytest.fixture
def prior() -> UnifiedLatentsTransformer:
    """A prior of two stages."""
    torch.manual_seed(0)
    network = build_prior("ul-tiny-f8", {"block_out_channels": (32, 48), "num_layers": (2, 2)})
    move_weights(network)
    network.eval()
    return network
