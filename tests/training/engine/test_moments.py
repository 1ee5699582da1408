"""An optimiser's moments from a checkpoint, in the memory layout of the weights."""

from __future__ import annotations

import torch
from torch import nn

from ul_tokenizer.training.engine.sharding import fitted_state


def trained(weight: nn.Parameter, state: dict[str, object] | None = None) -> torch.optim.AdamW:
    """AdamW after a step on a fixed gradient, from a state if one is given."""
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    if state is not None:
        optimizer.load_state_dict(fitted_state(state, optimizer))
    weight.grad = torch.empty_like(weight).copy_(torch.linspace(-1, 1, weight.numel()).reshape(weight.shape))
    optimizer.step()
    return optimizer


def test_a_step_after_resuming_does_not_depend_on_the_layouts_of_weights_and_moments() -> None:
    start = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    results = []
    for before in (torch.contiguous_format, torch.channels_last):
        for after in (torch.contiguous_format, torch.channels_last):
            weight = nn.Parameter(start.clone(memory_format=before))
            state = trained(weight).state_dict()
            again = nn.Parameter(weight.detach().clone(memory_format=after))
            optimizer = trained(again, state)
            assert optimizer.state[again]["exp_avg"].stride() == again.stride()
            results.append(again.detach().contiguous())
    assert all(torch.equal(result, results[0]) for result in results)
