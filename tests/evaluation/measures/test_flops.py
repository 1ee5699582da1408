"""FLOPs, split by operator; the expected sizes are computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ul_tokenizer.evaluation.measures.flops import Flops, count_flops, split_flops
from ul_tokenizer.models.layers import Linear
from ul_tokenizer.models.presets import build_autoencoder

B, C, OUT = 2, 3, 5


def linear() -> Any:
    return nn.Linear(C, OUT)(torch.randn(B, 7, C))


def our_linear() -> Any:
    return Linear(C, OUT)(torch.randn(B, 7, C))


def conv2d() -> Any:
    return nn.Conv2d(C, OUT, 3, padding=1, stride=2)(torch.randn(B, C, 8, 12))


def pointwise() -> Any:
    return nn.Conv2d(C, OUT, 1)(torch.randn(B, C, 8, 12))


def conv3d() -> Any:
    return nn.Conv3d(C, OUT, (2, 3, 3), padding=(0, 1, 1))(torch.randn(B, C, 4, 6, 8))


def transposed() -> Any:
    return nn.ConvTranspose2d(C, OUT, 2, stride=2)(torch.randn(B, C, 4, 6))


def attention() -> Any:
    q, k = torch.randn(B, 3, 16, 8), torch.randn(B, 3, 10, 8)
    return F.scaled_dot_product_attention(q, k, k)


def both() -> Any:
    return linear(), conv2d()


LINEAR = 2 * B * 7 * C * OUT
CONV2D = 2 * B * (4 * 6) * 9 * C * OUT  # a multiply-add for each output position, kernel position and pair of channels
EXPECTED: list[tuple[Callable[[], Any], Flops]] = [
    (linear, Flops(LINEAR, 0)),
    (our_linear, Flops(LINEAR, 0)),
    (conv2d, Flops(0, CONV2D)),
    (pointwise, Flops(0, 2 * B * (8 * 12) * C * OUT)),
    (conv3d, Flops(0, 2 * B * (3 * 6 * 8) * 18 * C * OUT)),
    (transposed, Flops(0, 2 * B * (4 * 6) * 4 * C * OUT)),  # here each input position meets each kernel position
    (attention, Flops(2 * (2 * B * 3 * 16 * 10 * 8), 0)),
    (both, Flops(LINEAR, CONV2D)),
]


@pytest.mark.parametrize(("call", "expected"), EXPECTED, ids=lambda value: getattr(value, "__name__", ""))
def test_flops_are_split_as_counted_by_hand(call: Callable[[], Any], expected: Flops) -> None:
    with torch.inference_mode():
        assert split_flops(call) == expected
    assert split_flops(call) == expected, "with gradients torch takes other kernels"
    assert count_flops(call) == expected.total


def test_the_backward_pass_of_a_convolution_counts_as_convolution() -> None:
    x = torch.randn(B, C, 8, 12, requires_grad=True)
    conv = nn.Conv2d(C, OUT, 3, padding=1, stride=2)
    assert split_flops(lambda: conv(x).sum().backward()) == Flops(0, 3 * CONV2D)  # forward, to inputs, to weights


def test_the_parts_of_a_whole_network_sum_to_all_flops() -> None:
    model = build_autoencoder("ul-tiny-f8").eval()
    z = torch.randn(1, 4, 4, 4)

    def decode() -> Any:
        return model.decode(z, num_inference_steps=2)

    with torch.inference_mode():
        flops = split_flops(decode)
        assert flops.linear_and_attention + flops.convolutions == flops.total == count_flops(decode)
    assert flops.convolutions > flops.linear_and_attention > 0


def test_a_call_without_products_has_no_flops() -> None:
    assert split_flops(lambda: torch.ones(3) + 1) == Flops(0, 0)
