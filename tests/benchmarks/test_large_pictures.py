"""`benchmarks/large_pictures.py` on networks of no size."""

from __future__ import annotations

import pytest
import torch
from large_pictures import Measured, crops_of, joined, rows

from ul_tokenizer.models.presets import build_autoencoder, build_prior


def test_crops_are_joined_to_the_picture_that_they_were_cut_from() -> None:
    x = torch.randn(1, 3, 12, 12)
    crops = crops_of(x, 4)
    assert crops.shape == (9, 3, 4, 4) and torch.equal(crops[5], x[0, :, 4:8, 8:12])
    assert torch.equal(joined(crops, 12), x)


def test_the_ways_differ_only_where_attention_sees_something_else() -> None:
    torch.manual_seed(0)
    vae, prior = build_autoencoder("ul-tiny-f8"), build_prior("ul-tiny-f8")
    for network in (vae, prior):
        for weight in network.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    measured = Measured(vae, prior, torch.rand(2, 3, 64, 64) * 2 - 1, levels=2)
    found = {name: (quality, bits) for name, quality, bits in rows(measured, 32, [64, 4])}
    whole = found.pop("whole")
    assert found.pop("whole, train tokens 64") == pytest.approx(whole, rel=1e-6)
    assert list(found) == ["crops", "whole, tiles", "whole, train tokens 4"]
    assert len({quality for quality, _ in (whole, *found.values())}) == 4
    assert len({bits for _, bits in (whole, *found.values())}) == 4
