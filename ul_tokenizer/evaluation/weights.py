"""Tells weights apart: a result belongs to the weights that it was measured with."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_sha256(*networks: nn.Module) -> str:
    """Hash of all parameters and buffers of some networks."""
    digest = hashlib.sha256()
    for network in networks:
        for name, tensor in sorted(network.state_dict().items()):
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(content.numpy().data)
    return digest.hexdigest()
