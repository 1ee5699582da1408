"""Hashes of weights."""

from __future__ import annotations

import torch
from torch import nn

from ul_tokenizer.evaluation.weights import weights_sha256


def test_weights_are_told_apart_by_a_single_bit_and_by_their_dtype() -> None:
    network = nn.BatchNorm2d(3)
    same, other = weights_sha256(network), weights_sha256(nn.BatchNorm2d(3))
    assert same == other
    with torch.no_grad():
        network.weight[1] += 1e-6
    assert weights_sha256(network) != same
    assert weights_sha256(network.bfloat16()) != weights_sha256(nn.BatchNorm2d(3).half())
